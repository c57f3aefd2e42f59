//! The node's metrics, read from the state machines it leads: counting costs a request nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use leasehold_catalogue::PartitionId;
use leasehold_partition::{Measure, Mood, QueueId, ShardView, Totals};
use metrics::{Label, counter, gauge};

use crate::core::Core;
use crate::headroom;
use crate::raft::Role;
use crate::replica::wall_ms;
use crate::telemetry::{self, Damping, Processing, QueueSample, names};

/// What was seen of each shard the last time, to count what happened since.
#[derive(Default)]
pub struct Numbers {
    seen: HashMap<(PartitionId, QueueId), Totals>,
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
        let led = replicas.iter().filter(|replica| matches!(*replica.role().borrow(), Role::Leader { .. }));
        let led = led.collect::<Vec<_>>();
        gauge!(names::LEADERS, labels()).set(led.len() as f64);
        gauge!(names::PENDING_BYTES, labels()).set(core.pending_bytes.load(Ordering::Relaxed) as f64);
        let stats = core.log.stats();
        counter!(names::LOG_SYNCS, labels()).absolute(stats.batches);
        counter!(names::LOG_APPENDED_BYTES, labels()).absolute(stats.appended_bytes);
        let mut sums: BTreeMap<QueueId, QueueSum> = BTreeMap::new();
        let mut seen = HashMap::new();
        let mut happened = Totals::default();
        for replica in led {
            let state = replica.machine().read();
            for queue in state.queues() {
                let Some(shard) = state.shard(queue) else { continue };
                let key = (replica.id(), queue);
                // What happened before this node led was counted by the one that did.
                let before = self.seen.get(&key).copied().unwrap_or(shard.totals);
                let activity = add_since(&mut happened, &before, &shard.totals);
                let sum = sums.entry(queue).or_default();
                sum.add(&shard, activity);
                sum.measure.add(&headroom::sum(&state.headroom(queue)));
                seen.insert(key, shard.totals);
            }
        }
        self.seen = seen;
        count(node, &happened);
        publish_queues(core, node, &sums);
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
            processing: sum.processing(info.adaptive_lease_ms_max),
            damping: sum.damping,
            queue: &info.name,
        }),
    );
}
