//! The node's metrics, read from the state machines it leads: counting costs a request nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use leasehold_catalogue::PartitionId;
use leasehold_partition::{Measure, Mood, QueueId, ShardView, Totals};
use metrics::{Label, counter, gauge};

use crate::core::Core;
use crate::headroom;
use crate::replica::{Replica, wall_ms};
use crate::telemetry::{self, Damping, Processing, QueueSample, names};

/// Shards that are looked at in one pass. With more of them, a look at all takes as many passes: the rest of the node shall not wait.
const SHARDS_MAX: usize = 2_000;
/// Shards that are looked at while the state machine of their partition stands still.
const SHARDS_TOGETHER: usize = 128;

/// What was seen of each shard, to count what happened since.
#[derive(Default)]
pub struct Numbers {
    /// In the last round.
    seen: HashMap<(PartitionId, QueueId), Seen>,
    led: Led,
    round: Round,
}

/// The partitions that were looked at in a round, with the term in which this node led each; none where it was more than one.
type Led = BTreeMap<PartitionId, Option<u64>>;

/// The totals of a shard. Those of one that was only sent to take the room of one number.
struct Seen {
    sent: u64,
    others: Option<Box<Totals>>,
}

impl Seen {
    fn of(totals: Totals) -> Self {
        let others = Totals { sent: 0, ..totals };
        Self { sent: totals.sent, others: (others != Totals::default()).then(|| Box::new(others)) }
    }

    fn totals(&self) -> Totals {
        Totals { sent: self.sent, ..self.others.as_deref().copied().unwrap_or_default() }
    }
}

/// A look at all shards that is under way.
#[derive(Default)]
struct Round {
    /// The shard that was looked at last.
    at: Option<(PartitionId, QueueId)>,
    seen: HashMap<(PartitionId, QueueId), Seen>,
    led: Led,
    sums: BTreeMap<QueueId, QueueSum>,
}

#[derive(Default)]
struct QueueSum {
    activity: u64,
    ready: u64,
    leased: u64,
    delayed: u64,
    oldest_sent_wall_ms: Option<u64>,
    floor_ms: u64,
    measure: Measure,
    damping: Option<Damping>,
}

impl Numbers {
    /// Publishes what this node leads at this moment.
    pub fn publish(&mut self, core: &Core) {
        let node = core.identity.name.as_str();
        let labels = || vec![Label::new(names::NODE, node.to_owned())];
        let replicas = core.router.replicas();
        let led = replicas.iter().filter_map(|replica| Some((replica, replica.group().term_led()?)));
        let mut led = led.collect::<Vec<_>>();
        led.sort_by_key(|(replica, _)| replica.id());
        gauge!(names::LEADERS, labels()).set(led.len() as f64);
        gauge!(names::PENDING_BYTES, labels()).set(core.pending_bytes.load(Ordering::Relaxed) as f64);
        let stats = core.log.stats();
        counter!(names::LOG_SYNCS, labels()).absolute(stats.batches);
        counter!(names::LOG_APPENDED_BYTES, labels()).absolute(stats.appended_bytes);
        let mut happened = Totals::default();
        let is_over = self.look(&led, &mut happened);
        count(node, &happened);
        if is_over {
            let round = std::mem::take(&mut self.round);
            (self.seen, self.led) = (round.seen, round.led);
            publish_queues(core, node, &round.sums);
        }
    }

    /// Looks at the next shards of the replicas, which are in order; true when all were looked at.
    fn look(&mut self, led: &[(&Arc<Replica>, u64)], happened: &mut Totals) -> bool {
        let mut left = SHARDS_MAX;
        for (replica, term) in led {
            let is_done = |(partition, _): (PartitionId, QueueId)| partition > replica.id();
            if self.round.at.is_some_and(is_done) {
                continue;
            }
            self.round.leads(replica.id(), *term);
            loop {
                if left == 0 {
                    return false;
                }
                let looked_at = self.look_at(replica, *term, left.min(SHARDS_TOGETHER), happened);
                if looked_at == 0 {
                    break;
                }
                left -= looked_at;
            }
        }
        true
    }

    /// Looks at the next shards of a partition; returns how many.
    fn look_at(&mut self, replica: &Replica, term: u64, shards_max: usize, happened: &mut Totals) -> usize {
        let of_this = self.round.at.filter(|(partition, _)| *partition == replica.id());
        let after = of_this.map_or(QueueId(0), |(_, queue)| queue);
        let state = replica.machine().read();
        let mut looked_at = 0;
        for queue in state.queues_after(after).take(shards_max) {
            looked_at += 1;
            let key = (replica.id(), queue);
            self.round.at = Some(key);
            let Some(shard) = state.shard(queue) else { continue };
            let before = self.before(key, term, shard.totals);
            let activity = add_since(happened, &before, &shard.totals);
            let sum = self.round.sums.entry(queue).or_default();
            sum.add(&shard, activity);
            sum.measure.add(&headroom::sum(&state.headroom(queue)));
            self.round.seen.insert(key, Seen::of(shard.totals));
        }
        looked_at
    }

    /// What was counted of a shard already. What happened before this node led was counted by the one that did; a shard that came
    /// while it led has begun with nothing.
    fn before(&self, key: (PartitionId, QueueId), term: u64, now: Totals) -> Totals {
        if self.led.get(&key.0) != Some(&Some(term)) {
            return now;
        }
        self.seen.get(&key).map(Seen::totals).unwrap_or_default()
    }
}

impl Round {
    /// Notes that a partition is looked at, or is still, while this node leads it in a term.
    fn leads(&mut self, partition: PartitionId, term: u64) {
        let led = self.led.entry(partition).or_insert(Some(term));
        if *led != Some(term) {
            *led = None;
        }
    }
}

