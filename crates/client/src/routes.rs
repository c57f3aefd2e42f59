//! Where the shards of each queue are led, as far as this client knows. A wrong route costs a hop, never a result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use leasehold_proto::v1::{QueueKind, RoutesResponse};

/// How long sends and receives trust a route.
pub(crate) const FRESH: Duration = Duration::from_secs(30);
/// Looks for the routes of one queue are at least this far apart.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Beyond it everything is forgotten and learned anew. So many take some 30 MB; a queue that is not known costs a request of its own.
const QUEUES_MAX: usize = 200_000;

/// The nodes that lead shards of a queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaders {
    /// Each once; empty when unknown.
    pub(crate) addresses: Arc<[String]>,
    /// Every shard has a leader.
    pub(crate) is_complete: bool,
    /// `None` when unknown.
    pub(crate) facts: Option<Facts>,
}

/// What a consumer wants to know of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// When the node was asked for them.
    pub(crate) asked: Instant,
    /// Messages of a group are in order.
    pub(crate) is_fifo: bool,
    /// Of the queue; `None` when the node did not say.
    pub(crate) lease: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    queues: Mutex<HashMap<String, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    leaders: Leaders,
    looked: Instant,
    /// Since when it may be wrong.
    spoiled: Option<Instant>,
}

/// What the cache answers.
pub(crate) enum Look {
    Fresh(Leaders),
    /// The asker is to look and call [`RouteCache::learn`]; everybody else goes on with what is known.
    Due(Leaders),
}

impl RouteCache {
    /// `age_max` is how old an answer may be.
    pub(crate) fn look(&self, queue: &str, age_max: Duration) -> Look {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(known) = queues.get_mut(queue) {
            let age = now.duration_since(known.looked);
            if age < PAUSE_MIN || (age < age_max && known.spoiled.is_none()) {
                return Look::Fresh(known.leaders.clone());
            }
            known.looked = now;
            return Look::Due(known.leaders.clone());
        }
        if queues.len() >= QUEUES_MAX {
            queues.clear();
        }
        let known = Known { leaders: Leaders::default(), looked: now, spoiled: Some(now) };
        queues.insert(queue.to_owned(), known);
        Look::Due(Leaders::default())
    }

    /// Remembers an answer. Shards without a leader make the next look come soon, and so does what was spoiled since it was asked for.
    pub(crate) fn learn(&self, queue: &str, routes: &RoutesResponse, asked: Instant) -> Leaders {
        let mut addresses: Vec<_> = routes.shards.iter().map(|shard| shard.leader_address.clone()).collect();
        let is_complete = !addresses.is_empty() && !addresses.iter().any(String::is_empty);
        addresses.retain(|address| !address.is_empty());
        addresses.sort_unstable();
        addresses.dedup();
        let lease = (routes.lease_ms > 0).then(|| Duration::from_millis(routes.lease_ms));
        let facts = Some(Facts { asked, is_fifo: routes.kind() == QueueKind::Fifo, lease });
        let leaders = Leaders { addresses: addresses.into(), is_complete, facts };
        let looked = Instant::now();
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let since = queues.get(queue).and_then(|known| known.spoiled).filter(|spoiled| *spoiled > asked);
        let spoiled = since.or((!is_complete).then_some(looked));
        queues.insert(queue.to_owned(), Known { leaders: leaders.clone(), looked, spoiled });
        leaders
    }

    pub(crate) fn spoil(&self, queue: &str) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = queues.get_mut(queue) {
            known.spoiled = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1::ShardRoute;

    use super::*;

    fn is_due(cache: &RouteCache) -> bool {
        std::thread::sleep(PAUSE_MIN);
        matches!(cache.look("q", FRESH), Look::Due(_))
    }

    #[test]
    fn an_answer_mends_only_what_was_spoiled_before_it_was_asked_for() {
        let cache = RouteCache::default();
        let shards = vec![ShardRoute { partition: 0, leader_address: "a:1".to_owned() }];
        let routes = RoutesResponse { shards, ..RoutesResponse::default() };
        assert!(matches!(cache.look("q", FRESH), Look::Due(_)));
        cache.learn("q", &routes, Instant::now());
        assert!(!is_due(&cache));
        let asked = Instant::now();
        std::thread::sleep(Duration::from_millis(1));
        cache.spoil("q");
        cache.learn("q", &routes, asked);
        assert!(is_due(&cache));
        cache.learn("q", &routes, Instant::now());
        assert!(!is_due(&cache));
    }
}
