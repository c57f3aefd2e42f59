//! Sending the messages of a dead-letter queue back, through its own outbox.
//!
//! The leader paces the steps by `rate_per_s`; each takes the ready messages in order. A message stays that has no origin, when the
//! redrive goes to origins, and one that came back because its target exists no more. In a standard queue it moves behind the others, so
//! that each message ready at the start is looked at once. In a FIFO queue it keeps its place, others of its group are taken past it, and
//! a group of which nothing more can be taken moves behind the others. It ends after as many looks as there were messages: so many
//! moved, and the others were kept.

use crate::effects::EventKind;
use crate::ids::QueueId;
use crate::lanes::Lane;
use crate::limits::{REDRIVE_PASSED_MAX, REDRIVE_STEP_MAX};
use crate::notes::Notes;
use crate::partition::Partition;
use crate::reply::{RedriveProgress, RedriveState, Refusal, Reply};
use crate::settings::Kind;
use crate::shard::Shard;
use crate::store::Store;
use crate::usage::Redrive;
use crate::view::{OutboxReason, State};

impl Partition {
    /// O(log queues). Starting the same redrive again changes nothing.
    pub(crate) fn redrive_start(
        &mut self,
        queue: QueueId,
        target: Option<QueueId>,
        rate_per_s: u32,
        id: u64,
    ) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        if target == Some(queue) {
            return Err(Refusal::TargetIsSource);
        }
        match &shard.usage.redrive {
            Some(redrive) if redrive.progress.id == id => return Ok(Reply::Done),
            Some(redrive) if redrive.progress.state == RedriveState::Running => {
                return Err(Refusal::RedriveRunning);
            }
            _ => {}
        }
        let total = shard.counters.ready;
        let state = RedriveState::Running;
        let progress = RedriveProgress { id, target, rate_per_s, state, moved: 0, kept: 0, total };
        shard.usage.redrive = Some(Redrive { progress, remaining: total });
        self.reindex(queue);
        Ok(Reply::Done)
    }

    /// O(log queues).
    pub(crate) fn redrive_cancel(&mut self, queue: QueueId, id: u64) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let redrive = shard.usage.redrive.as_mut().filter(|redrive| redrive.progress.id == id);
        let redrive = redrive.ok_or(Refusal::RedriveUnknown)?;
        if redrive.progress.state == RedriveState::Running {
            redrive.progress.state = RedriveState::Cancelled;
        }
        self.reindex(queue);
        Ok(Reply::Done)
    }

    /// O(items * (log targets + messages passed)), of which there are `REDRIVE_PASSED_MAX` at most.
    pub(crate) fn redrive_step(
        &mut self,
        queue: QueueId,
        items_max: u32,
        notes: &mut Notes,
    ) -> Result<Reply, Refusal> {
        let shard = self.shards.get_mut(&queue).ok_or(Refusal::UnknownQueue)?;
        let running = |redrive: &Redrive| redrive.progress.state == RedriveState::Running;
        let mut redrive = match shard.usage.redrive.take() {
            Some(redrive) if running(&redrive) => redrive,
            other => {
                shard.usage.redrive = other;
                return Err(Refusal::RedriveUnknown);
            }
        };
        let moved_before = redrive.progress.moved;
        for _ in 0..items_max.min(REDRIVE_STEP_MAX) {
            if redrive.remaining == 0 {
                break;
            }
            let Some(look) = next_look(shard, &self.store, &redrive.progress) else { break };
            redrive.remaining -= 1;
            step(shard, &mut self.store, look, &mut redrive.progress, notes);
        }
        if redrive.remaining == 0 || shard.counters.ready == 0 {
            redrive.progress.state = RedriveState::Complete;
        }
        let progress = redrive.progress;
        shard.usage.redrive = Some(redrive);
        self.reindex(queue);
        let moved = u32::try_from(progress.moved - moved_before).expect("a step is bounded");
        Ok(Reply::RedriveStepped { moved, progress })
    }
}

/// A message that is looked at.
struct Look {
    slot: u32,
    /// Where it goes; nowhere when it stays.
    target: Option<QueueId>,
}

