//! What a node does once a second: snapshots that let the log be purged, contents of snapshots that were not installed, shards that are
//! not what the catalogue says, and numbers for the operator.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use leasehold_catalogue::{self as catalogue, Catalogue, PartitionId};
use leasehold_partition::{Command, QueueId, Reply};
use leasehold_raft_log::Log;
use tokio::time::{Instant, timeout};

use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::failure::Failure;
use crate::give_way::give_way;
use crate::limits::{
    LEADER_WAIT_MS_MAX, SNAPSHOT_APPLIED_BYTES_MIN, SNAPSHOT_LOG_FACTOR, SNAPSHOTS_TOGETHER_BYTES_MAX,
};
use crate::numbers::Numbers;
use crate::raft::{Group, GroupId};
use crate::replica::{CommandCall, QueueSource as _, Replica, Request, WantedShard, group_of, refusal};

const INTERVAL: Duration = Duration::from_secs(1);
/// How long the log may become while a snapshot is sent, which the next one would make useless.
const SENDING_LOG_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// How long a group that has begun a snapshot is left to it. One that met a full disk after all would meet it again at once.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// About what a queue takes of the catalogue's snapshot.
const CATALOGUE_QUEUE_BYTES: u64 = 1024;
/// Shards of one partition that are removed or configured in one pass.
const SWEPT_MAX: usize = 64;
/// Shards that are looked at while the state machine of their partition stands still.
const SHARDS_TOGETHER: usize = 128;

/// Works until the node stops.
pub async fn run(core: Arc<Core>) {
    let mut swept = BTreeMap::new();
    let mut numbers = Numbers::default();
    let mut snapshots = Snapshots::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        snapshots.take(&core).await;
        for replica in core.router.replicas() {
            replica.group().free_arrivals().await;
        }
        sweep(&core, &mut swept).await;
        numbers.publish(&core);
    }
}

/// The snapshots of this node's replicas.
#[derive(Default)]
struct Snapshots {
    /// Up to where each group had applied when it began its last one, and when that was.
    begun: HashMap<GroupId, (u64, Instant)>,
    /// The groups whose snapshots do not fit on the disk, which was said.
    without_room: HashSet<GroupId>,
    /// The replica that is looked at first.
    turn: usize,
}

impl Snapshots {
    /// Begins those that are due; what would be too much at once is due again the next time.
    async fn take(&mut self, core: &Core) {
        let replicas = core.router.replicas();
        let weight_bytes =
            replicas.iter().map(|replica| replica.machine().snapshot_weight_bytes()).sum::<u64>();
        let wanted = core.log.snapshot_wanted(weight_bytes.saturating_mul(SNAPSHOT_LOG_FACTOR));
        let urgent = core.log.snapshot_wanted(SENDING_LOG_BYTES_MAX);
        let has_room = !core.log.disk_is_low();
        // A replica that is sent a snapshot under load would have to be sent the next one, again and again.
        let waits = |group: &Group| group.sends_snapshot() && has_room && !urgent.contains(&group.id());
        let mut begun_weight_bytes = 0;
        for at in (self.turn..).take(replicas.len()).map(|at| at % replicas.len()) {
            let replica = &replicas[at];
            self.turn = at;
            if begun_weight_bytes > SNAPSHOTS_TOGETHER_BYTES_MAX {
                break;
            }
            if waits(replica.group()) {
                continue;
            }
            let len_bytes = || replica.machine().read().len_bytes_about() as u64;
            let has_begun = if wanted.contains(&group_of(replica.id())) {
                self.make_room(&core.log, replica.group(), len_bytes()).await
            } else if replica.machine().wants_snapshot(SNAPSHOT_APPLIED_BYTES_MIN) {
                self.begin(&core.log, replica.group(), len_bytes()).await
            } else {
                false
            };
            if has_begun {
                begun_weight_bytes += replica.machine().snapshot_weight_bytes();
            }
        }
        if wanted.contains(&CATALOGUE_GROUP) && !waits(&core.catalogue.group) {
            let queues = core.view.look(|catalogue| catalogue.queues().len() as u64);
            self.make_room(&core.log, &core.catalogue.group, queues * CATALOGUE_QUEUE_BYTES).await;
        }
    }

