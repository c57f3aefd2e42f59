//! What a leader promises of leases.
//!
//! An answer that says how long a lease lasts is believed from when it arrives, but the lease counts from an entry's stamp. So the
//! leader notes by how much the answer lagged (`grace.rs`), and promises nothing of which a new leader would not know.

use leasehold_partition::{Command, Receipt, Reply, Request as PartitionRequest, RequestId};
use tokio::time::Instant;

use super::waking::name_of;
use super::{Answering, Leadership};
use crate::failure::Failure;
use crate::replica::failures::{promised, promised_before};
use crate::replica::request::CommandCall;

/// What the answer to an extension promises.
pub(super) struct Promise {
    name: Option<(u64, u64)>,
    leases: Leases,
}

enum Leases {
    /// Of these durations, from the stamp of the entry on.
    New(Vec<u32>),
    /// An earlier try has extended them, and they count from then.
    Before(Vec<(Receipt, u32)>),
}

impl Leadership {
    /// Whether an earlier try of a request is on its way, or was answered.
    pub(super) fn is_known(&self, id: RequestId) -> bool {
        self.named.contains(&name_of(id)) || self.shared.machine.read().remembers(id)
    }

    /// Notes that an extension is part of the open entry; none of what promises no lease.
    pub(super) fn note_promise(&mut self, call: &CommandCall) -> Option<Promise> {
        if call.promised_leases_ms.is_empty() {
            return None;
        }
        let PartitionRequest { id, command } = PartitionRequest::decode(&call.command).ok()?;
        let leases = match command {
            Command::Extend { items, .. } if id.is_some_and(|id| self.is_known(id)) => Leases::Before(items),
            _ => Leases::New(call.promised_leases_ms.clone()),
        };
        let name = id.map(name_of);
        self.named.extend(name);
        Some(Promise { name, leases })
    }

    /// The answer to an extension.
    ///
    /// # Errors
    /// When it is too late to promise the leases in full.
    pub(super) fn promise(
        &mut self,
        promise: &Promise,
        reply: Reply,
        entry: Answering<'_>,
    ) -> Result<Reply, Failure> {
        if let Some(name) = &promise.name {
            self.named.remove(name);
        }
        match &promise.leases {
            Leases::New(leases_ms) => {
                for lease_ms in leases_ms {
                    self.grace.answered(entry.stamp_ms + u64::from(*lease_ms), entry.lag_ms);
                }
                promised(reply, leases_ms, entry.lag_ms)
            }
            Leases::Before(items) => {
                let now_ms = self.clock.now_ms(Instant::now());
                let lags = promised_before(&self.shared.machine.read(), items, &reply, now_ms)?;
                for (end_ms, lag_ms) in lags {
                    self.grace.answered(end_ms, lag_ms);
                }
                Ok(reply)
            }
        }
    }
}
