//! The records of queues, each shared by the three tables in which it is looked up, and by whoever works with the queue: a change puts
//! another record in its place.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use crate::state::Queue;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    by_id: BTreeMap<u64, Arc<Queue>>,
    /// For lists.
    by_name: BTreeSet<Named>,
    /// By the hash of the name, and the id. Requests look here: to compare names would follow two pointers each time.
    by_hash: BTreeMap<(u64, u64), Arc<Queue>>,
}

impl Records {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Queue>> {
        self.by_id.values()
    }

    pub fn get(&self, id: u64) -> Option<&Arc<Queue>> {
        self.by_id.get(&id)
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Queue>> {
        let hash = hash_of(name);
        let hashed = self.by_hash.range((hash, 0)..=(hash, u64::MAX));
        hashed.map(|(_, queue)| queue).find(|queue| queue.name == name)
    }

    /// In the order of their names, from one on.
    pub fn names_from<'a>(&'a self, start: Bound<&str>) -> impl Iterator<Item = &'a Queue> + use<'a> {
        self.by_name.range::<str, _>((start, Bound::Unbounded)).map(|Named(queue)| queue.as_ref())
    }

    /// Records a queue, in the place of what was recorded under its id before. A queue keeps its name.
    pub fn put(&mut self, queue: Queue) {
        let queue = Arc::new(queue);
        self.by_name.replace(Named(queue.clone()));
        self.by_hash.insert((hash_of(&queue.name), queue.id), queue.clone());
        self.by_id.insert(queue.id, queue);
    }

    pub fn remove(&mut self, queue: &Queue) {
        self.by_name.remove(queue.name.as_str());
        self.by_hash.remove(&(hash_of(&queue.name), queue.id));
        self.by_id.remove(&queue.id);
    }

    /// Whether all tables have the same records.
    pub fn agree(&self) -> bool {
        let is_found = |queue: &Arc<Queue>| {
            let named = self.by_name.get(queue.name.as_str()).map(|Named(queue)| queue);
            [named, self.named(&queue.name)]
                .iter()
                .all(|found| found.is_some_and(|one| Arc::ptr_eq(one, queue)))
        };
        [self.by_name.len(), self.by_hash.len()] == [self.len(); 2] && self.iter().all(is_found)
    }
}

/// It never leaves the process that computes it.
fn hash_of(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// A record in the order of names: it has the only copy of its own.
#[derive(Debug, Clone)]
struct Named(Arc<Queue>);

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl Ord for Named {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Named {}
