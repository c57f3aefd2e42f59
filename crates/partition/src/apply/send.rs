//! Messages that come in: sends, and transfers from other queues' outboxes.

use crate::arena::NONE;
use crate::content::{NewMessage, TransferMessage};
use crate::effects::EventKind;
use crate::ids::{QueueId, Source};
use crate::lanes::Lane;
use crate::list::Links;
use crate::message::{Aged, Message};
use crate::notes::Notes;
use crate::partition::{At, Partition};
use crate::reply::{Refusal, Reply, SendOutcome};
use crate::settings::Kind;
use crate::shard::Shard;
use crate::store::Store;
use crate::view::State;
use crate::window::Sent;
use crate::wire::Span;

impl Partition {
    /// O(messages * log(ids remembered + groups + deadlines)).
    pub(crate) fn send(
        &mut self,
        queue: QueueId,
        messages: &[NewMessage<'_>],
        at: At<'_>,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        assert_eq!(messages.len(), at.spans.len(), "every message has its content");
        if !self.shards.contains_key(&queue) {
            return Err(Refusal::UnknownQueue);
        }
        let numbered = messages.iter().zip(at.spans);
        let outcomes = numbered.map(|(message, span)| {
            let sent = self.send_one(queue, message, at, *span, notes);
            sent.unwrap_or_else(|reason| SendOutcome::Refused { reason })
        });
        let outcomes = outcomes.collect();
        self.reindex(queue);
        Ok(Reply::Sent { outcomes })
    }

    fn send_one(
        &mut self,
        queue: QueueId,
        message: &NewMessage<'_>,
        at: At<'_>,
        span: Span,
        notes: &mut Notes,
    ) -> Result<SendOutcome, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        allowed(shard, message)?;
        let now_ms = self.store.log_time_ms;
        let dedup_id = message.content.dedup_id.filter(|_| shard.settings.dedup_window_ms > 0);
        if let Some(first) = dedup_id.and_then(|id| self.dedup.get(queue, id, now_ms))
            && first.sequence >= shard.created_sequence
        {
            shard.usage.totals.duplicates += 1;
            notes.event(queue, first.sequence, || EventKind::Duplicate);
            return Ok(SendOutcome::Duplicate { sequence: first.sequence });
        }
        has_room(shard, span)?;
        let delay_ms = message.delay_ms.unwrap_or(shard.settings.delay_ms);
        let group = message.content.group.unwrap_or_default();
        let slot = add(shard, &mut self.store, at, span, group, notes);
        arm_expiry(&mut self.store, slot, message.expiry_ms, at);
        start(shard, &mut self.store, slot, delay_ms, notes);
        let key = self.store.messages[slot].key(slot);
        if let Some(id) = dedup_id {
            let until_ms = now_ms.saturating_add(shard.settings.dedup_window_ms);
            self.dedup.insert(queue, id, until_ms, Sent { sequence: key.sequence });
        }
        shard.sent += 1;
        notes.event(queue, key.sequence, || EventKind::Sent);
        Ok(SendOutcome::Sent { key })
    }

