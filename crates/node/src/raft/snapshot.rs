//! A snapshot on its way to a replica that is far behind: the state, and the contents of the messages it refers to.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use leasehold_proto::peer::{ContentRange, Contents, SnapshotAnswer, SnapshotChunk, SnapshotHead};
use leasehold_raft_log::{Log, ReadError, decode_snapshot_meta, encode_snapshot_meta};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::{OwnedRwLockReadGuard, mpsc};
use tokio::task::JoinError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::codec::{vote_from_peer, vote_to_peer};
use super::group::Group;
use super::serve::GroupDirectory;
use super::{GroupId, Image, SnapshotMeta, TypeConfig, Vote};
use crate::disk;
use crate::lane::{Lanes, TransportError};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks that wait for the network.
const CHUNKS_WAITING_MAX: usize = 4;

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the answer is malformed: {0}")]
    Answer(#[from] super::codec::CodecError),
    /// This node does not have, or its disk does not give back, what belongs to the snapshot.
    #[error(transparent)]
    Unread(ReadError),
}

/// Sends a snapshot with the contents that are still live. What was settled since the snapshot was taken may be missing: the
/// entries that settled it follow in the log.
///
/// # Errors
/// When it does not arrive, or this node does not have a content that the state refers to.
pub async fn send_snapshot(
    log: &Log,
    group: GroupId,
    target: u64,
    address: String,
    lanes: &Lanes,
    vote: &Vote,
    snapshot: SnapshotOf<TypeConfig, Image>,
) -> Result<Vote, SnapshotError> {
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
    let head = SnapshotHead {
        group: group.0,
        target,
        vote: Some(vote_to_peer(vote)),
        meta: encode_snapshot_meta(&snapshot.meta),
        state_bytes: snapshot.snapshot.0.len() as u64,
        state_crc32c: crc32c::crc32c(&snapshot.snapshot.0),
    };
    let through = snapshot.meta.last_log_id.map_or(0, |id| id.index);
    let log = log.clone();
    let reader =
        tokio::spawn(
            async move { read_chunks(&log, group, through, head, &snapshot.snapshot.0, &sender).await },
        );
    let chunks = lanes.origin().label(ReceiverStream::new(chunks));
    match lanes.transport().install_snapshot(address, chunks).await {
        Ok(answer) => {
            reader.abort();
            Ok(vote_from_peer(answer.vote)?)
        }
        // With the call the receiver of the chunks has gone, and so has the reader. What it could not read is why, whatever the
        // peer says of half a snapshot.
        Err(error) => match reader.await {
            Ok(Err(BrokenOff::Unread(error))) => Err(SnapshotError::Unread(error)),
            Ok(_) | Err(_) => Err(error.into()),
        },
    }
}

/// Why a snapshot is not sent to its end.
#[derive(Debug)]
pub(super) enum BrokenOff {
    /// The call has ended, or the node stops.
    Closed,
    Unread(ReadError),
}

impl From<mpsc::error::SendError<SnapshotChunk>> for BrokenOff {
    fn from(_: mpsc::error::SendError<SnapshotChunk>) -> Self {
        Self::Closed
    }
}

impl From<JoinError> for BrokenOff {
    fn from(_: JoinError) -> Self {
        Self::Closed
    }
}

