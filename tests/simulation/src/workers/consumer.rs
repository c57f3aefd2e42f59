//! A consumer that acks, extends, holds too long, gives back or crashes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_histories::workload::LEASE;
use tokio::time::sleep;

use super::{Settle, Stage, receive, settle};
use crate::client::Client;

const EXTENDED: Duration = Duration::from_millis(2_500);

/// Consumes until the queue is drained; misbehaves until the run is over.
pub async fn consumer(stage: Arc<Stage>, mut client: Client) {
    while !stage.is_drained.load(Ordering::Relaxed) {
        let messages_max = 1 + client.random.below(20) as u32;
        let Some((held, received)) = receive(&stage, &mut client, messages_max, None).await else { continue };
        let behaviour = if stage.is_over.load(Ordering::Relaxed) { 99 } else { client.random.below(100) };
        match behaviour {
            0..10 => client.begin_again(),
            10..18 => {
                let longer = LEASE + Duration::from_millis(200 + client.random.below(1_000));
                sleep(longer.saturating_sub(received.elapsed())).await;
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
            18..28 => settle(&stage, &mut client, &held, Settle::Release(Duration::ZERO)).await,
            28..34 => {
                sleep(Duration::from_millis(client.random.below(LEASE.as_millis() as u64))).await;
                settle(&stage, &mut client, &held, Settle::Extend(EXTENDED)).await;
                sleep(Duration::from_millis(client.random.below(EXTENDED.as_millis() as u64))).await;
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
            _ => {
                sleep(Duration::from_millis(client.random.below(20))).await;
                settle(&stage, &mut client, &held, Settle::Ack).await;
            }
        }
    }
}
