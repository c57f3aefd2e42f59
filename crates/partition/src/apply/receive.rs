//! Granting leases.

use std::sync::Arc;

use crate::command::Command;
use crate::effects::EventKind;
use crate::headroom::version_of;
use crate::ids::{QueueId, Receipt};
use crate::limits::{ATTEMPT_RECEIPTS_MAX, ATTEMPT_WINDOW_MS, ATTEMPTS_MAX, LEASE_MS_MAX};
use crate::list;
use crate::message::{Order, holds};
use crate::notes::Notes;
use crate::partition::{At, Partition, owns};
use crate::reply::{Delivery, Refusal, Reply};
use crate::settings::Kind;
use crate::shard::Shard;
use crate::store::{Sent, Store};
use crate::suspects::NOBODY;
use crate::view::State;

/// What one receive may still take.
struct Budget {
    messages: u32,
    bytes: u64,
    lease_ms: u32,
    /// When it is received.
    wall_ms: u64,
    consumer: Arc<[u8]>,
    /// The version of the consumer, in `Usage::headroom`.
    version: u32,
    /// The consumer, in `Usage::suspects`.
    holder: u32,
}

impl Budget {
    /// Whether one more message fits. The first always does.
    fn allows(&self, shard: &Shard, store: &Store, slot: u32, taken: &[Delivery]) -> bool {
        let fits = taken.is_empty() || u64::from(store.messages[slot].len) <= self.bytes;
        fits && self.messages > 0 && shard.counters.leased < u64::from(shard.settings.in_flight_max)
    }
}

impl Partition {
    /// O(messages granted * log deadlines), whatever waits and whatever is in flight.
    pub(crate) fn receive(
        &mut self,
        command: &Command<'_>,
        at: At<'_>,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        let Command::Receive { queue, messages_max, bytes_max, lease_ms, attempt, consumer } = command else {
            unreachable!("execute hands over receives only");
        };
        let shard = self.shards.get_mut(queue).ok_or(Refusal::UnknownQueue)?;
        let now_ms = self.store.log_time_ms;
        let known = attempt.and_then(|attempt| self.attempts.get(*queue, attempt, now_ms));
        if let Some(receipts) = known.filter(|receipts| are_untouched(shard, &self.store, receipts)) {
            let again = receipts.iter().map(|receipt| grant_again(&mut self.store, receipt.slot, *lease_ms));
            return Ok(Reply::Received { deliveries: again.collect() });
        }
        let lease_ms = lease_ms.unwrap_or(shard.settings.lease_ms);
        let version = version_of(consumer).filter(|_| shard.has_ready());
        let version = version.map_or(0, |version| shard.headroom_of(&self.store).id_of(version, now_ms));
        let holder = shard.usage.suspects.as_mut().map_or(NOBODY, |suspects| {
            suspects.heard(consumer);
            suspects.holder_of(consumer)
        });
        let (messages, bytes, consumer) = (*messages_max, *bytes_max, Arc::from(*consumer));
        let wall_ms = at.wall_ms;
        let mut budget = Budget { messages, bytes, lease_ms, wall_ms, consumer, version, holder };
        let at_cap = shard.counters.leased >= u64::from(shard.settings.in_flight_max);
        let deliveries = match shard.settings.kind {
            _ if at_cap => Vec::new(),
            Kind::Standard => receive_standard(shard, &mut self.store, &mut budget, notes),
            Kind::Fifo => receive_fifo(shard, &mut self.store, &mut budget, notes),
        };
        if let Some(suspects) = &mut shard.usage.suspects {
            suspects.forget_idle(holder);
        }
        if at_cap && shard.settings.kind == Kind::Standard {
            return Ok(Reply::OverLimit);
        }
        if version > 0 || shard.usage.damping.is_some() {
            self.reindex(*queue);
        }
        if let Some(attempt) = attempt
            && !deliveries.is_empty()
        {
            self.remember_attempt(*queue, attempt, &deliveries);
        }
        Ok(Reply::Received { deliveries })
    }

    fn remember_attempt(&mut self, queue: QueueId, attempt: &[u8], deliveries: &[Delivery]) {
        let receipts = deliveries.iter().map(|delivery| delivery.receipt).collect();
        let until_ms = self.store.log_time_ms.saturating_add(ATTEMPT_WINDOW_MS);
        self.attempts.insert(queue, attempt, until_ms, receipts);
        while self.attempts.len() > ATTEMPTS_MAX || self.attempts.values() > ATTEMPT_RECEIPTS_MAX {
            self.attempts.forget_first();
        }
    }
}

/// Whether every lease of an earlier attempt is as it was granted.
fn are_untouched(shard: &Shard, store: &Store, receipts: &[Receipt]) -> bool {
    receipts.iter().all(|receipt| {
        let Some(message) = store.messages.get(receipt.slot) else { return false };
        let Some(side) = store.side_of(message) else { return false };
        let untouched = holds(message, side, receipt) && !side.extended;
        let ours = message.queue == shard.queue && owns(shard, message);
        untouched && ours && side.deadline_ms > store.log_time_ms
    })
}