async fn read_chunks(
    log: &Log,
    group: GroupId,
    through: u64,
    head: SnapshotHead,
    state: &Bytes,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<(), BrokenOff> {
    send_parts(log, group, through, head, state, chunks).await?;
    chunks.send(SnapshotChunk { is_last: true, ..SnapshotChunk::default() }).await?;
    Ok(())
}

/// Everything but the last chunk.
pub(super) async fn send_parts(
    log: &Log,
    group: GroupId,
    through: u64,
    head: SnapshotHead,
    state: &Bytes,
    chunks: &mpsc::Sender<SnapshotChunk>,
) -> Result<(), BrokenOff> {
    chunks.send(SnapshotChunk { head: Some(head), ..SnapshotChunk::default() }).await?;
    for start in (0..state.len()).step_by(CHUNK_BYTES) {
        let part = state.slice(start..state.len().min(start + CHUNK_BYTES));
        chunks.send(SnapshotChunk { state: part, ..SnapshotChunk::default() }).await?;
    }
    let mut live =
        disk::read(log, move |log| log.live_contents(group, through)).await?.into_iter().peekable();
    while live.peek().is_some() {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && let Some((log_index, ranges)) = live.next()
        {
            bytes += ranges.iter().map(|(_, len)| *len as usize).sum::<usize>();
            part.push((log_index, ranges));
        }
        let contents = disk::read(log, move |log| read_contents(log, group, part)).await??;
        chunks.send(SnapshotChunk { contents, ..SnapshotChunk::default() }).await?;
    }
    Ok(())
}

type LiveRanges = Vec<(u64, Vec<(u32, u32)>)>;

fn read_contents(log: &Log, group: GroupId, entries: LiveRanges) -> Result<Vec<Contents>, BrokenOff> {
    let read = |(log_index, ranges)| {
        read_ranges(log, group, log_index, ranges).map(|ranges| {
            let crc32c = Some(contents_crc(log_index, &ranges));
            Contents { log_index, ranges, crc32c }
        })
    };
    entries.into_iter().map(read).collect()
}

/// Covers the places too: sound bytes must not be stored as those of another message.
fn contents_crc(log_index: u64, ranges: &[ContentRange]) -> u32 {
    ranges.iter().fold(crc32c::crc32c(&log_index.to_le_bytes()), |crc, range| {
        let crc = crc32c::crc32c_append(crc, &range.offset.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &(range.bytes.len() as u32).to_le_bytes());
        crc32c::crc32c_append(crc, &range.bytes)
    })
}

/// The contents of one entry. What was settled a moment ago may be gone; anything else that is not here or cannot be read breaks the
/// snapshot off: who takes it would believe to have everything.
fn read_ranges(
    log: &Log,
    group: GroupId,
    log_index: u64,
    ranges: Vec<(u32, u32)>,
) -> Result<Vec<ContentRange>, BrokenOff> {
    let mut found = Vec::with_capacity(ranges.len());
    for (offset, len) in ranges {
        match log.read_content(group, log_index, offset, len) {
            Ok(bytes) => found.push(ContentRange { offset, bytes }),
            // The state changes before the log is told: what it refers to now has been live all the time.
            Err(ReadError::Missing { .. }) if !log.refers_to(group, log_index, offset, len) => {}
            Err(error) => return Err(BrokenOff::Unread(error)),
        }
    }
    Ok(found)
}

/// Takes a snapshot from a leader: contents go to the log as they come, the state is installed at the end.
///
/// # Errors
/// When the stream breaks, is malformed, the replica is not here, or the disk is too full: nothing of it is installed then.
pub async fn receive_snapshot<D: GroupDirectory>(
    directory: &D,
    log: &Log,
    chunks: impl Stream<Item = Result<SnapshotChunk, Status>>,
) -> Result<SnapshotAnswer, Status> {
    let mut chunks = pin!(chunks);
    let first = chunks.next().await.ok_or_else(|| Status::invalid_argument("an empty snapshot"))??;
    let head = first.head.ok_or_else(|| Status::invalid_argument("a snapshot without its head"))?;
    let group_id = GroupId(head.group);
    let group = directory.find(group_id, head.target).ok_or_else(|| {
        Status::not_found(format!("group {} has no replica {} here", head.group, head.target))
    })?;
    let malformed = |error: String| Status::invalid_argument(error);
    let vote = vote_from_peer(head.vote).map_err(|error| malformed(error.to_string()))?;
    let meta = decode_snapshot_meta(&head.meta).map_err(|error| malformed(error.to_string()))?;
    let given = group.given_vote();
    if vote < given {
        // It would be refused at its end: nothing of it is stored.
        return Ok(SnapshotAnswer { vote: Some(vote_to_peer(&given)) });
    }
    check_room(log, head.state_bytes)?;
    let held = group.arrivals.hold().await;
    let mut incoming = Incoming::new(head.state_bytes, head.state_crc32c);
    while let Some(chunk) = chunks.next().await {
        incoming.take(log, group_id, chunk?).await?;
    }
    let state = Image(incoming.finish()?);
    let vote = install(group, vote, meta, state, held).await?;
    Ok(SnapshotAnswer { vote: Some(vote_to_peer(&vote)) })
}

/// Refuses a state that does not fit on the disk: the group would end if that were found when it is installed.
pub(super) fn check_room(log: &Log, state_bytes: u64) -> Result<(), Status> {
    if log.has_room_for_snapshot(state_bytes) {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!("a snapshot of {state_bytes} bytes does not fit on the disk")))
}

/// Installs a snapshot to its end, also when the call ends before: openraft goes on with what it was given, and until it has, only the
/// guard says that the contents are wanted.
async fn install(
    group: Group,
    vote: Vote,
    meta: SnapshotMeta,
    state: Image,
    held: OwnedRwLockReadGuard<()>,
) -> Result<Vote, Status> {
    let installing = tokio::spawn(async move {
        let _held = held;
        group.install_snapshot(vote, meta, state).await
    });
    let installed = installing.await.map_err(|error| Status::internal(error.to_string()))?;
    installed.map_err(Status::internal)
}

