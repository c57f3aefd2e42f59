//! What a node does once a second: snapshots that let the log be purged, shards of deleted queues, and numbers for the operator.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_partition::{Command, QueueId};

use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::limits::{SNAPSHOT_APPLIED_BYTES_MIN, SNAPSHOT_LOG_FACTOR, SNAPSHOTS_TOGETHER_BYTES_MAX};
use crate::numbers::Numbers;
use crate::raft::{Group, GroupId, Role};
use crate::replica::{CommandCall, QueueSource as _, Replica, group_of};
use crate::router::Repeat;

const INTERVAL: Duration = Duration::from_secs(1);
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
        let mut begun_weight_bytes = 0;
        for at in (self.turn..).take(replicas.len()).map(|at| at % replicas.len()) {
            let replica = &replicas[at];
            self.turn = at;
            if begun_weight_bytes > SNAPSHOTS_TOGETHER_BYTES_MAX {
                break;
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
        if wanted.contains(&CATALOGUE_GROUP) {
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
            remove_shard(core, &replica, queue, revision).await;
        }
    }
    is_clean
}

async fn remove_shard(core: &Core, replica: &Replica, queue: QueueId, revision: u64) {
    let mut command = Vec::new();
    Command::Delete { queue, revision }.encode_into(&mut command);
    let call = CommandCall { queue, command: command.into(), promised_leases_ms: Vec::new() };
    match core.router.command(replica.id(), call, Repeat::Safe).await {
        Ok(_) => tracing::debug!(
            partition = replica.id().0,
            queue = queue.0,
            "the shard of a deleted queue is removed"
        ),
        Err(failure) => {
            tracing::warn!(partition = replica.id().0, %failure, "a deleted queue's shard stays for now")
        }
    }
}
