//! openraft's own tests of a storage, run on ours.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt};
use leasehold_raft_log::{
    GroupId, GroupLog, Log, LogId, Options, Payload, RealFileSystem, ReplicaNode, SnapshotMeta,
};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, StorageError, StoredMembership};
use tempfile::TempDir;

#[derive(Debug)]
struct Applied;

impl fmt::Display for Applied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("applied")
    }
}

openraft::declare_raft_types!(
    TypeConfig:
        D = Payload,
        R = Applied,
        NodeId = u64,
        Node = ReplicaNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

type Membership = StoredMembership<leasehold_raft_log::CommittedLeaderId, u64, ReplicaNode>;

/// Remembers what was applied, and nothing else.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    last: Option<LogId>,
    membership: Membership,
    payloads: BTreeMap<u64, Payload>,
    snapshot: Option<SnapshotMeta>,
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let state = self.0.lock().unwrap();
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut state = self.0.lock().unwrap();
            state.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(payload) => drop(state.payloads.insert(entry.log_id.index, payload)),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.last = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, ()>>> {
        let meta = self.0.lock().unwrap().snapshot.clone();
        Ok(meta.map(|meta| openraft::Snapshot { meta, snapshot: () }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, ()>> {
        let mut state = self.0.lock().unwrap();
        let meta = SnapshotMeta { last_log_id: state.last, last_membership: state.membership.clone() };
        state.snapshot = Some(meta.clone());
        Ok(openraft::Snapshot { meta, snapshot: () })
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, GroupLog<TypeConfig>, Machine, (TempDir, Log)> for Builder {
    async fn build(
        &self,
    ) -> Result<((TempDir, Log), GroupLog<TypeConfig>, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 * 1024, disk_low_bytes: 0, ..Options::default() };
        let (log, _) = Log::open(Arc::new(RealFileSystem::default()), dir.path(), options).unwrap();
        let group = log.group::<TypeConfig>(GroupId(3));
        Ok(((dir, log), group, Machine::default()))
    }
}

#[test]
fn the_log_passes_the_suite_of_openraft() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