/// A snapshot that is coming in.
pub(super) struct Incoming {
    state: BytesMut,
    state_bytes: u64,
    state_crc32c: u32,
    is_whole: bool,
}

impl Incoming {
    pub fn new(state_bytes: u64, state_crc32c: u32) -> Self {
        Self { state: BytesMut::new(), state_bytes, state_crc32c, is_whole: false }
    }

    /// Keeps a part of the state, and puts contents into the log.
    pub async fn take(&mut self, log: &Log, group: GroupId, chunk: SnapshotChunk) -> Result<(), Status> {
        if self.state.len() as u64 + chunk.state.len() as u64 > self.state_bytes {
            return Err(Status::invalid_argument("a snapshot is longer than its head says"));
        }
        self.state.extend_from_slice(&chunk.state);
        self.is_whole |= chunk.is_last;
        if chunk.contents.is_empty() {
            return Ok(());
        }
        let is_sound = |contents: &Contents| {
            contents.crc32c.is_none_or(|crc| crc == contents_crc(contents.log_index, &contents.ranges))
        };
        if !chunk.contents.iter().all(is_sound) {
            return Err(damaged());
        }
        let contents = chunk.contents.into_iter().map(|contents| {
            let ranges = contents.ranges.into_iter().map(|range| (range.offset, range.bytes)).collect();
            (contents.log_index, ranges)
        });
        let stored = log.put_contents(group, contents.collect()).await;
        stored.map_err(|error| Status::internal(error.to_string()))
    }

    /// The state, when all of it has come.
    pub fn finish(self) -> Result<Bytes, Status> {
        let state = self.state.freeze();
        let is_sound = state.len() as u64 == self.state_bytes && crc32c::crc32c(&state) == self.state_crc32c;
        if self.is_whole && is_sound { Ok(state) } else { Err(damaged()) }
    }
}