    /// Takes a snapshot so that the log can be purged; a group that has one and has not moved since gives up its last entries too. True
    /// when one was begun.
    async fn make_room(&mut self, log: &Log, group: &Group, len_bytes: u64) -> bool {
        let (applied, _) = group.progress();
        let has_rested = self.begun.get(&group.id()).is_some_and(|(through, _)| *through == applied);
        if has_rested && group.snapshot_index() >= Some(applied) {
            group.purge_through(applied).await;
            return false;
        }
        self.begin(log, group, len_bytes).await
    }

    /// Begins a snapshot, if it fits on the disk and none is under way.
    async fn begin(&mut self, log: &Log, group: &Group, len_bytes: u64) -> bool {
        let is_under_way = |(through, since): &(u64, Instant)| {
            group.snapshot_index() < Some(*through) && since.elapsed() < SNAPSHOT_PATIENCE
        };
        if self.begun.get(&group.id()).is_some_and(is_under_way) || !self.fits(log, group.id(), len_bytes) {
            return false;
        }
        let (applied, _) = group.progress();
        self.begun.insert(group.id(), (applied, Instant::now()));
        group.take_snapshot().await;
        true
    }

    /// Whether a snapshot of a group fits on the disk. That it does not is said once until it does.
    fn fits(&mut self, log: &Log, group: GroupId, len_bytes: u64) -> bool {
        if log.has_room_for_snapshot(len_bytes) {
            self.without_room.remove(&group);
            return true;
        }
        if self.without_room.insert(group) {
            let group = group.0;
            tracing::warn!(
                group,
                len_bytes,
                "a snapshot does not fit on the disk: the log keeps its entries"
            );
        }
        false
    }
}

/// Up to where the shards of a partition were seen to be what the catalogue says, while this node led it in one term. Who did not lead
/// has seen nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Swept {
    term: u64,
    revision: u64,
}

/// Brings the shards of the partitions that are led here to where the catalogue is: those of deleted queues are removed, and those
/// whose queue has changed are configured, for whoever made the change may have ended half-way.
async fn sweep(core: &Core, swept: &mut BTreeMap<PartitionId, Swept>) {
    let revision = core.view.revision();
    let led = core.router.replicas().into_iter().filter_map(|replica| {
        let term = replica.group().term_led()?;
        Some((replica, term))
    });
    let passes = led.map(|(replica, term)| {
        let last = swept.get(&replica.id()).filter(|last| last.term == term);
        let after = last.map_or(0, |last| last.revision);
        async move {
            let is_clean = after == revision || sweep_partition(core, &replica, after).await;
            (replica.id(), Swept { term, revision: if is_clean { revision } else { after } })
        }
    });
    *swept = join_all(passes).await.into_iter().collect();
}

/// The same for one partition, as far as the catalogue has changed after a revision; true when there was nothing to do.
async fn sweep_partition(core: &Core, replica: &Replica, after: u64) -> bool {
    let mut last = QueueId(0);
    let mut is_clean = true;
    let mut left = SWEPT_MAX;
    loop {
        let queues = replica.machine().read().queues_after(last).take(SHARDS_TOGETHER).collect::<Vec<_>>();
        let Some(at) = queues.last() else { return is_clean };
        last = *at;
        for (queue, commands) in due(core, replica, &queues, after) {
            is_clean = false;
            // A partition that does not answer must not hold up what the others need.
            if left == 0 || !execute(replica, queue, &commands).await {
                return false;
            }
            left -= 1;
        }
        give_way().await;
    }
}

