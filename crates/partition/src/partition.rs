//! The state of a partition and the way one entry goes through it.
//!
//! ```text
//!   payload --> decode everything --> clocks --> for each request:  session? --> execute --> sweep a little
//!                     |                                                |
//!                     +-- an error changes nothing                     +-- a known one gets its first reply
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::batch::Batch;
use crate::command::{Command, Request};
use crate::effects::{Applied, ApplyError, Effects, History};
use crate::garbage::Garbage;
use crate::ids::{QueueId, Receipt};
use crate::limits::{
    MACHINE_VERSION_MAX, STAMP_STEP_MS_MAX, SWEEP_ENTRY_MAX, SWEEP_MAX, WALL_CATCH_UP_MAX, WALL_LEAD_MS_MAX,
    WALL_MS_MAX, WALL_STEP_MS_MAX,
};
use crate::message::Message;
use crate::notes::Notes;
use crate::reply::{Refusal, Reply};
use crate::session::{Recall, Sessions};
use crate::shard::Shard;
use crate::store::Store;
use crate::view::State;
use crate::window::{Sent, Window};
use crate::wire::{Span, wire_struct};

/// The queues of one partition.
#[derive(Debug)]
pub struct Partition {
    pub(crate) applied_index: u64,
    pub(crate) machine_version: u32,
    /// Catalogue revisions below this are refused, so that an old catalogue cannot bring a deleted queue back.
    pub(crate) revision_min: u64,
    pub(crate) store: Store,
    /// Each in a place of its own: the tree would leave half of its room empty.
    pub(crate) shards: BTreeMap<QueueId, Box<Shard>>,
    /// Every shard that holds an aged message, by the time its retention takes the first.
    pub(crate) retention: BTreeSet<(u64, QueueId)>,
    /// The shards whose outbox is not empty.
    pub(crate) outboxes: BTreeSet<QueueId>,
    /// The shards whose redrive is running.
    pub(crate) redrives: BTreeSet<QueueId>,
    pub(crate) dedup: Window<Sent>,
    pub(crate) attempts: Window<Vec<Receipt>>,
    pub(crate) sessions: Sessions,
    pub(crate) garbage: Garbage,
    /// Every shard with a headroom, by the time at which all of it is outdated, in log time.
    pub(crate) headrooms: BTreeSet<(u64, QueueId)>,
    /// Every shard that holds messages back, by the time at which it lets the first go, in log time.
    pub(crate) dampings: BTreeSet<(u64, QueueId)>,
}
wire_struct!(Partition {
    applied_index,
    machine_version,
    revision_min,
    store,
    shards,
    retention,
    outboxes,
    redrives,
    dedup,
    attempts,
    sessions,
    garbage,
} since 2 {
    headrooms,
} since 3 {
    dampings,
});

impl Default for Partition {
    fn default() -> Self {
        Self::new()
    }
}

/// The place of the command being executed.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub log_index: u64,
    /// When its messages are sent and received: [`Partition::wall_time_ms`] may be far behind after a quiet time.
    pub wall_ms: u64,
    /// Where the contents of its messages lie, in their order.
    pub spans: &'a [Span],
}

impl Partition {
    /// An empty partition, before its first entry.
    pub fn new() -> Self {
        Self {
            applied_index: 0,
            machine_version: 1,
            revision_min: 0,
            store: Store::new(),
            shards: BTreeMap::new(),
            retention: BTreeSet::new(),
            outboxes: BTreeSet::new(),
            redrives: BTreeSet::new(),
            dedup: Window::new(),
            attempts: Window::new(),
            sessions: Sessions::default(),
            garbage: Garbage::default(),
            headrooms: BTreeSet::new(),
            dampings: BTreeSet::new(),
        }
    }

    /// Executes one entry: `payload` is what `BatchBuilder::finish` gave. Indexes grow, gaps are fine.
    ///
    /// # Panics
    /// When the index or the log time falls: the log is not the one this state came from.
    pub fn apply(&mut self, log_index: u64, payload: &[u8], history: History) -> Result<Applied, ApplyError> {
        let batch = Batch::decode(payload)?;
        for (request, _) in &batch.requests {
            supported(&request.command)?;
        }
        assert!(log_index > self.applied_index, "entry {log_index} after {}", self.applied_index);
        self.applied_index = log_index;
        self.advance_clocks(batch.log_time_ms, batch.wall_time_ms);
        let wall_ms = self.sent_wall_ms(batch.wall_time_ms);
        let mut notes = Notes::new(history, self.store.log_time_ms, self.store.wall_time_ms);
        let mut sweep_left = SWEEP_ENTRY_MAX;
        let requests = batch.requests.iter();
        let replies = requests.map(|(request, spans)| {
            let reply = self.execute_once(request, At { log_index, wall_ms, spans }, &mut notes);
            sweep_left -= self.garbage.sweep(&mut self.store, sweep_left.min(SWEEP_MAX), &mut notes);
            reply
        });
        let replies = replies.collect();
        Ok(Applied { replies, effects: self.effects(notes) })
    }

