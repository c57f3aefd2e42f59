//! What a leader promises of leases, and which it takes back because nobody has them.
//!
//! An answer that says how long a lease lasts is believed from when it arrives, but the lease counts from an entry's stamp. So the
//! leader notes by how much the answer lagged (`grace.rs`), and promises nothing of which a new leader would not know.

use leasehold_partition::{
    Command, Delivery, QueueId, Receipt, Reply, Request as PartitionRequest, RequestId,
};
use tokio::time::Instant;

use super::waking::name_of;
use super::{Answering, Leadership, Pending};
use crate::failure::Failure;
use crate::replica::failures::{promised, promised_before};
use crate::replica::grace::{granted_ms, lag_ms, may_promise};
use crate::replica::request::{CommandCall, Granted, Receive, ReceiveOptions, Unclaimed};

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

    /// Answers a receive.
    pub(super) fn deliver(&mut self, receive: Receive, deliveries: Vec<Delivery>, entry: &Answering<'_>) {
        if deliveries.is_empty() {
            self.park(receive);
            return;
        }
        let now_ms = self.clock.now_ms(Instant::now());
        let are_nobodys = self.are_nobodys(&deliveries, entry.stamp_ms);
        let Receive { queue, options, reply, .. } = receive;
        if !may_promise(&self.shared.machine.read(), &deliveries, now_ms) {
            if are_nobodys {
                self.give_back(queue, deliveries.iter().map(|delivery| delivery.receipt).collect());
            }
            let _ = reply.send(Ok(Granted::default()));
            return;
        }
        for delivery in &deliveries {
            self.grace.answered(delivery.deadline_log_ms, lag_ms(delivery, now_ms));
        }
        let requests = self.shared.requests.clone();
        let unclaimed = are_nobodys.then_some(Unclaimed { requests, queue, options });
        if let Err(Ok(mut granted)) = reply.send(Ok(Granted::new(deliveries, unclaimed)))
            && let Some(unclaimed) = granted.claim()
        {
            // The poller has hung up: the messages must not wait for its leases to end.
            self.take_back(&unclaimed, granted.receipts(), entry.rest);
        }
    }

    /// Whether leases were granted just now, so that nobody has heard of them. A receive that is repeated is reminded of what it was
    /// granted before: the first answer may have arrived, and somebody be at work.
    fn are_nobodys(&mut self, deliveries: &[Delivery], stamp_ms: u64) -> bool {
        let is_new = |delivery: &Delivery| {
            granted_ms(delivery) >= stamp_ms && delivery.receipt.grant > self.granted_through
        };
        let are_new = deliveries.iter().all(is_new);
        let last = deliveries.iter().map(|delivery| delivery.receipt.grant).max().unwrap_or_default();
        self.granted_through = self.granted_through.max(last);
        if !are_new {
            self.reminded_through = self.reminded_through.max(last);
        }
        are_new
    }

    /// Takes back leases that were granted to somebody who has gone, unless another try of the same receive has them, or will.
    pub(super) fn take_back(&mut self, unclaimed: &Unclaimed, receipts: Vec<Receipt>, rest: &[Pending]) {
        let Unclaimed { queue, options, .. } = unclaimed;
        let is_reminded = |receipt: &Receipt| receipt.grant <= self.reminded_through;
        let was_asked_again = options.may_repeat() && receipts.iter().any(is_reminded);
        if !was_asked_again && !self.is_asked_again(*queue, options, rest) {
            self.give_back(*queue, receipts);
        }
    }

    /// Whether the same receive is on its way once more: it gets the same leases, which must then not be given back.
    fn is_asked_again(&self, queue: QueueId, options: &ReceiveOptions, rest: &[Pending]) -> bool {
        let later = self.in_flight.iter().flat_map(|entry| &entry.pending);
        let open = self.batch.iter().flat_map(|batch| &batch.pending);
        let is_same = |pending: &Pending| matches!(pending, Pending::Receive(other) if other.queue == queue && other.options.repeats(options));
        rest.iter().chain(later).chain(open).any(is_same)
    }

    fn give_back(&mut self, queue: QueueId, receipts: Vec<Receipt>) {
        self.add_own(&Command::GiveBack { queue, receipts });
    }
}