fn damaged() -> Status {
    Status::data_loss("the snapshot was damaged on its way")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::future::BoxFuture;
    use leasehold_catalogue::NodeId;
    use leasehold_proto::peer::LaneHello;
    use leasehold_raft_log::{Options, Payload, RealFileSystem};
    use openraft::storage::{IOFlushed, RaftLogStorage as _};
    use openraft::{EntryPayload, Snapshot};
    use tonic::Request;

    use super::*;
    use crate::lane::{Batches, FrameStream, Origin, Transport};
    use crate::raft::{Copied, Entry, send_copy};
    use crate::testing::{ADDRESS, HERE, LIVENESS_TIMEOUT};

    const GROUP: GroupId = GroupId(1);
    const BODY: [u8; 300] = [7; 300];

    /// Takes snapshots that come to their end, and refuses those that are broken off.
    struct Taker;

    impl Transport for Taker {
        fn open_lane(
            &self,
            _address: String,
            _hello: LaneHello,
            _frames: Batches,
        ) -> BoxFuture<'static, Result<FrameStream, TransportError>> {
            Box::pin(std::future::pending())
        }

        fn install_snapshot(
            &self,
            _address: String,
            chunks: Request<ReceiverStream<SnapshotChunk>>,
        ) -> BoxFuture<'static, Result<SnapshotAnswer, TransportError>> {
            Box::pin(async move {
                let chunks = chunks.into_inner().collect::<Vec<_>>().await;
                let contents = chunks.iter().flat_map(|chunk| &chunk.contents).flat_map(|held| &held.ranges);
                assert!(contents.map(|range| &range.bytes[..]).all(|bytes| bytes == BODY));
                if chunks.last().is_some_and(|chunk| chunk.is_last) {
                    return Ok(SnapshotAnswer { vote: Some(vote_to_peer(&Vote::new(1, HERE))) });
                }
                Err(Box::new(Status::data_loss("it was broken off")).into())
            })
        }
    }

    /// A log with one entry, whose payload is live.
    async fn log(dir: &Path) -> Log {
        log_of(dir, &[0], |_, _| whole()).await
    }

    fn whole() -> Vec<(u32, u32)> {
        vec![(0, BODY.len() as u32)]
    }

    /// The same, under a state that refers to these entries and to these parts of them.
    async fn log_of(
        dir: &Path,
        entries: &'static [u64],
        ranges: impl Fn(GroupId, u64) -> Vec<(u32, u32)> + Send + Sync + 'static,
    ) -> Log {
        let options = Options { cache_bytes: 0, segment_bytes: 64 * 1024, ..Options::default() };
        let (log, _) = Log::open(Arc::new(RealFileSystem::default()), dir, options).unwrap();
        let bytes_of = |index: &u64| (*index, BODY.len() as u64);
        log.set_live_entries_source(Arc::new(move |_| entries.iter().map(bytes_of).collect()));
        log.set_live_ranges_source(Arc::new(ranges));
        let mut part = log.group::<TypeConfig>(GROUP);
        let payload = EntryPayload::Normal(Payload::copy_of(&BODY));
        let entry = Entry { log_id: leasehold_raft_log::log_id(1, 0), payload };
        part.append([entry], IOFlushed::noop()).await.unwrap();
        log.retain(GROUP, 0, BODY.len() as u64);
        // It is on the disk when this is.
        part.save_vote(&Vote::new(1, HERE)).await.unwrap();
        log
    }

    async fn send(log: &Log) -> Result<Vote, SnapshotError> {
        let (events, _heard) = mpsc::unbounded_channel();
        let origin = Origin::new(&[7; 16], NodeId(HERE), ADDRESS);
        let lanes = Lanes::new(origin, Arc::new(Taker), LIVENESS_TIMEOUT, events);
        let meta =
            SnapshotMeta { last_log_id: Some(leasehold_raft_log::log_id(1, 9)), ..SnapshotMeta::default() };
        let snapshot = Snapshot { meta, snapshot: Image(Bytes::from_static(b"state")) };
        send_snapshot(log, GROUP, 2, ADDRESS.to_owned(), &lanes, &Vote::new(1, HERE), snapshot).await
    }

    #[tokio::test]
    async fn a_content_that_cannot_be_read_ends_a_snapshot_with_the_file_that_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path()).await;
        assert_eq!(send(&log).await.unwrap(), Vote::new(1, HERE));
        let mut files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
        let path = files.find(|path| path.to_str().unwrap().contains("segment-")).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(BODY.len()).position(|window| window == BODY).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[8], at as u64 + 100)
            .unwrap();
        let error = send(&log).await.unwrap_err();
        assert!(
            matches!(&error, SnapshotError::Unread(ReadError::Damaged { path: found, .. }) if *found == path),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_content_that_the_state_refers_to_and_the_node_does_not_have_ends_snapshots_and_copies() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[0, 5], |_, _| whole()).await;
        let error = send(&log).await.unwrap_err();
        let is_missing = matches!(error, SnapshotError::Unread(ReadError::Missing { index: 5, .. }));
        assert!(is_missing, "{error}");
        let copied = Copied { log_index: 9, state: Bytes::from_static(b"state") };
        let (sender, _chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        let error = send_copy(&log, GROUP, &copied, &sender).await.unwrap_err();
        assert!(error.contains("no content at index 5"), "{error}");
        // It may have come after what is copied.
        let copied = Copied { log_index: 4, ..copied };
        let (sender, _chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
        assert_eq!(send_copy(&log, GROUP, &copied, &sender).await, Ok(true));
    }

    #[tokio::test]
    async fn a_content_that_is_settled_before_it_is_read_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let asked = AtomicU64::new(0);
        let ranges = move |_: GroupId, index: u64| {
            let is_settled = index == 5 && asked.fetch_add(1, Ordering::Relaxed) > 0;
            if is_settled { Vec::new() } else { whole() }
        };
        let log = log_of(dir.path(), &[0, 5], ranges).await;
        assert_eq!(send(&log).await.unwrap(), Vote::new(1, HERE));
    }

    #[tokio::test]
    async fn contents_that_were_damaged_on_their_way_are_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path()).await;
        let chunk = |crc32c| {
            let ranges = vec![ContentRange { offset: 0, bytes: Bytes::from_static(&BODY) }];
            let contents = vec![Contents { log_index: 9, ranges, crc32c }];
            SnapshotChunk { contents, ..SnapshotChunk::default() }
        };
        let sound = contents_crc(9, &chunk(None).contents[0].ranges);
        let mut incoming = Incoming::new(0, 0);
        let refused = incoming.take(&log, GROUP, chunk(Some(sound ^ 1))).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DataLoss);
        assert!(log.read_content(GROUP, 9, 0, BODY.len() as u32).is_err());
        // An older node sends no checksum.
        for crc32c in [Some(sound), None] {
            incoming.take(&log, GROUP, chunk(crc32c)).await.unwrap();
        }
        assert_eq!(log.read_content(GROUP, 9, 0, BODY.len() as u32).unwrap()[..], BODY);
    }
}