fn next_look(shard: &Shard, store: &Store, progress: &RedriveProgress) -> Option<Look> {
    match shard.settings.kind {
        Kind::Standard => look_at_suspects(shard, store, progress).or_else(|| {
            let slot = first_deliverable(shard, store)?;
            Some(Look { slot, target: target_of(shard, store, slot, progress) })
        }),
        Kind::Fifo => look_in_group(shard, store, shard.usage.turns.front()?, progress),
    }
}

/// One that is leased keeps its group out of the turns; what is behind a delayed one waits, as it does for receives.
fn look_in_group(shard: &Shard, store: &Store, group: u32, progress: &RedriveProgress) -> Option<Look> {
    let messages = &store.groups[group].messages;
    let movable = messages
        .iter(&store.messages)
        .take(REDRIVE_PASSED_MAX)
        .take_while(|slot| store.messages[*slot].state == State::Ready)
        .find_map(|slot| {
            let target = target_of(shard, store, slot, progress)?;
            (!came_back(store, slot, target)).then_some(Look { slot, target: Some(target) })
        });
    movable.or_else(|| Some(Look { slot: messages.front()?, target: None }))
}

/// A suspect that can be moved. Suspects go first, as with receives: behind the others they would wait for those that stay.
fn look_at_suspects(shard: &Shard, store: &Store, progress: &RedriveProgress) -> Option<Look> {
    let suspects = shard.usage.suspects.as_ref()?.waiting.iter(&store.messages).take(REDRIVE_PASSED_MAX);
    let mut targets = suspects.map(|slot| Look { slot, target: target_of(shard, store, slot, progress) });
    targets.find(|look| look.target.is_some())
}

fn first_deliverable(shard: &Shard, store: &Store) -> Option<u32> {
    match shard.usage.tenants.first() {
        Some(group) => store.groups[group].lanes.first_returned(),
        None => shard.lanes.first_returned().or_else(|| shard.usage.suspects.as_ref()?.waiting.front()),
    }
}

fn target_of(shard: &Shard, store: &Store, slot: u32, progress: &RedriveProgress) -> Option<QueueId> {
    let origin = store.side(slot).and_then(|side| side.origin).map(|origin| origin.queue);
    progress.target.or(origin).filter(|target| *target != shard.queue)
}

/// Whether a ready message was redriven there before: it is here again because that queue exists no more, and never will.
fn came_back(store: &Store, slot: u32, target: QueueId) -> bool {
    store.side(slot).is_some_and(|side| side.reason == OutboxReason::Redrive && side.target == target)
}

fn step(shard: &mut Shard, store: &mut Store, look: Look, progress: &mut RedriveProgress, notes: &mut Notes) {
    let Look { slot, target } = look;
    match target {
        Some(target) => {
            let sequence = store.messages[slot].sequence;
            shard.leave_state(store, slot, notes);
            let number = shard.enter_dead(store, slot, target, OutboxReason::Redrive);
            shard.refresh_group_of(store, slot, notes);
            shard.usage.totals.redriven += 1;
            progress.moved += 1;
            notes.outbox.insert(shard.queue);
            notes.event(shard.queue, sequence, || EventKind::Redriven { number, target });
        }
        None => {
            progress.kept += 1;
            move_behind(shard, store, slot, notes);
        }
    }
}

/// Puts a ready message, or its whole FIFO group, behind the others. Tenants are looked at first, so a message of a tenant
/// becomes one by itself: else it would be looked at again before all others were. A suspect keeps its place: it is one still.
fn move_behind(shard: &mut Shard, store: &mut Store, slot: u32, notes: &mut Notes) {
    match shard.settings.kind {
        Kind::Standard if store.messages[slot].lane == Lane::Suspect => {}
        Kind::Standard => {
            shard.leave_state(store, slot, notes);
            shard.leave_tenant(store, slot);
            shard.enter_ready(store, slot, Lane::Fresh, notes);
        }
        Kind::Fifo => {
            if let Some(group) = shard.usage.turns.pop_front(&mut store.groups) {
                shard.usage.turns.push_back(&mut store.groups, group);
            }
        }
    }
}
