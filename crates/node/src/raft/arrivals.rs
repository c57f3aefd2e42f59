//! Contents that came with snapshots and may have come in vain.
//!
//! They go to the log before it is known whether their snapshot is installed. With the next one that is, and at a start, the log is told
//! what is live; until then what came with one that broke off would take room for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::group::Group;
use super::machine::Adapter;

#[derive(Default)]
pub struct Arrivals {
    /// Shared by those who take a snapshot, each until it is installed or given up.
    taking: Arc<RwLock<()>>,
    /// Whether contents may have come since the log was told what is live.
    may_be_left: AtomicBool,
}

impl Arrivals {
    /// Holds what comes until the guard goes: nothing else knows yet that it is wanted.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        let held = Arc::clone(&self.taking).read_owned().await;
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
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::sync::Mutex;
    use std::task::Poll;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::{FutureExt as _, Stream, StreamExt as _};
    use leasehold_proto::peer::{ContentRange, Contents, SnapshotChunk, SnapshotHead};
    use leasehold_raft_log::{Log, Options, RealFileSystem, encode_snapshot_meta, log_id};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Status;

    use super::*;
    use crate::raft::codec::vote_to_peer;
    use crate::raft::{
        Applied, GroupDirectory, GroupId, GroupOptions, Machine, MachineError, Membership, Network,
        Replacement, ReplicaNode, SnapshotMeta, StoredMembership, Vote, receive_snapshot,
    };
    use crate::testing::{ADDRESS, HERE, silent_lanes};

    const GROUP: GroupId = GroupId(1);
    const LEADER: u64 = 2;
    const BODY: [u8; 300] = [7; 300];

    struct Only(Group);

    impl GroupDirectory for Only {
        fn find(&self, _group: GroupId, _replica: u64) -> Option<Group> {
            Some(self.0.clone())
        }
    }

    /// Refers to a content of each entry whose index is a byte of its state.
    #[derive(Default)]
    struct Referring(Mutex<Vec<u8>>);

    impl Machine for Referring {
        fn apply(&self, _log_index: u64, _payload: &Bytes) -> Result<Applied, MachineError> {
            Ok(Applied::Nothing)
        }

        fn snapshot(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }

        fn read_snapshot(self: Arc<Self>, bytes: &[u8]) -> Result<Replacement, MachineError> {
            let state = bytes.to_vec();
            Ok(Box::new(move || *self.0.lock().unwrap() = state))
        }

        fn live_contents(&self) -> Vec<(u64, u64)> {
            self.snapshot().into_iter().map(|index| (u64::from(index), BODY.len() as u64)).collect()
        }

        fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
            vec![(0, BODY.len() as u32)]
        }
    }

    async fn start(dir: &Path) -> (Group, Log) {
        let options = Options { segment_bytes: 64 * 1024, ..Options::default() };
        let (log, _) = Log::open(Arc::new(RealFileSystem::default()), dir, options).unwrap();
        let options = GroupOptions {
            id: GROUP,
            replica: HERE,
            heartbeat_ms: 50,
            election_ms_min: 200,
            election_ms_max: 400,
        };
        let network = Network::new(GROUP, silent_lanes(), log.clone());
        let group =
            Group::start(options, Arc::new(Referring::default()), log.clone(), network).await.unwrap();
        (group, log)
    }

    /// A snapshot through an entry, whose state refers to these: the head, the state, the contents, the end.
    fn snapshot(through: u64, entries: &[u8]) -> [SnapshotChunk; 4] {
        let last = Some(log_id(1, through));
        let node = |node_id| ReplicaNode { node_id, address: ADDRESS.to_owned() };
        let members = BTreeMap::from([(LEADER, node(LEADER)), (HERE, node(HERE))]);
        let membership = Membership::new(vec![BTreeSet::from([LEADER])], members).unwrap();
        let last_membership = StoredMembership::new(last, membership);
        let head = SnapshotHead {
            group: GROUP.0,
            target: HERE,
            vote: Some(vote_to_peer(&Vote::new_committed(1, LEADER))),
            meta: encode_snapshot_meta(&SnapshotMeta { last_log_id: last, last_membership }),
            state_bytes: entries.len() as u64,
            state_crc32c: crc32c::crc32c(entries),
        };
        let contents = entries.iter().map(|index| {
            let ranges = vec![ContentRange { offset: 0, bytes: Bytes::from_static(&BODY) }];
            Contents { log_index: u64::from(*index), ranges, crc32c: None }
        });
        [
            SnapshotChunk { head: Some(head), ..SnapshotChunk::default() },
            SnapshotChunk { state: Bytes::copy_from_slice(entries), ..SnapshotChunk::default() },
            SnapshotChunk { contents: contents.collect(), ..SnapshotChunk::default() },
            SnapshotChunk { is_last: true, ..SnapshotChunk::default() },
        ]
    }

    fn stream(
        chunks: impl IntoIterator<Item = SnapshotChunk>,
    ) -> impl Stream<Item = Result<SnapshotChunk, Status>> {
        futures::stream::iter(chunks.into_iter().map(Ok))
    }

    fn has_content(log: &Log, log_index: u64) -> bool {
        log.read_content(GROUP, log_index, 0, BODY.len() as u32).is_ok_and(|bytes| bytes[..] == BODY)
    }

    async fn eventually(what: &str, is_so: impl Fn() -> bool) {
        for _ in 0..4_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn what_came_with_a_snapshot_that_broke_off_is_freed_when_none_comes() {
        let dir = tempfile::tempdir().unwrap();
        let (group, log) = start(dir.path()).await;
        let chunks = stream(snapshot(200, &[9]).into_iter().take(3));
        receive_snapshot(&Only(group.clone()), &log, chunks).await.unwrap_err();
        assert!(has_content(&log, 9));
        let other = group.arrivals.hold().await;
        group.free_arrivals().await;
        assert_eq!(log.stats().live_bytes, BODY.len() as u64, "another snapshot may have brought it");
        drop(other);
        group.free_arrivals().await;
        assert_eq!(log.stats().live_bytes, 0);
        assert!(!has_content(&log, 9));
        group.shutdown().await;
    }

    /// The leader begins a newer one when the connection breaks, and the older one is installed all the same.
    #[tokio::test]
    async fn a_snapshot_that_is_installed_leaves_what_came_with_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let (group, log) = start(dir.path()).await;
        let (sender, chunks) = mpsc::channel(4);
        let [head, state, contents, end] = snapshot(300, &[5, 250]);
        for chunk in [head, state, contents] {
            sender.send(Ok(chunk)).await.unwrap();
        }
        let newer = tokio::spawn({
            let (only, log) = (Only(group.clone()), log.clone());
            async move { receive_snapshot(&only, &log, ReceiverStream::new(chunks)).await }
        });
        eventually("the contents are stored", || has_content(&log, 250)).await;
        let older = stream(snapshot(200, &[5]));
        receive_snapshot(&Only(group.clone()), &log, older).await.unwrap();
        assert!(has_content(&log, 250), "the newer one is still coming in");
        sender.send(Ok(end)).await.unwrap();
        drop(sender);
        newer.await.unwrap().unwrap();
        group.free_arrivals().await;
        assert!(has_content(&log, 5) && has_content(&log, 250));
        assert_eq!(log.stats().live_bytes, 2 * BODY.len() as u64);
        group.shutdown().await;
    }

    #[tokio::test]
    async fn a_snapshot_that_is_being_installed_keeps_its_contents_when_its_call_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (group, log) = start(dir.path()).await;
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        let end = futures::stream::poll_fn(move |_| {
            ended.store(true, Ordering::Relaxed);
            Poll::Ready(None)
        });
        let only = Only(group.clone());
        let mut call = Box::pin(receive_snapshot(&only, &log, stream(snapshot(200, &[5])).chain(end)));
        loop {
            assert!(call.as_mut().now_or_never().is_none(), "nothing is installed at once");
            if has_ended.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What was sent to Raft is on its way, and nobody has taken it yet.
        drop(call);
        assert!(group.arrivals.taking.try_write().is_err());
        group.free_arrivals().await;
        assert!(has_content(&log, 5));
        eventually("installed", || group.progress().0 == 200).await;
        eventually("over", || group.arrivals.taking.try_write().is_ok()).await;
        group.free_arrivals().await;
        assert!(has_content(&log, 5));
        assert_eq!(log.stats().live_bytes, BODY.len() as u64);
        group.shutdown().await;
    }
}
