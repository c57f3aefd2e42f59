//! A copy of a partition that begins another life, in a cluster that was restored from a backup.
//!
//! ```text
//!   first life   ---- copy ---- 101 102 103 ...        sequences and grants that the copy does not know of
//!   second life          \_____________________ 2^40 + 101 ...    never one of them again
//! ```
//!
//! What was given out after the copy was made is outside: in records of effects, in the stores that compare fencing tokens, and, for
//! numbers of the outbox, in what other partitions have seen of them. A second message under the same sequence would be taken for the
//! first, a second grant under the same number for one that is over, and a dead letter for one that has arrived.

use crate::effects::History;
use crate::ids::{ContentRef, QueueId};
use crate::limits::LIFE_GAP;
use crate::notes::Notes;
use crate::partition::Partition;

impl Partition {
    /// Makes a restored copy ready for its second life. `has_content` says whether a content came with the copy: it was taken while
    /// the first life went on, and a message whose content was gone by then had been settled or had expired, so it goes here too,
    /// wherever it is in a run. Returns how many went. O(messages * log deadlines).
    pub fn begin_again(&mut self, has_content: impl Fn(ContentRef) -> bool) -> u64 {
        let messages = self.store.messages.iter().filter(|(_, message)| self.alive(message));
        let gone = messages.filter(|(_, message)| !has_content(self.store.content(message)));
        let gone = gone.map(|(slot, message)| (slot, message.queue)).collect::<Vec<_>>();
        if !gone.is_empty() {
            self.store.messages.unfold_all();
            self.leave_out(&gone);
            self.store.messages.fold_all();
        }
        self.store.next_sequence = self.store.next_sequence.saturating_add(LIFE_GAP);
        self.store.next_grant = self.store.next_grant.saturating_add(LIFE_GAP);
        self.store.next_number = self.store.next_number.saturating_add(LIFE_GAP);
        gone.len() as u64
    }

    fn leave_out(&mut self, gone: &[(u32, QueueId)]) {
        // Nobody waits for anything yet, and the log is told of everything that lives when the copy is installed.
        let mut notes = Notes::new(History::Skip, self.store.log_time_ms, self.store.wall_time_ms);
        for (slot, queue) in gone {
            if let Some(shard) = self.shards.get_mut(queue) {
                shard.remove(&mut self.store, *slot, &mut notes);
            }
            self.reindex(*queue);
        }
    }

    /// Messages of all queues, in any state, the dead included. O(queues).
    pub fn message_count(&self) -> u64 {
        self.shards.values().map(|shard| shard.length() + shard.counters.dead).sum()
    }
}