    /// Moves log time to the stamp, by one bounded step at most. Wall time follows its stamp forward only, and no faster
    /// than `WALL_CATCH_UP_MAX` times log time: an absurd wall clock costs an hour of retention at most before somebody
    /// notices, and a true gap (a partition that was down for days) is caught up within minutes.
    fn advance_clocks(&mut self, log_time_ms: u64, wall_time_ms: u64) {
        let store = &mut self.store;
        let last_ms = store.log_time_ms;
        assert!(log_time_ms >= last_ms, "log time fell from {last_ms} to {log_time_ms}");
        store.log_time_ms = log_time_ms.min(last_ms.saturating_add(STAMP_STEP_MS_MAX));
        let wall_max = match store.wall_time_ms {
            0 => WALL_MS_MAX,
            last => {
                let progress = (store.log_time_ms - last_ms) * WALL_CATCH_UP_MAX;
                last.saturating_add(progress.min(WALL_STEP_MS_MAX))
            }
        };
        store.wall_time_ms = store.wall_time_ms.max(wall_time_ms.min(wall_max));
    }

    /// When the messages of an entry were sent. Wall time catches up slowly, so a message that was sent by it after a quiet week would
    /// be a week old within minutes, and over: it is sent by the stamp itself.
    fn sent_wall_ms(&self, stamp_ms: u64) -> u64 {
        let believed_ms = self.store.wall_time_ms;
        stamp_ms.clamp(believed_ms, believed_ms.saturating_add(WALL_LEAD_MS_MAX))
    }

    fn execute_once(&mut self, request: &Request<'_>, at: At<'_>, notes: &mut Notes) -> Reply {
        let Some(id) = request.id else { return self.execute(&request.command, at, notes) };
        match self.sessions.recall(id, self.store.log_time_ms) {
            Recall::Answered(reply) => reply,
            Recall::Forgotten => Reply::Refused { reason: Refusal::RequestForgotten },
            Recall::New => {
                let reply = self.execute(&request.command, at, notes);
                if !reply.is_empty_handed() {
                    self.sessions.remember(id, &reply);
                }
                reply
            }
        }
    }

    fn execute(&mut self, command: &Command<'_>, at: At<'_>, notes: &mut Notes) -> Reply {
        let result = match command {
            Command::Configure { queue, settings, revision } => {
                self.configure(*queue, *settings, *revision, notes)
            }
            Command::Delete { queue, revision } => self.delete(*queue, *revision, notes),
            Command::Purge { queue } => self.purge(*queue, notes),
            Command::Send { queue, messages } => self.send(*queue, messages, at, notes),
            Command::Transfer { queue, source, messages } => {
                self.transfer(*queue, *source, messages, at, notes)
            }
            Command::Receive { .. } => self.receive(command, at, notes),
            Command::Ack { queue, receipts } => self.ack(*queue, receipts, notes),
            Command::Extend { queue, items } => self.extend(*queue, items, notes),
            Command::Release { queue, items } => self.release(*queue, items, notes),
            Command::Reject { queue, items } => self.reject(*queue, items, notes),
            Command::SetRetryBudget { queue, budget, revision } => {
                self.set_retry_budget(*queue, *budget, *revision)
            }
            Command::GiveBack { queue, receipts } => self.give_back(*queue, receipts, notes),
            Command::Postpone { queue, items } => self.postpone(*queue, items, notes),
            Command::SetIsolation { queue, isolation, revision } => {
                self.set_isolation(*queue, *isolation, *revision, notes)
            }
            Command::Lost { queue, consumer } => self.lost(*queue, consumer),
            Command::Mark => Ok(Reply::Done),
            Command::Expire { leases_as_of_ms, items_max } => {
                Ok(self.expire(*leases_as_of_ms, *items_max, notes))
            }
            Command::TransferDone { queue, target, through_number } => {
                self.transfer_done(*queue, *target, *through_number, notes)
            }
            Command::TransferReturn { queue, target, items_max } => {
                self.transfer_return(*queue, *target, *items_max, notes)
            }
            Command::RedriveStart { queue, target, rate_per_s, id } => {
                self.redrive_start(*queue, *target, *rate_per_s, *id)
            }
            Command::RedriveCancel { queue, id } => self.redrive_cancel(*queue, *id),
            Command::RedriveStep { queue, items_max } => self.redrive_step(*queue, *items_max, notes),
            Command::SetVersion { version } => {
                self.machine_version = self.machine_version.max(*version);
                Ok(Reply::Done)
            }
        };
        result.unwrap_or_else(|reason| Reply::Refused { reason })
    }