impl QueueSum {
    fn add(&mut self, shard: &ShardView, activity: u64) {
        self.activity += activity;
        self.ready += shard.counters.ready;
        self.leased += shard.counters.leased;
        self.delayed += shard.counters.delayed;
        let oldest = [self.oldest_sent_wall_ms, shard.oldest_sent_wall_ms].into_iter().flatten().min();
        self.oldest_sent_wall_ms = oldest;
        self.floor_ms = u64::from(shard.settings.lease_ms);
        if let Some(damping) = shard.damping {
            let storms = u64::from(damping.mood == Mood::Storm);
            let of_shard = Damping { held: damping.held, storms };
            self.damping = Some(self.damping.unwrap_or_default().plus(of_shard));
        }
    }

    fn processing(&self, ceiling_ms: u64) -> Option<Processing> {
        let held = &self.measure.held;
        let lease_ms = headroom::lease_ms(self.floor_ms, ceiling_ms, &self.measure);
        (!held.is_empty()).then(|| Processing {
            p50_ms: held.quantile_ms(500),
            p99_ms: held.quantile_ms(990),
            p999_ms: held.quantile_ms(999),
            ratio_permille: headroom::ratio_permille(&self.measure, lease_ms),
        })
    }
}

/// Adds what lies between two looks at a shard; returns how much that was.
fn add_since(sum: &mut Totals, before: &Totals, now: &Totals) -> u64 {
    let mut activity = 0;
    let mut add = |sum: &mut u64, before: u64, now: u64| {
        let since = now.saturating_sub(before);
        *sum += since;
        activity += since;
    };
    add(&mut sum.sent, before.sent, now.sent);
    add(&mut sum.granted, before.granted, now.granted);
    add(&mut sum.acked, before.acked, now.acked);
    add(&mut sum.released, before.released, now.released);
    add(&mut sum.expired, before.expired, now.expired);
    add(&mut sum.dead, before.dead, now.dead);
    add(&mut sum.extended, before.extended, now.extended);
    add(&mut sum.late, before.late, now.late);
    add(&mut sum.last_tenth, before.last_tenth, now.last_tenth);
    add(&mut sum.held, before.held, now.held);
    add(&mut sum.spared, before.spared, now.spared);
    add(&mut sum.lost, before.lost, now.lost);
    activity
}

fn count(node: &str, happened: &Totals) {
    let counts = [
        (names::MESSAGES_SENT, happened.sent),
        (names::MESSAGES_RECEIVED, happened.granted),
        (names::MESSAGES_ACKED, happened.acked),
        (names::MESSAGES_RELEASED, happened.released),
        (names::MESSAGES_EXPIRED, happened.expired),
        (names::MESSAGES_DEAD_LETTERED, happened.dead),
        (names::LEASES_EXTENDED, happened.extended),
        (names::ACKS_LATE, happened.late),
        (names::ACKS_LAST_TENTH, happened.last_tenth),
        (names::REDELIVERIES_HELD, happened.held),
        (names::MESSAGES_SPARED, happened.spared),
        (names::LEASES_LOST, happened.lost),
    ];
    for (name, since) in counts {
        counter!(name, vec![Label::new(names::NODE, node.to_owned())]).increment(since);
    }
}

fn publish_queues(core: &Core, node: &str, sums: &BTreeMap<QueueId, QueueSum>) {
    let Ok(registry) = telemetry::metrics() else { return };
    let now_ms = wall_ms();
    let named = sums.iter().filter_map(|(queue, sum)| Some((core.view.queue_by_id(*queue)?, sum)));
    let named = named.collect::<Vec<_>>();
    registry.publish_queues(
        node,
        named.iter().map(|(info, sum)| QueueSample {
            activity: sum.activity,
            ready: sum.ready,
            leased: sum.leased,
            delayed: sum.delayed,
            oldest_age_ms: sum.oldest_sent_wall_ms.map_or(0, |sent| now_ms.saturating_sub(sent)),
            processing: sum.processing(info.adaptive_lease_ms_max()),
            damping: sum.damping,
            queue: info.name(),
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: PartitionId = PartitionId(3);
    const TERM: u64 = 5;

    fn sent(sent: u64) -> Totals {
        Totals { sent, ..Totals::default() }
    }

    #[test]
    fn a_shard_that_came_while_this_node_led_is_counted_from_its_beginning_and_no_other() {
        let (old, new) = ((PARTITION, QueueId(1)), (PARTITION, QueueId(2)));
        let mut numbers = Numbers::default();
        assert_eq!(numbers.before(old, TERM, sent(9)), sent(9), "nothing was looked at before");
        numbers.seen.insert(old, Seen::of(sent(9)));
        numbers.round.leads(PARTITION, TERM);
        numbers.led = std::mem::take(&mut numbers.round).led;
        assert_eq!(numbers.before(old, TERM, sent(12)), sent(9));
        assert_eq!(numbers.before(new, TERM, sent(4)), sent(0));
        let elsewhere = (PartitionId(4), QueueId(2));
        assert_eq!(numbers.before(elsewhere, TERM, sent(4)), sent(4), "it is led since a moment ago");
        // Another node may have led in between, and counted.
        for shard in [old, new] {
            assert_eq!(numbers.before(shard, TERM + 2, sent(20)), sent(20));
        }
    }

    #[test]
    fn a_round_in_two_terms_says_nothing() {
        let mut round = Round::default();
        for term in [TERM, TERM, TERM + 2, TERM] {
            round.leads(PARTITION, term);
        }
        assert_eq!(round.led, Led::from([(PARTITION, None)]));
    }
}