/// What has to be done to shards whose queue is gone, or has changed after a revision and was not configured since.
fn due(
    core: &Core,
    replica: &Replica,
    queues: &[QueueId],
    after: u64,
) -> Vec<(QueueId, Vec<Command<'static>>)> {
    let (gone, changed, revision) = core.view.look(|catalogue| {
        let gone = queues.iter().copied().filter(|queue| is_gone(catalogue, *queue));
        let changed = queues.iter().copied().filter(|queue| has_changed(catalogue, *queue, after));
        (gone.collect::<Vec<_>>(), changed.collect::<Vec<_>>(), catalogue.revision())
    });
    let wanted = |queue| Some((queue, core.view.shard_of(queue, replica.id())?));
    let wanted = changed.into_iter().filter_map(wanted).collect::<Vec<_>>();
    let mut due = Vec::new();
    due.extend(gone.into_iter().map(|queue| (queue, vec![Command::Delete { queue, revision }])));
    if !wanted.is_empty() {
        let state = replica.machine().read();
        let is_older = |(queue, wanted): &(QueueId, WantedShard)| {
            state.shard(*queue).is_some_and(|shard| shard.revision < wanted.changed)
        };
        let older = wanted.into_iter().filter(is_older);
        due.extend(older.map(|(queue, wanted)| (queue, wanted.commands(queue))));
    }
    due
}

fn is_gone(catalogue: &Catalogue, queue: QueueId) -> bool {
    let id = catalogue::QueueId(queue.0);
    catalogue.has_given_out(id) && catalogue.queue(id).is_none()
}

fn has_changed(catalogue: &Catalogue, queue: QueueId, after: u64) -> bool {
    catalogue.queue(catalogue::QueueId(queue.0)).is_some_and(|queue| queue.revision > after)
}

/// Whether the replica, which leads, has executed commands for a shard. They are not brought to another leader, whose copy of the
/// catalogue may be another one.
async fn execute(replica: &Replica, queue: QueueId, commands: &[Command<'static>]) -> bool {
    let executing = async {
        for command in commands {
            let mut bytes = Vec::new();
            command.encode_into(&mut bytes);
            let call = CommandCall { queue, command: bytes.into(), promised_leases_ms: Vec::new() };
            let asked = replica.ask(|reply| Request::Command { call, reply });
            if let Reply::Refused { reason } = replica.cut_off().or_answer(asked).await? {
                return Err(refusal(reason));
            }
        }
        Ok::<(), Failure>(())
    };
    let (partition, queue) = (replica.id().0, queue.0);
    match timeout(Duration::from_millis(LEADER_WAIT_MS_MAX), executing).await {
        Ok(Ok(())) => {
            tracing::debug!(partition, queue, "a shard is brought to where the catalogue is");
            return true;
        }
        Ok(Err(failure)) => {
            tracing::warn!(partition, queue, %failure, "a shard stays behind the catalogue for now")
        }
        Err(_) => {
            tracing::warn!(partition, queue, "a shard stays behind the catalogue for now: no answer comes")
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use leasehold_raft_log::{Options, RealFileSystem};

    use super::*;
    use crate::replica::PartitionMachine;
    use crate::testing::{group, silent_lanes};

    #[tokio::test]
    async fn a_snapshot_is_not_begun_without_room_nor_while_one_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 * 1024, ..Options::default() };
        let (log, _) =
            Log::open(Arc::new(RealFileSystem::default()), &dir.path().join("full"), options).unwrap();
        let machine = Arc::new(PartitionMachine::new(PartitionId(0), None));
        let group = group(&dir.path().join("group"), GroupId(1), machine, silent_lanes()).await;
        let mut snapshots = Snapshots::default();
        for _ in 0..2 {
            assert!(!snapshots.make_room(&log, &group, u64::MAX).await);
            assert!(snapshots.begun.is_empty() && snapshots.without_room.contains(&group.id()));
        }
        assert!(snapshots.fits(&log, group.id(), 0) && snapshots.without_room.is_empty());
        snapshots.begun.insert(group.id(), (7, Instant::now()));
        assert!(!snapshots.begin(&log, &group, 0).await);
        group.shutdown().await;
    }
}
