//! A state machine under openraft: feeds it committed entries, keeps its snapshots, and tells the log which contents it needs.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use leasehold_raft_log::{Log, LogError, decode_snapshot_meta, encode_snapshot_meta};
use openraft::entry::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::Mutex;

use super::{Applied, GroupId, LogId, SnapshotMeta, StoredMembership, TypeConfig};

/// What can be replicated. Reads go to the machine itself; only a group calls these.
pub trait Machine: Send + Sync + 'static {
    /// Executes a committed entry.
    ///
    /// # Errors
    /// When this version of the node cannot execute it: the group halts, because another version may.
    fn apply(&self, log_index: u64, payload: &Bytes) -> Result<Applied, MachineError>;

    /// The whole state.
    fn snapshot(&self) -> Vec<u8>;

    /// Reads a snapshot, and returns what replaces the whole state by it.
    ///
    /// # Errors
    /// When the bytes are not a snapshot of this machine that this version can read.
    fn read_snapshot(self: Arc<Self>, bytes: &[u8]) -> Result<Replacement, MachineError>;

    /// The entries whose contents the state refers to, with the live bytes of each, in the order of their indexes.
    fn live_contents(&self) -> Vec<(u64, u64)>;

    /// The live ranges of one entry's payload: offset and length.
    fn live_ranges(&self, log_index: u64) -> Vec<(u32, u32)>;
}

/// Puts a state that was read in the place of the one that is there.
pub type Replacement = Box<dyn FnOnce() + Send>;

/// An entry or a snapshot that this node cannot execute.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

impl From<MachineError> for io::Error {
    fn from(error: MachineError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// A snapshot's state. Contents of messages are not in it: they stay in the log, and travel beside it to other nodes.
#[derive(Clone)]
pub struct Image(pub Bytes);

impl std::fmt::Debug for Image {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Image({} bytes)", self.0.len())
    }
}

/// Saves the snapshots of a group. While one is being built a newer one may be installed: it must stay, because with it the log
/// may have lost the entries that the older one needs.
#[derive(Clone)]
struct Saver {
    group: GroupId,
    log: Log,
    /// The last entry of the one on the disk.
    last: Arc<Mutex<Option<LogId>>>,
}

impl Saver {
    /// Replaces the snapshot on the disk, unless that one reaches as far.
    async fn save(&self, meta: &SnapshotMeta, image: &Image) -> Result<(), LogError> {
        let mut last = self.last.lock().await;
        if last.is_some() && meta.last_log_id <= *last {
            return Ok(());
        }
        let record = encode_snapshot_meta(meta);
        self.log.save_snapshot(self.group, record, image.0.clone()).await?;
        *last = meta.last_log_id;
        Ok(())
    }
}

/// The machine of one group, as openraft sees it.
pub struct Adapter {
    group: GroupId,
    log: Log,
    saver: Saver,
    machine: Arc<dyn Machine>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Adapter {
    /// Brings the machine to its latest local snapshot; openraft then applies the entries after it.
    ///
    /// # Errors
    /// When the snapshot cannot be read or is damaged.
    pub fn open(group: GroupId, log: Log, machine: Arc<dyn Machine>) -> io::Result<Self> {
        let (mut applied, mut membership) = (None, StoredMembership::default());
        if let Some(saved) = log.load_snapshot(group).map_err(io::Error::other)? {
            let meta = decode_snapshot_meta(&saved.meta).map_err(io::Error::other)?;
            Arc::clone(&machine).read_snapshot(&saved.bytes)?();
            (applied, membership) = (meta.last_log_id, meta.last_membership);
        }
        log.restore_live(group, &machine.live_contents());
        let saver = Saver { group, log: log.clone(), last: Arc::new(Mutex::new(applied)) };
        Ok(Self { group, log, saver, machine, applied, membership })
    }

    /// Tells the log what is live: all else is freed.
    pub fn tell_live(&self) {
        self.log.restore_live(self.group, &self.machine.live_contents());
    }

    fn apply_entry(&mut self, entry: super::Entry) -> io::Result<Applied> {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Ok(Applied::Nothing),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Applied::Nothing)
            }
            EntryPayload::Normal(payload) => {
                let index = entry.log_id.index;
                let applied = self.machine.apply(index, &payload.bytes()).inspect_err(|error| {
                    tracing::error!(group = self.group.0, index, %error, "an entry cannot be executed: the group halts");
                })?;
                self.account(index, &applied);
                Ok(applied)
            }
        }
    }

    /// Every replica tells its log what is live, whoever leads.
    fn account(&self, index: u64, applied: &Applied) {
        let Applied::Partition(applied) = applied else { return };
        let effects = &applied.effects;
        if effects.retained_bytes > 0 {
            self.log.retain(self.group, index, effects.retained_bytes);
        }
        for (holder, bytes) in &effects.freed {
            self.log.release(self.group, *holder, *bytes);
        }
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = Image;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let applied = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            saver: self.saver.clone(),
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
            image: Image(Bytes::from(self.machine.snapshot())),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Image) -> io::Result<()> {
        // Read before it takes the place of the one on the disk: of one that cannot be read nothing must be left.
        let replace = Arc::clone(&self.machine).read_snapshot(&snapshot.0)?;
        self.saver.save(meta, &snapshot).await?;
        replace();
        // What belongs to later entries came with a newer snapshot, which may be installed after this one.
        let through = meta.last_log_id.map_or(0, |id| id.index);
        self.log.restore_live_through(self.group, &self.machine.live_contents(), through);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, Image>>> {
        let Some(saved) = self.log.load_snapshot(self.group).map_err(io::Error::other)? else {
            return Ok(None);
        };
        let meta = decode_snapshot_meta(&saved.meta).map_err(io::Error::other)?;
        Ok(Some(openraft::Snapshot { meta, snapshot: Image(saved.bytes) }))
    }
}