    /// Adds what has not arrived yet, up to the first message without room. A transfer has its own exactness, by number, so
    /// deduplication ids are neither asked nor remembered; the queue's delay does not apply; and in a FIFO queue the
    /// messages without a group share the one with the empty name. O(messages * log(sources + groups + deadlines)).
    pub(crate) fn transfer(
        &mut self,
        queue: QueueId,
        source: Source,
        messages: &[TransferMessage<'_>],
        at: At<'_>,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        assert_eq!(messages.len(), at.spans.len(), "every message has its content");
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let known = shard.usage.arrived.get(&source).copied().unwrap_or(0);
        let (mut through_number, mut refused) = (known, None);
        let numbered = messages.iter().zip(at.spans);
        for (item, span) in numbered.filter(|(item, _)| item.number > known) {
            if let Err(reason) = has_room(shard, *span) {
                refused = Some(reason);
                break;
            }
            arrive(shard, &mut self.store, at, *span, &item.message, notes);
            through_number = item.number;
        }
        if through_number > 0 {
            shard.usage.arrived.insert(source, through_number);
        }
        self.reindex(queue);
        Ok(Reply::Transferred { through_number, refused })
    }
}

fn arrive(
    shard: &mut Shard,
    store: &mut Store,
    at: At<'_>,
    span: Span,
    message: &NewMessage<'_>,
    notes: &mut Notes,
) {
    let group = message.content.group.unwrap_or_default();
    let slot = add(shard, store, at, span, group, notes);
    if message.content.origin.is_some() {
        store.side_mut(slot).origin = message.content.origin;
    }
    arm_expiry(store, slot, message.expiry_ms, at);
    start(shard, store, slot, message.delay_ms.unwrap_or(0), notes);
    shard.usage.totals.arrived += 1;
    notes.event(shard.queue, store.messages[slot].sequence, || EventKind::Arrived);
}

fn allowed(shard: &Shard, message: &NewMessage<'_>) -> Result<(), Refusal> {
    match shard.settings.kind {
        Kind::Standard => Ok(()),
        Kind::Fifo if message.content.group.is_none() => Err(Refusal::GroupRequired),
        Kind::Fifo if message.delay_ms.is_some_and(|delay_ms| delay_ms > 0) => Err(Refusal::DelayNotAllowed),
        Kind::Fifo => Ok(()),
    }
}

fn has_room(shard: &Shard, span: Span) -> Result<(), Refusal> {
    let settings = &shard.settings;
    let too_long = settings.length_max > 0 && shard.length() >= settings.length_max;
    let bytes = shard.counters.bytes.saturating_add(u64::from(span.len));
    let too_large = settings.bytes_max > 0 && bytes > settings.bytes_max;
    if too_long || too_large { Err(Refusal::QueueFull) } else { Ok(()) }
}

/// Makes a message's record, in no state's list yet.
fn add(shard: &mut Shard, store: &mut Store, at: At<'_>, span: Span, group: &[u8], notes: &mut Notes) -> u32 {
    let sequence = store.next_sequence;
    store.next_sequence += 1;
    let slot = store.messages.insert(Message {
        sequence,
        queue: shard.queue,
        offset: span.offset,
        len: span.len,
        entry: store.entries.open(at.log_index, at.wall_ms, sequence),
        order: Links::OFF,
        age: Links::OFF,
        sibling: Links::OFF,
        group: NONE,
        side: NONE,
        state: State::Ready,
        aged: Aged::Due,
        lane: Lane::Fresh,
    });
    store.entries.attach(&mut store.messages, slot);
    shard.age.push_back(&mut store.messages, slot);
    shard.counters.bytes += u64::from(span.len);
    notes.retained_bytes += u64::from(span.len);
    // In a standard queue a message without a group is a tenant by itself, and needs no record of it.
    if shard.settings.kind == Kind::Fifo || !group.is_empty() {
        shard.join_group(store, slot, group);
    }
    if shard.settings.kind == Kind::Fifo {
        let group = store.messages[slot].group;
        store.groups[group].messages.push_back(&mut store.messages, slot);
    }
    slot
}

/// A time to live of its own begins when the message is sent.
fn arm_expiry(store: &mut Store, slot: u32, expiry_ms: Option<u64>, at: At<'_>) {
    if let Some(expiry_ms) = expiry_ms {
        store.arm_expiry(slot, at.wall_ms.saturating_add(expiry_ms).max(1));
    }
}

/// Puts a new message into its first state.
fn start(shard: &mut Shard, store: &mut Store, slot: u32, delay_ms: u32, notes: &mut Notes) {
    if delay_ms > 0 {
        shard.enter_delayed(store, slot, Lane::Fresh, delay_ms);
    } else {
        shard.enter_ready(store, slot, Lane::Fresh, notes);
        store.messages.fold(store.messages[slot].age.prev);
    }
    shard.refresh_group_of(store, slot, notes);
}