    fn effects(&self, notes: Notes) -> Effects {
        Effects {
            ready: notes.ready.into_iter().filter(|queue| self.has_ready(*queue)).collect(),
            outbox: notes.outbox.into_iter().collect(),
            freed: notes.freed.into_iter().collect(),
            retained_bytes: notes.retained_bytes,
            history: notes.events,
        }
    }

    /// Whether a message still belongs to its shard, and is not what a purge or a deletion left.
    pub(crate) fn alive(&self, message: &Message) -> bool {
        self.shards.get(&message.queue).is_some_and(|shard| owns(shard, message))
    }

    /// Brings the indexes over all shards up to date after a shard changed. O(log queues).
    pub(crate) fn reindex(&mut self, queue: QueueId) {
        let Some(shard) = self.shards.get_mut(&queue) else { return };
        let retention_ms = shard.settings.retention_ms;
        let sent = shard.age.front().map(|slot| self.store.sent_wall_ms(&self.store.messages[slot]));
        let due_ms = sent.map(|sent_ms| sent_ms.saturating_add(retention_ms));
        move_in(&mut self.retention, queue, &mut shard.retention_due_ms, due_ms);
        if let Some(usage) = shard.usage.touched() {
            let outdated_ms = usage.headroom.as_ref().map(|headroom| headroom.outdated_ms());
            move_in(&mut self.headrooms, queue, &mut usage.headroom_due_ms, outdated_ms);
            let held_ms = usage.damping.as_ref().and_then(|damping| damping.due_ms());
            move_in(&mut self.dampings, queue, &mut usage.damping_due_ms, held_ms);
        }
        set_membership(&mut self.outboxes, queue, !shard.usage.outboxes.is_empty());
        set_membership(&mut self.redrives, queue, shard.redrive_is_running());
    }

    /// Takes a deleted shard out of the indexes over all shards. O(log queues).
    pub(crate) fn unindex(&mut self, shard: &Shard) {
        if let Some(due_ms) = shard.retention_due_ms {
            self.retention.remove(&(due_ms, shard.queue));
        }
        if let Some(due_ms) = shard.usage.headroom_due_ms {
            self.headrooms.remove(&(due_ms, shard.queue));
        }
        if let Some(due_ms) = shard.usage.damping_due_ms {
            self.dampings.remove(&(due_ms, shard.queue));
        }
        self.outboxes.remove(&shard.queue);
        self.redrives.remove(&shard.queue);
    }
}

/// Whether a message of this queue is this shard's.
pub(crate) fn owns(shard: &Shard, message: &Message) -> bool {
    let first = match message.state {
        State::Dead => shard.created_sequence,
        _ => shard.purged_sequence,
    };
    message.sequence >= first
}

/// Moves a queue to its new place in an index by time.
fn move_in(
    index: &mut BTreeSet<(u64, QueueId)>,
    queue: QueueId,
    place: &mut Option<u64>,
    due_ms: Option<u64>,
) {
    let old_ms = std::mem::replace(place, due_ms);
    if old_ms != due_ms {
        if let Some(old_ms) = old_ms {
            index.remove(&(old_ms, queue));
        }
        index.extend(due_ms.map(|due_ms| (due_ms, queue)));
    }
}

fn set_membership(set: &mut BTreeSet<QueueId>, queue: QueueId, belongs: bool) {
    if belongs {
        set.insert(queue);
    } else {
        set.remove(&queue);
    }
}

fn supported(command: &Command<'_>) -> Result<(), ApplyError> {
    match command {
        Command::SetVersion { version } if *version > MACHINE_VERSION_MAX => {
            Err(ApplyError::UnsupportedVersion(*version))
        }
        _ => Ok(()),
    }
}