/// Saves a state that was taken while the machine stood still.
pub struct Builder {
    saver: Saver,
    meta: SnapshotMeta,
    image: Image,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Image;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Image>> {
        let meta = match self.saver.save(&self.meta, &self.image).await {
            Ok(()) => self.meta.clone(),
            // An error would end the group. Raft passes by a snapshot that is no newer than what it has, and one without an entry is
            // newer than nothing.
            Err(error @ LogError::NoRoom(_)) => {
                tracing::warn!(group = self.saver.group.0, %error, "the log keeps its entries for now");
                SnapshotMeta::default()
            }
            Err(error) => return Err(error.into()),
        };
        Ok(openraft::Snapshot { meta, snapshot: self.image.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use leasehold_raft_log::{Fault, Options, RealFileSystem, SimulatedFileSystem, log_id};

    use super::*;

    const GROUP: GroupId = GroupId(1);

    /// Reads snapshots of one byte.
    #[derive(Default)]
    struct Picky(std::sync::Mutex<Vec<u8>>);

    impl Machine for Picky {
        fn apply(&self, _log_index: u64, _payload: &Bytes) -> Result<Applied, MachineError> {
            Ok(Applied::Nothing)
        }

        fn snapshot(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }

        fn read_snapshot(self: Arc<Self>, bytes: &[u8]) -> Result<Replacement, MachineError> {
            let state = bytes.to_vec();
            match state.len() {
                1 => Ok(Box::new(move || *self.0.lock().unwrap() = state)),
                _ => Err(MachineError("of a newer version".to_owned())),
            }
        }

        fn live_contents(&self) -> Vec<(u64, u64)> {
            Vec::new()
        }

        fn live_ranges(&self, _log_index: u64) -> Vec<(u32, u32)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_cannot_be_read_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) =
            Log::open(Arc::new(RealFileSystem::default()), dir.path(), Options::default()).unwrap();
        let machine = Arc::new(Picky::default());
        let mut adapter = Adapter::open(GROUP, log.clone(), Arc::<Picky>::clone(&machine)).unwrap();
        let meta = |index| SnapshotMeta { last_log_id: Some(log_id(1, index)), ..SnapshotMeta::default() };
        adapter.install_snapshot(&meta(3), Image(Bytes::from_static(b"a"))).await.unwrap();
        let refused = adapter.install_snapshot(&meta(7), Image(Bytes::from_static(b"newer"))).await;
        assert!(refused.unwrap_err().to_string().contains("newer version"));
        assert_eq!((machine.snapshot(), adapter.applied), (b"a".to_vec(), Some(log_id(1, 3))));
        assert_eq!(log.load_snapshot(GROUP).unwrap().unwrap().bytes, "a");
        let again = Adapter::open(GROUP, log, machine).unwrap();
        assert_eq!(again.applied, Some(log_id(1, 3)));
    }

    #[tokio::test]
    async fn a_snapshot_that_was_built_does_not_replace_a_newer_one_that_came() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) =
            Log::open(Arc::new(RealFileSystem::default()), dir.path(), Options::default()).unwrap();
        let machine = Arc::new(Picky::default());
        let mut adapter = Adapter::open(GROUP, log.clone(), Arc::<Picky>::clone(&machine)).unwrap();
        let meta = |index| SnapshotMeta { last_log_id: Some(log_id(1, index)), ..SnapshotMeta::default() };
        adapter.install_snapshot(&meta(900), Image(Bytes::from_static(b"a"))).await.unwrap();
        adapter.applied = Some(log_id(1, 1000));
        let mut builder = adapter.get_snapshot_builder().await;
        adapter.install_snapshot(&meta(1100), Image(Bytes::from_static(b"b"))).await.unwrap();
        let built = builder.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, Some(log_id(1, 1000)));
        let saved = log.load_snapshot(GROUP).unwrap().unwrap();
        let found = decode_snapshot_meta(&saved.meta).unwrap();
        assert_eq!((found.last_log_id, &saved.bytes[..]), (Some(log_id(1, 1100)), &b"b"[..]));
        adapter.applied = Some(log_id(1, 1200));
        adapter.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let again = Adapter::open(GROUP, log, machine).unwrap();
        assert_eq!(again.applied, Some(log_id(1, 1200)));
    }
    #[tokio::test]
    async fn a_snapshot_that_does_not_fit_leaves_the_one_before_it_and_ends_no_group() {
        let fs = SimulatedFileSystem::new();
        // Nothing else is written: only the snapshot meets the fault.
        let options = Options { spare_segments: 0, ..Options::default() };
        let (log, _) = Log::open(Arc::new(fs.clone()), Path::new("log"), options).unwrap();
        let mut adapter = Adapter::open(GROUP, log.clone(), Arc::new(Picky::default())).unwrap();
        let meta = SnapshotMeta { last_log_id: Some(log_id(1, 3)), ..SnapshotMeta::default() };
        adapter.install_snapshot(&meta, Image(Bytes::from_static(b"a"))).await.unwrap();
        adapter.applied = Some(log_id(1, 7));
        let saved = || decode_snapshot_meta(&log.load_snapshot(GROUP).unwrap().unwrap().meta).unwrap();
        fs.fail_at(0, Fault::NoSpace);
        let built = adapter.get_snapshot_builder().await.build_snapshot().await.unwrap();
        assert_eq!((built.meta.last_log_id, saved().last_log_id), (None, Some(log_id(1, 3))));
        assert!(fs.has_failed() && log.failure().is_none());
        let built = adapter.get_snapshot_builder().await.build_snapshot().await.unwrap();
        assert_eq!((built.meta.last_log_id, saved().last_log_id), (Some(log_id(1, 7)), Some(log_id(1, 7))));
    }
}
