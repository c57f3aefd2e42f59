//! A consumer that makes the most of leases: of many lengths, extended, outlived, given back for later, and used too late.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::{Message, ReceiveOptions};
use tokio::time::sleep;

use leasehold_histories::random::Random;

use super::{Settle, Stage, receive, settle};

/// From a lease that ends while its answer is handled to one that outlives most faults.
const LEASES_MS: [u64; 4] = [200, 600, 1_500, 4_000];
const RELEASE_MS_MAX: u64 = 1_500;
/// Messages whose receipts are kept for later; the oldest are forgotten, as by a consumer that crashed.
const KEPT_MAX: usize = 200;

/// Consumes until the queue is drained; misbehaves until the run is over.
pub async fn lessee(stage: Arc<Stage>, mut random: Random) {
    let Ok(mut client) = stage.client() else { return };
    let mut kept: Vec<Message> = Vec::new();
    while !stage.is_drained.load(Ordering::Relaxed) {
        let lease_ms = LEASES_MS[random.below(LEASES_MS.len() as u64) as usize];
        let messages_max = 1 + random.below(20) as u32;
        let lease = Some(Duration::from_millis(lease_ms));
        let wanted = ReceiveOptions { messages_max, lease, ..ReceiveOptions::default() };
        let Some((messages, received)) = receive(&stage, &client, wanted).await else { continue };
        let behaviour = if stage.is_over.load(Ordering::Relaxed) { 99 } else { random.below(100) };
        match behaviour {
            0..8 => client = stage.client().unwrap_or(client),
            8..40 => {
                for _ in 0..=random.below(3) {
                    // Some come after the end.
                    sleep(Duration::from_millis(random.below(lease_ms * 6 / 5))).await;
                    let longer = Duration::from_millis(200 + random.below(2_300));
                    settle(&stage, &client, &messages, Settle::Extend(longer)).await;
                }
                settle(&stage, &client, &messages, Settle::Ack).await;
            }
            40..50 => {
                let held = Duration::from_millis(lease_ms + 100 + random.below(500));
                sleep(held.saturating_sub(received.elapsed())).await;
                settle(&stage, &client, &messages, Settle::Ack).await;
            }
            50..62 => {
                let delay = Duration::from_millis(random.below(RELEASE_MS_MAX));
                settle(&stage, &client, &messages, Settle::Release(delay)).await;
            }
            62..74 => kept.extend(messages),
            74..80 => {
                let late = std::mem::take(&mut kept);
                let what = match random.below(3) {
                    0 => Settle::Ack,
                    1 => Settle::Release(Duration::ZERO),
                    _ => Settle::Extend(Duration::from_millis(lease_ms)),
                };
                settle(&stage, &client, &late, what).await;
                settle(&stage, &client, &messages, Settle::Ack).await;
            }
            _ => settle(&stage, &client, &messages, Settle::Ack).await,
        }
        kept.drain(..kept.len().saturating_sub(KEPT_MAX));
    }
}
