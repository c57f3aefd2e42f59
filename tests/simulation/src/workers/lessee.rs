//! A consumer that makes the most of leases: of many lengths, extended, outlived, given back for later, and used too late.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::{Held, Settle, Stage, receive, settle};
use crate::client::Client;

/// From a lease that ends while its answer is handled to one that outlives most faults.
const LEASES_MS: [u64; 4] = [200, 600, 1_500, 4_000];
const RELEASE_MS_MAX: u64 = 1_500;
/// Messages whose receipts are kept for later; the oldest are forgotten.
const KEPT_MAX: usize = 200;

/// Consumes until the queue is drained; misbehaves until the run is over.
pub async fn lessee(stage: Arc<Stage>, mut client: Client) {
    let mut kept: Vec<Held> = Vec::new();
    while !stage.is_drained.load(Ordering::Relaxed) {
        let lease_ms = LEASES_MS[client.random.below(LEASES_MS.len() as u64) as usize];
        let messages_max = 1 + client.random.below(20) as u32;
        let received = receive(&stage, &mut client, messages_max, Some(lease_ms)).await;
        let Some((held, received)) = received else { continue };
        let behaviour = if stage.is_over.load(Ordering::Relaxed) { 99 } else { client.random.below(100) };
        match behaviour {
            0..8 => client.begin_again(),
            8..40 => {
                for _ in 0..=client.random.below(3) {
                    // Some come after the end.
                    sleep(Duration::from_millis(client.random.below(lease_ms * 6 / 5))).await;
                    let longer = Duration::from_millis(200 + client.random.below(2_300));
                    settle(&stage, &mut client, &held, Settle::Extend(longer)).await;
                }
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
            40..50 => {
                let longer = Duration::from_millis(lease_ms + 100 + client.random.below(500));
                sleep(longer.saturating_sub(received.elapsed())).await;
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
            50..62 => {
                let delay = Duration::from_millis(client.random.below(RELEASE_MS_MAX));
                settle(&stage, &mut client, &held, Settle::Release(delay)).await;
            }
            62..74 => kept.extend(held),
            74..80 => {
                let late = std::mem::take(&mut kept);
                let what = match client.random.below(3) {
                    0 => Settle::Ack,
                    1 => Settle::Release(Duration::ZERO),
                    _ => Settle::Extend(Duration::from_millis(lease_ms)),
                };
                settle(&stage, &mut client, &late, what).await;
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
            _ => settle(&stage, &mut client, &held, Settle::Ack).await,
        }
        kept.drain(..kept.len().saturating_sub(KEPT_MAX));
    }
}
