//! Executing commands on queues.

use std::collections::BTreeMap;

use crate::apply::name_fault;
use crate::command::{CreateQueue, DeleteQueue, PacePurge, SetQueue, TagQueue};
use crate::placement::choose_shards;
use crate::reply::{Refusal, Reply};
use crate::settings::{DeadLetter, QueueChange, QueueKind, QueueSettings, merge};
use crate::state::{Catalogue, Queue};

const TAGS_MAX: usize = 50;
const TAG_KEY_CHARACTERS_MAX: usize = 128;
const TAG_VALUE_CHARACTERS_MAX: usize = 256;
/// Receives after which a message goes to the dead-letter queue, where the user gave none.
const RECEIVES_MAX: u32 = 10;
/// Deleted queues that are remembered, and for how long.
pub const DELETED_MAX: usize = 1_024;
const DELETED_REMEMBERED_MS: u64 = 60_000;

impl Catalogue {
    pub(crate) fn create_queue(&mut self, log_index: u64, create: CreateQueue) -> Reply {
        match self.try_create(log_index, create) {
            Ok(reply) | Err(reply) => reply,
        }
    }

    fn try_create(&mut self, log_index: u64, create: CreateQueue) -> Result<Reply, Reply> {
        if let Some(detail) = name_fault("a queue's name", &create.name) {
            return Err(Reply::refused(Refusal::InvalidArgument, detail));
        }
        let mut settings = QueueSettings::standard();
        settings.kind = create.settings.kind.unwrap_or(settings.kind);
        let existing = self.queue_by_name(&create.name);
        let settings = self.changed(settings, &create.settings, &create.name)?;
        let shards = create.shards.max(1) as usize;
        if let Some(queue) = existing {
            if queue.settings == settings && queue.shards.len() == shards {
                return Ok(Reply::Queue { id: queue.id, created: false });
            }
            let detail = format!("{} exists with other settings: change it, or delete it first", create.name);
            return Err(Reply::refused(Refusal::QueueExists, detail));
        }
        let pause_over = |deleted: &u64| create.wall_ms >= deleted.saturating_add(create.pause_ms);
        if create.pause_ms > 0 && !self.deleted.get(&create.name).is_none_or(pause_over) {
            let detail = format!("{} was deleted less than {} ms ago: wait", create.name, create.pause_ms);
            return Err(Reply::refused(Refusal::TooSoon, detail));
        }
        if shards > self.partitions.len() {
            let detail = format!("shards is {shards}: the cluster has {} partitions", self.partitions.len());
            return Err(Reply::refused(Refusal::InvalidArgument, detail));
        }
        check_tags(&create.tags)?;
        let partitions = self.partitions.values().map(|partition| (partition.id, partition.shards));
        let shards = choose_shards(&create.name, shards, partitions);
        self.count_shards(&shards, 1);
        let id = self.next_queue;
        self.next_queue += 1;
        self.index_source(&create.name, settings.dead_letter);
        self.deleted.remove(&create.name);
        let queue = Queue {
            id,
            name: create.name,
            settings,
            shards,
            tags: create.tags,
            created_wall_ms: create.wall_ms,
            modified_wall_ms: create.wall_ms,
            revision: log_index,
            purged_wall_ms: 0,
        };
        self.queues.put(queue);
        Ok(Reply::Queue { id, created: true })
    }

    /// Changes settings and tags: all of it, or nothing.
    pub(crate) fn set_queue(&mut self, log_index: u64, set: SetQueue) -> Reply {
        let Some(queue) = self.queue_by_name(&set.name) else { return unknown(&set.name) };
        let mut queue = Queue::clone(queue);
        if set.if_revision != 0 && set.if_revision != queue.revision {
            let detail =
                format!("{} has changed since revision {}: read it again", set.name, set.if_revision);
            return Reply::refused(Refusal::Changed, detail);
        }
        let old_dead_letter = queue.settings.dead_letter;
        queue.settings = match self.changed(queue.settings, &set.change, &set.name) {
            Ok(settings) => settings,
            Err(reply) => return reply,
        };
        queue.tags.extend(set.tags);
        queue.tags.retain(|key, _| !set.tags_removed.contains(key));
        if let Err(reply) = check_tags(&queue.tags) {
            return reply;
        }
        self.forget_source(&set.name, old_dead_letter);
        self.index_source(&set.name, queue.settings.dead_letter);
        queue.modified_wall_ms = set.wall_ms;
        queue.revision = log_index;
        let id = queue.id;
        self.queues.put(queue);
        Reply::Queue { id, created: false }
    }

    pub(crate) fn tag_queue(&mut self, log_index: u64, tag: TagQueue) -> Reply {
        let TagQueue { name, set: tags, remove: tags_removed, wall_ms } = tag;
        let set = SetQueue { name, tags, tags_removed, wall_ms, ..SetQueue::default() };
        match self.set_queue(log_index, set) {
            Reply::Queue { .. } => Reply::Done,
            refused => refused,
        }
    }

    pub(crate) fn delete_queue(&mut self, delete: DeleteQueue) -> Reply {
        let Some(queue) = self.queue_by_name(&delete.name).cloned() else { return unknown(&delete.name) };
        if let Some(source) = self.dead_letter_sources.get(&queue.id).and_then(|sources| sources.first()) {
            let detail =
                format!("{} is the dead-letter queue of {source}: give that another one first", delete.name);
            return Reply::refused(Refusal::QueueInUse, detail);
        }
        self.queues.remove(&queue);
        self.count_shards(&queue.shards, -1);
        self.forget_source(&queue.name, queue.settings.dead_letter);
        if delete.remember_wall_ms > 0 {
            self.remember_deleted(delete.name, delete.remember_wall_ms);
        }
        Reply::Done
    }

