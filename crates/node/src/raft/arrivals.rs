//! Contents that came with snapshots and may have come in vain.
//!
//! They go to the log before it is known whether their snapshot is installed. With the next one that is, and at a start, the log is told
//! what is live; until then what came with one that broke off would take room for nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{RwLock, RwLockReadGuard};

use super::group::Group;
use super::machine::Adapter;

#[derive(Default)]
pub struct Arrivals {
    /// Shared by those who take a snapshot, each until it is installed or given up.
    taking: RwLock<()>,
    /// Whether contents may have come since the log was told what is live.
    may_be_left: AtomicBool,
}

impl Arrivals {
    /// Holds what comes until the guard goes: nothing else knows yet that it is wanted.
    pub async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        let held = self.taking.read().await;
        self.may_be_left.store(true, Ordering::Release);
        held
    }
}

impl Group {
    /// Frees what came with snapshots that were not installed, if there may be any and none is coming in.
    pub async fn free_arrivals(&self) {
        if !self.arrivals.may_be_left.load(Ordering::Acquire) {
            return;
        }
        let Ok(_alone) = self.arrivals.taking.try_write() else { return };
        self.arrivals.may_be_left.store(false, Ordering::Release);
        // Between two entries: what one makes live is told by itself.
        let told: Result<(), _> = self
            .raft
            .with_state_machine(|adapter: &mut Adapter| {
                adapter.tell_live();
                Box::pin(std::future::ready(()))
            })
            .await;
        if let Err(error) = told {
            tracing::debug!(group = self.id.0, %error, "the group has stopped: the next start frees what came in vain");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use leasehold_catalogue::PartitionId;
    use leasehold_proto::peer::{ContentRange, Contents, SnapshotChunk, SnapshotHead};
    use leasehold_raft_log::{Log, Options, RealFileSystem, encode_snapshot_meta};

    use super::*;
    use crate::raft::codec::vote_to_peer;
    use crate::raft::{GroupDirectory, GroupId, GroupOptions, Network, SnapshotMeta, Vote, receive_snapshot};
    use crate::replica::PartitionMachine;
    use crate::testing::{HERE, silent_lanes};

    const GROUP: GroupId = GroupId(1);
    const BODY: [u8; 300] = [7; 300];

    struct Only(Group);

    impl GroupDirectory for Only {
        fn find(&self, _group: GroupId, _replica: u64) -> Option<Group> {
            Some(self.0.clone())
        }
    }

    /// A snapshot that ends behind its first contents.
    async fn break_off(group: &Group, log: &Log) {
        let head = SnapshotHead {
            group: GROUP.0,
            target: HERE,
            vote: Some(vote_to_peer(&Vote::new_committed(1, 2))),
            meta: encode_snapshot_meta(&SnapshotMeta::default()),
            ..SnapshotHead::default()
        };
        let ranges = vec![ContentRange { offset: 0, bytes: Bytes::from_static(&BODY) }];
        let contents = vec![Contents { log_index: 9, ranges, crc32c: None }];
        let chunks = [
            SnapshotChunk { head: Some(head), ..SnapshotChunk::default() },
            SnapshotChunk { contents, ..SnapshotChunk::default() },
        ];
        let chunks = futures::stream::iter(chunks.map(Ok));
        receive_snapshot(&Only(group.clone()), log, chunks).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_came_with_a_snapshot_that_broke_off_is_freed_when_none_comes() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 * 1024, ..Options::default() };
        let (log, _) = Log::open(Arc::new(RealFileSystem), dir.path(), options).unwrap();
        let options = GroupOptions {
            id: GROUP,
            replica: HERE,
            heartbeat_ms: 50,
            election_ms_min: 200,
            election_ms_max: 400,
        };
        let network = Network::new(GROUP, silent_lanes(), log.clone());
        let machine = Arc::new(PartitionMachine::new(PartitionId(0), None));
        let group = Group::start(options, machine, log.clone(), network).await.unwrap();
        break_off(&group, &log).await;
        assert_eq!(log.read_content(GROUP, 9, 0, BODY.len() as u32).unwrap()[..], BODY);
        let other = group.arrivals.hold().await;
        group.free_arrivals().await;
        assert_eq!(log.stats().live_bytes, BODY.len() as u64, "another snapshot may have brought it");
        drop(other);
        group.free_arrivals().await;
        assert_eq!(log.stats().live_bytes, 0);
        assert!(log.read_content(GROUP, 9, 0, BODY.len() as u32).is_err());
        group.shutdown().await;
    }
}
