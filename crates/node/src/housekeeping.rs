//! What a node does once a second: snapshots that let the log be purged, contents of snapshots that were not installed, shards of deleted
//! queues, and numbers for the operator.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_partition::{Command, QueueId};
use tokio::time::timeout;

use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::limits::{
    LEADER_WAIT_MS_MAX, SNAPSHOT_APPLIED_BYTES_MIN, SNAPSHOT_LOG_FACTOR, SNAPSHOTS_TOGETHER_BYTES_MAX,
};
use crate::numbers::Numbers;
use crate::raft::{Group, GroupId, Role};
use crate::replica::{CommandCall, QueueSource as _, Replica, group_of};
use crate::router::Repeat;

const INTERVAL: Duration = Duration::from_secs(1);
/// How long the log may become while a snapshot is sent, which the next one would make useless.
const SENDING_LOG_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Shards of deleted queues that are removed in one pass.
const DELETED_MAX: usize = 64;

/// Works until the node stops.
pub async fn run(core: Arc<Core>) {
    let mut swept_revision = 0;
    let mut numbers = Numbers::default();
    let mut snapshots = Snapshots::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        snapshots.take(&core).await;
        for replica in core.router.replicas() {
            replica.group().free_arrivals().await;
        }
        let revision = core.view.revision();
        if revision != swept_revision && remove_deleted(&core, revision).await {
            swept_revision = revision;
        }
        numbers.publish(&core);
    }
}

/// The snapshots of this node's replicas.
#[derive(Default)]
struct Snapshots {
    /// The entry up to which each group took its last one to make room.
    taken: HashMap<GroupId, u64>,
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
            if wanted.contains(&group_of(replica.id())) {
                make_room(replica.group(), &mut self.taken).await;
            } else if replica.machine().wants_snapshot(SNAPSHOT_APPLIED_BYTES_MIN) {
                replica.group().take_snapshot().await;
            } else {
                continue;
            }
            begun_weight_bytes += replica.machine().snapshot_weight_bytes();
        }
        if wanted.contains(&CATALOGUE_GROUP) && !waits(&core.catalogue.group) {
            make_room(&core.catalogue.group, &mut self.taken).await;
        }
    }
}

/// Takes a snapshot so that the log can be purged; of a group that has not moved since, it gives up the last entries too.
async fn make_room(group: &Group, taken: &mut HashMap<GroupId, u64>) {
    let (applied, _) = group.progress();
    if taken.insert(group.id(), applied) == Some(applied) {
        group.purge_through(applied).await;
    } else {
        group.take_snapshot().await;
    }
}

/// Removes shards whose queue is gone from the partitions led here; true when none is left.
async fn remove_deleted(core: &Core, revision: u64) -> bool {
    let mut is_clean = true;
    for replica in core.router.replicas() {
        if !matches!(*replica.role().borrow(), Role::Leader { .. }) {
            continue;
        }
        let queues = replica.machine().read().queues().collect::<Vec<_>>();
        let deleted = queues.into_iter().filter(|queue| core.view.is_deleted(*queue)).take(DELETED_MAX);
        for queue in deleted {
            is_clean = false;
            // A partition that does not answer must not hold up what the others need.
            if !remove_shard(core, &replica, queue, revision).await {
                break;
            }
        }
    }
    is_clean
}

/// Whether the shard is removed.
async fn remove_shard(core: &Core, replica: &Replica, queue: QueueId, revision: u64) -> bool {
    let mut command = Vec::new();
    Command::Delete { queue, revision }.encode_into(&mut command);
    let call = CommandCall { queue, command: command.into(), promised_leases_ms: Vec::new() };
    let (partition, queue) = (replica.id().0, queue.0);
    let removing = core.router.command(replica.id(), call, Repeat::Safe);
    match timeout(Duration::from_millis(LEADER_WAIT_MS_MAX), removing).await {
        Ok(Ok(_)) => {
            tracing::debug!(partition, queue, "the shard of a deleted queue is removed");
            return true;
        }
        Ok(Err(failure)) => {
            tracing::warn!(partition, queue, %failure, "a deleted queue's shard stays for now")
        }
        Err(_) => {
            tracing::warn!(partition, queue, "a deleted queue's shard stays for now: no answer comes")
        }
    }
    false
}