    fn remember_deleted(&mut self, name: String, wall_ms: u64) {
        self.deleted.retain(|_, deleted| deleted.saturating_add(DELETED_REMEMBERED_MS) > wall_ms);
        if self.deleted.len() >= DELETED_MAX {
            let oldest = self.deleted.iter().min_by_key(|(_, deleted)| **deleted);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.deleted.remove(&oldest);
            }
        }
        self.deleted.insert(name, wall_ms);
    }

    /// Whether a purge may be now; the pause starts again then.
    pub(crate) fn pace_purge(&mut self, pace: &PacePurge) -> Reply {
        let Some(queue) = self.queue_by_name(&pace.name) else { return unknown(&pace.name) };
        // The request itself, whose answer was lost.
        if queue.purged_wall_ms == pace.wall_ms {
            return Reply::Done;
        }
        if queue.purged_wall_ms > 0 && pace.wall_ms < queue.purged_wall_ms.saturating_add(pace.pause_ms) {
            let detail = format!("{} was purged less than {} ms ago: wait", pace.name, pace.pause_ms);
            return Reply::refused(Refusal::TooSoon, detail);
        }
        let queue = Queue { purged_wall_ms: pace.wall_ms, ..Queue::clone(queue) };
        self.queues.put(queue);
        Reply::Done
    }

    /// Settings of the queue named `own` with a change over them, checked; the queue need not exist yet.
    fn changed(
        &self,
        mut settings: QueueSettings,
        change: &QueueChange,
        own: &str,
    ) -> Result<QueueSettings, Reply> {
        let invalid = |detail: String| Reply::refused(Refusal::InvalidArgument, detail);
        if change.kind.is_some_and(|kind| kind != settings.kind) {
            return Err(invalid("kind cannot change: make another queue".to_owned()));
        }
        if QueueKind::try_from(settings.kind).is_err() {
            return Err(invalid(format!("kind is {}: it can be 0 (standard) or 1 (FIFO)", settings.kind)));
        }
        merge(&mut settings, change).map_err(invalid)?;
        match change.dead_letter_queue.as_deref() {
            None => {}
            Some("") => settings.dead_letter = None,
            Some(name) => {
                let Some(target) = self.queue_by_name(name) else {
                    return Err(Reply::refused(
                        Refusal::UnknownQueue,
                        format!("dead_letter_queue {name} does not exist: create it first"),
                    ));
                };
                if target.name == own {
                    return Err(invalid("a queue cannot be its own dead_letter_queue".to_owned()));
                }
                if target.settings.kind != settings.kind {
                    return Err(invalid(format!(
                        "dead_letter_queue {name} must be of the same kind as the queue"
                    )));
                }
                // A queue that sends there already goes on: the rule is for those that want to.
                let sends_there =
                    self.dead_letter_sources.get(&target.id).is_some_and(|sources| sources.contains(own));
                let allow = target.settings.redrive_allow.as_ref();
                if !sends_there && !allow.is_none_or(|allow| allow.allows(own)) {
                    return Err(invalid(format!(
                        "dead_letter_queue {name} does not take the messages of {own} (redrive_allow)"
                    )));
                }
                let receives_max = settings.dead_letter.map_or(RECEIVES_MAX, |old| old.receives_max);
                settings.dead_letter = Some(DeadLetter { queue: target.id, receives_max });
            }
        }
        match (&mut settings.dead_letter, change.receives_max) {
            (Some(dead_letter), Some(receives_max)) => dead_letter.receives_max = receives_max,
            (None, Some(_)) => return Err(invalid("receives_max needs a dead_letter_queue".to_owned())),
            (_, None) => {}
        }
        Ok(settings)
    }

    fn count_shards(&mut self, shards: &[u32], change: i64) {
        for shard in shards {
            if let Some(partition) = self.partitions.get_mut(shard) {
                partition.shards = partition.shards.saturating_add_signed(change);
            }
        }
    }

    fn index_source(&mut self, source: &str, dead_letter: Option<DeadLetter>) {
        if let Some(dead_letter) = dead_letter {
            self.dead_letter_sources.entry(dead_letter.queue).or_default().insert(source.to_owned());
        }
    }

    fn forget_source(&mut self, source: &str, dead_letter: Option<DeadLetter>) {
        let Some(dead_letter) = dead_letter else { return };
        if let Some(sources) = self.dead_letter_sources.get_mut(&dead_letter.queue) {
            sources.remove(source);
            if sources.is_empty() {
                self.dead_letter_sources.remove(&dead_letter.queue);
            }
        }
    }
}

fn unknown(name: &str) -> Reply {
    Reply::refused(Refusal::UnknownQueue, format!("queue {name} does not exist"))
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Reply> {
    let invalid = |detail: String| Err(Reply::refused(Refusal::InvalidArgument, detail));
    if tags.len() > TAGS_MAX {
        return invalid(format!("a queue has at most {TAGS_MAX} tags: these are {}", tags.len()));
    }
    for (key, value) in tags {
        let (key_len, value_len) = (key.chars().count(), value.chars().count());
        if !(1..=TAG_KEY_CHARACTERS_MAX).contains(&key_len) || value_len > TAG_VALUE_CHARACTERS_MAX {
            return invalid(format!(
                "the tag {key:?} does not fit: a key has 1 to {TAG_KEY_CHARACTERS_MAX} characters, a value at most {TAG_VALUE_CHARACTERS_MAX}"
            ));
        }
    }
    Ok(())
}
