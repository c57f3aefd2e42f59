//! Faults of the queue itself: it has no room for more.

use std::sync::atomic::Ordering;

use leasehold_client::v1::QueueSettings;
use leasehold_histories::history::{Op, Outcome};

use super::Scene;
use super::data::{failed, until};
use super::schedule::Planned;
use crate::workload::QUEUE;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// The queue is at its maximum length: sends are refused, what it holds is worked off, and later there is room again.
    QueueFull,
}

pub const LASTS_MS: [u64; 2] = [2_000, 6_000];
/// Of each shard. Senders come with up to 20 messages at once.
const LENGTH_MAX: u64 = 8;
const UNBOUNDED: u64 = 0;

pub async fn begin(scene: &mut Scene<'_>, planned: &Planned) -> Result<String, String> {
    let length_max = 1 + planned.choice % LENGTH_MAX;
    limit(scene, length_max).await?;
    scene.full_before = scene.stage.full.load(Ordering::Relaxed);
    Ok(format!("not more than {length_max} messages a shard for {:?}", planned.lasts))
}

/// Not before the limit was felt, and not before something was worked off under it.
pub async fn end(scene: &mut Scene<'_>, planned: &Planned) -> Result<(), String> {
    let (stage, full_before) = (scene.stage, scene.full_before);
    until("a send is refused because the queue is full", async || {
        Ok(stage.full.load(Ordering::Relaxed) > full_before)
    })
    .await?;
    until("a message of the full queue is settled", async || {
        Ok(stage.recorder.look(|ops| is_worked_off(ops, planned.number)))
    })
    .await?;
    limit(scene, UNBOUNDED).await
}

async fn limit(scene: &Scene<'_>, length_max: u64) -> Result<(), String> {
    let client = scene.stage.client().map_err(failed)?;
    let settings = || QueueSettings { length_max: Some(length_max), ..QueueSettings::default() };
    until("the queue has another maximum length", async || {
        client.set_queue(QUEUE, settings()).await.map(|()| true).map_err(failed)
    })
    .await
}

/// Whether a message was acknowledged since this fault began.
fn is_worked_off(ops: &[Op], fault: usize) -> bool {
    let begins = |op: &Op| matches!(op, Op::Fault { number, .. } if *number == fault);
    let Some(begun) = ops.iter().rposition(begins) else { return false };
    let Op::Fault { at_us, .. } = &ops[begun] else { return false };
    ops[begun..]
        .iter()
        .any(|op| matches!(op, Op::Ack { outcome: Outcome::Done, began_us, .. } if began_us > at_us))
}
