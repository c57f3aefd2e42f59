//! A consumer that acks, holds too long, gives back or crashes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::ReceiveOptions;
use leasehold_histories::random::Random;
use leasehold_histories::workload::LEASE;
use tokio::time::sleep;

use super::{Settle, Stage, receive, settle};

/// Consumes until the queue is drained; misbehaves until the run is over.
pub async fn consumer(stage: Arc<Stage>, mut random: Random) {
    let Ok(mut client) = stage.client() else { return };
    while !stage.is_drained.load(Ordering::Relaxed) {
        let messages_max = 1 + random.below(20) as u32;
        let wanted = ReceiveOptions { messages_max, ..ReceiveOptions::default() };
        let Some((messages, received)) = receive(&stage, &client, wanted).await else { continue };
        let behaviour = if stage.is_over.load(Ordering::Relaxed) { 99 } else { random.below(100) };
        match behaviour {
            0..10 => client = stage.client().unwrap_or(client),
            10..18 => {
                let held = LEASE + Duration::from_millis(200 + random.below(1_000));
                sleep(held.saturating_sub(received.elapsed())).await;
                settle(&stage, &client, &messages, Settle::Ack).await;
            }
            18..28 => settle(&stage, &client, &messages, Settle::Release(Duration::ZERO)).await,
            _ => {
                sleep(Duration::from_millis(random.below(20))).await;
                settle(&stage, &client, &messages, Settle::Ack).await;
            }
        }
    }
}