/// The delivery of an earlier attempt: the same lease, which counts from now, and is as long as it is asked for now or was before.
/// Its end is bounded from the grant, as that of an extension is. O(log deadlines).
///
/// Source: `ReceiveMessage` in the Amazon SQS API reference: a retry of an attempt resets the visibility timeout.
fn grant_again(store: &mut Store, slot: u32, lease_ms: Option<u32>) -> Delivery {
    let now_ms = store.log_time_ms;
    let side = store.side_slot(slot);
    let record = &store.sides[side];
    let wanted_ms = now_ms.saturating_add(u64::from(lease_ms.unwrap_or(record.lease_ms)));
    let deadline_ms = wanted_ms.min(record.granted_ms.saturating_add(u64::from(LEASE_MS_MAX)));
    let lease_ms = u32::try_from(deadline_ms.saturating_sub(now_ms)).unwrap_or(LEASE_MS_MAX);
    store.move_lease(side, deadline_ms, lease_ms, false);
    delivery(store, slot, store.sent(&store.messages[slot]))
}

fn receive_standard(
    shard: &mut Shard,
    store: &mut Store,
    budget: &mut Budget,
    notes: &mut Notes,
) -> Vec<Delivery> {
    let mut taken = try_suspects(shard, store, budget, notes);
    if !taken.is_empty() {
        return taken;
    }
    while let Some(slot) = shard.usage.tenants.next(&shard.lanes, store)
        && budget.allows(shard, store, slot, &taken)
    {
        taken.push(grant(shard, store, slot, budget, notes));
        shard.turn_taken(store, slot);
    }
    taken
}

/// The next suspects and nobody else, as many as may be together; none while others are on trial.
fn try_suspects(
    shard: &mut Shard,
    store: &mut Store,
    budget: &mut Budget,
    notes: &mut Notes,
) -> Vec<Delivery> {
    let mut taken = Vec::new();
    let company = |store: &Store, slot| store.side(slot).map_or(0, |side| side.company);
    let Some(first) = shard.first_suspect() else { return taken };
    let together = company(store, first);
    while let Some(slot) = shard.first_suspect()
        && company(store, slot) == together
        && taken.len() < usize::from(together)
        && budget.allows(shard, store, slot, &taken)
    {
        taken.push(grant(shard, store, slot, budget, notes));
        shard.turn_taken(store, slot);
    }
    shard.begin_trial(store, &taken);
    taken
}

/// As many as possible of one group, in order, then of the next.
fn receive_fifo(
    shard: &mut Shard,
    store: &mut Store,
    budget: &mut Budget,
    notes: &mut Notes,
) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while let Some(group) = shard.usage.turns.front() {
        let before = taken.len();
        let mut following = store.groups[group].messages.front();
        while let Some(slot) = following
            && store.messages[slot].state == State::Ready
            && budget.allows(shard, store, slot, &taken)
        {
            following = list::next::<Order, _>(&store.messages, slot);
            taken.push(grant(shard, store, slot, budget, notes));
        }
        if taken.len() == before {
            break;
        }
        shard.refresh_group(store, group, notes);
    }
    taken
}

fn grant(
    shard: &mut Shard,
    store: &mut Store,
    slot: u32,
    budget: &mut Budget,
    notes: &mut Notes,
) -> Delivery {
    shard.leave_state(store, slot, notes);
    let sent = store.sent(&store.messages[slot]);
    let now_ms = store.log_time_ms;
    let grant = store.next_grant;
    store.next_grant += 1;
    let side = store.side_mut(slot);
    assert!(grant > side.grant, "grants grow");
    side.grant = grant;
    side.receive_count += 1;
    side.lease_ms = budget.lease_ms;
    side.granted_ms = now_ms;
    side.extended = false;
    side.version = budget.version;
    side.holder = budget.holder;
    side.company = 0;
    if side.first_received_wall_ms == 0 {
        // The clock may be behind the one by which the message was sent.
        side.first_received_wall_ms = budget.wall_ms.max(sent.wall_ms);
    }
    let (receive_count, lease_ms) = (side.receive_count, side.lease_ms);
    if receive_count == 1
        && let Some(damping) = &mut shard.usage.damping
    {
        damping.first_delivery(now_ms);
    }
    shard.note_holder(budget.holder);
    shard.enter_leased(store, slot, now_ms.saturating_add(u64::from(lease_ms)));
    budget.messages -= 1;
    budget.bytes = budget.bytes.saturating_sub(u64::from(store.messages[slot].len));
    shard.usage.totals.granted += 1;
    notes.event(shard.queue, store.messages[slot].sequence, || EventKind::Granted {
        grant,
        receive_count,
        lease_ms,
        consumer: Arc::clone(&budget.consumer),
    });
    delivery(store, slot, sent)
}

fn delivery(store: &Store, slot: u32, sent: Sent) -> Delivery {
    let side = store.side(slot).expect("a leased message has a side record");
    Delivery {
        receipt: store.receipt(slot),
        content: sent.content,
        receive_count: side.receive_count,
        sent_wall_ms: sent.wall_ms,
        first_received_wall_ms: side.first_received_wall_ms,
        deadline_log_ms: side.deadline_ms,
        lease_ms: side.lease_ms,
    }
}
