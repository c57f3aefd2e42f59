//! What a pull stream has to say, until the network takes it.
//!
//! ```text
//!   pump ─▶ Unseen ─▶ channel ─▶ the stream is polled ─▶ PullResponse: the consumer may see it
//!              └───────────┴─ dropped: given back
//! ```
//!
//! Invariant: nothing here holds the sending half of the channel. What is left in it when its receiver is gone must be dropped with the
//! last sender, and would keep that one alive.

use std::sync::Arc;
use std::time::Duration;

use leasehold_proto::v1::{
    Deliveries, Delivery, PullResponse, PullSettled, ReleaseItem, pull_response::Kind,
};
use tokio::runtime::Handle;

use super::settle::{Settle, settle};
use crate::answers::millis;
use crate::core::Core;
use crate::queue_info::QueueInfo;

/// An answer on its way to the network.
pub enum Pushed {
    /// Messages, and when they were leased, as the stream counts.
    Deliveries(Unseen, Duration),
    Settled(PullSettled),
}

impl Pushed {
    /// What the network takes: from here on the consumer may see it.
    pub fn into_response(self) -> PullResponse {
        let kind = match self {
            Self::Deliveries(unseen, leased) => {
                let (deliveries, leased_ms) = (unseen.into_deliveries(), Some(millis(leased)));
                Kind::Deliveries(Deliveries { deliveries, leased_ms })
            }
            Self::Settled(settled) => Kind::Settled(settled),
        };
        PullResponse { kind: Some(kind) }
    }
}

/// Messages that were leased for a stream, and that its consumer has not seen. When it is dropped, they are given back: they must not
/// wait for their leases to end.
pub struct Unseen {
    core: Arc<Core>,
    queue: QueueInfo,
    deliveries: Vec<Delivery>,
}

impl Unseen {
    pub fn new(core: Arc<Core>, queue: QueueInfo, deliveries: Vec<Delivery>) -> Self {
        Self { core, queue, deliveries }
    }

    fn into_deliveries(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        let deliveries = std::mem::take(&mut self.deliveries);
        if deliveries.is_empty() {
            return;
        }
        // A node that ends has none.
        let Ok(runtime) = Handle::try_current() else { return };
        let untouched = |delivery: Delivery| ReleaseItem {
            receipt: delivery.receipt,
            untouched: true,
            ..ReleaseItem::default()
        };
        let items = deliveries.into_iter().map(untouched).collect::<Vec<_>>();
        let (core, queue) = (self.core.clone(), self.queue.clone());
        runtime.spawn(async move {
            if let Err(failure) = settle(&core, queue.name(), Settle::Release(&items), None).await {
                tracing::debug!(%failure, "messages of a consumer that has gone stay leased until their time is over");
            }
        });
    }
}
