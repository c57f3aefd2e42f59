//! How a group's leader or candidate reaches the other replicas: openraft's network traits over the lanes of the node.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use leasehold_catalogue::NodeId;
use leasehold_proto::peer::TransferAnswer;
use openraft::StorageError;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt as _;
use openraft::type_config::alias::SnapshotOf;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::codec::{self, CodecError};
use super::snapshot::{SnapshotError, send_snapshot};
use super::{GroupId, Image, ReplicaNode, TypeConfig, Vote};
use crate::catalogue_link::CATALOGUE_GROUP;
use crate::lane::{CallFailure, FrameKind, Lanes, PendingAnswer};
use crate::limits::{COMMIT_NEWS_WAIT_MS, ENTRY_BYTES_MAX};
use crate::stop_on_drop::StopOnDrop;

/// Appends that one pipeline has sent and not yet seen answered.
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// Their bytes: a replica whose disk is slower than the network keeps them in memory, those of each of its groups.
const APPEND_BYTES_IN_FLIGHT_MAX: usize = 4 * 1024 * 1024;
const _: () =
    assert!(APPEND_BYTES_IN_FLIGHT_MAX >= 2 * ENTRY_BYTES_MAX, "one is written while the next is sent");

type RpcError = RPCError<TypeConfig>;

/// The network of one group.
#[derive(Clone)]
pub struct Network {
    group: GroupId,
    lanes: Arc<Lanes>,
    log: leasehold_raft_log::Log,
    pipelines: Arc<AtomicU64>,
    /// Snapshots that are being sent.
    sending: Arc<AtomicU64>,
}

impl Network {
    pub fn new(group: GroupId, lanes: Arc<Lanes>, log: leasehold_raft_log::Log) -> Self {
        Self { group, lanes, log, pipelines: Arc::new(AtomicU64::new(1)), sending: Arc::default() }
    }

    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.lanes.is_reachable(node)
    }

    pub fn sends_snapshot(&self) -> bool {
        self.sending.load(Ordering::Relaxed) > 0
    }

    /// How long news of a commit wait for entries that tell it as well. A node waits for its own view of the catalogue after each
    /// change, so these go at once.
    fn news_wait(&self) -> Duration {
        let wait_ms = if self.group == CATALOGUE_GROUP { 0 } else { COMMIT_NEWS_WAIT_MS };
        Duration::from_millis(wait_ms)
    }

    /// Whether a voter would have the asker lead. One that does not answer would not.
    pub async fn asks_for_election(
        &self,
        target: u64,
        node: &ReplicaNode,
        request: &VoteRequest<TypeConfig>,
        patience: Duration,
    ) -> bool {
        let link = ReplicaLink { network: self.clone(), target, node: node.clone() };
        let answer = link.ask(FrameKind::PreVote, codec::vote_request(request), patience).await;
        let answer = answer.and_then(|body| codec::vote_answer_from(body).map_err(malformed));
        answer.is_ok_and(|answer| answer.vote_granted)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = ReplicaLink;

    async fn new_client(&mut self, target: u64, node: &ReplicaNode) -> ReplicaLink {
        ReplicaLink { network: self.clone(), target, node: node.clone() }
    }
}

/// The way to one replica of one group.
pub struct ReplicaLink {
    network: Network,
    target: u64,
    node: ReplicaNode,
}

/// Which of the two links to a node a message takes.
#[derive(Clone, Copy)]
enum Lane {
    Control,
    Bulk,
}

impl ReplicaLink {
    fn send(&self, lane: Lane, kind: FrameKind, body: Bytes) -> Result<PendingAnswer, CallFailure> {
        let peer = self.network.lanes.peer(NodeId(self.node.node_id), &self.node.address);
        let link = match lane {
            Lane::Control => &peer.control,
            Lane::Bulk => &peer.bulk,
        };
        link.call(kind, self.network.group.0, self.target, body)
    }

    async fn ask(&self, kind: FrameKind, body: Bytes, patience: Duration) -> Result<Bytes, RpcError> {
        let answer = self.send(Lane::Control, kind, body).map_err(unreachable)?;
        match timeout(patience, answer.wait()).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(elapsed) => Err(RPCError::Network(NetworkError::new(&elapsed))),
        }
    }
}

/// openraft backs off from a replica that is unreachable instead of trying again at once.
fn unreachable(failure: CallFailure) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&failure))
}

fn malformed(error: CodecError) -> RpcError {
    RPCError::Network(NetworkError::new(&error))
}

impl NetBackoff<TypeConfig> for ReplicaLink {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetStreamAppend<TypeConfig> for ReplicaLink {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let link =
            ReplicaLink { network: self.network.clone(), target: self.target, node: self.node.clone() };
        Box::pin(async move {
            let (sent, answers) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
            // The sending half ends with the receiving one.
            let pump = StopOnDrop(tokio::spawn(pump_appends(link, input, sent)).abort_handle());
            let outcomes = ReceiverStream::new(answers).then(move |answer| {
                let _alive = &pump;
                read_append_answer(answer)
            });
            let stream: BoxStream<'s, _> = Box::pin(outcomes);
            Ok(stream)
        })
    }
}

/// An append that waits for its answer, and its share of the bytes in flight.
type SentAppend = Result<(PendingAnswer, OwnedSemaphorePermit), CallFailure>;

/// The bytes that one pipeline may have in flight. One append always has room, however long it is.
#[derive(Clone)]
struct Room(Arc<Semaphore>);

impl Room {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(APPEND_BYTES_IN_FLIGHT_MAX)))
    }

    /// Waits until so many bytes have room; they have it until the permit is dropped.
    async fn of(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(APPEND_BYTES_IN_FLIGHT_MAX)).ok()?;
        self.0.clone().acquire_many_owned(permits).await.ok()
    }
}

/// Sends appends in order without waiting for their answers.
async fn pump_appends<S>(link: ReplicaLink, input: S, sent: mpsc::Sender<SentAppend>)
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let pipeline = link.network.pipelines.fetch_add(1, Ordering::Relaxed);
    let news_wait = link.network.news_wait();
    let room = Room::new();
    let mut input = input.fuse();
    while let Some(request) = next_append(&mut input, news_wait).await {
        let body = codec::append_request(request, pipeline);
        let Some(share) = room.of(body.len()).await else { return };
        let answer = link.send(Lane::Bulk, FrameKind::Append, body).map(|answer| (answer, share));
        let broken = answer.is_err();
        if sent.send(answer).await.is_err() || broken {
            return;
        }
    }
}

/// The next append that is worth a frame. One without entries tells the replica what is committed and no more; it waits a moment for
/// entries, which tell that too. The answer to these counts for both: openraft matches answers by the log id that they reach.
async fn next_append<S>(input: &mut S, news_wait: Duration) -> Option<AppendEntriesRequest<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let mut request = input.next().await?;
    let end = Instant::now() + news_wait;
    while request.entries.is_empty() {
        match timeout_at(end, input.next()).await {
            Ok(Some(next)) => request = next,
            Ok(None) | Err(_) => break,
        }
    }
    Some(request)
}

async fn read_append_answer(answer: SentAppend) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    let (answer, _share) = answer.map_err(unreachable)?;
    let body = answer.wait().await.map_err(unreachable)?;
    codec::append_answer_from(body).map_err(malformed)
}

impl NetVote<TypeConfig> for ReplicaLink {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = self.ask(FrameKind::Vote, codec::vote_request(&request), option.hard_ttl()).await?;
        codec::vote_answer_from(body).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = self.ask(FrameKind::PreVote, codec::vote_request(&request), option.hard_ttl()).await?;
        codec::vote_answer_from(body).map_err(malformed)
    }
}

impl NetTransferLeader<TypeConfig> for ReplicaLink {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let last = request.last_log_id().copied();
        let body = codec::transfer_request(&request);
        let body = self.ask(FrameKind::TransferLeader, body, option.hard_ttl()).await?;
        let answer = TransferAnswer::decode(body).map_err(|error| malformed(error.into()))?;
        if answer.accepted {
            return Ok(Ok(()));
        }
        Ok(Err(TransferLeaderError::LogNotFlushed { expected: last, actual: None }))
    }
}

/// A snapshot that is being sent, until this is dropped.
struct Sending(Arc<AtomicU64>);

impl Sending {
    fn begin(sending: &Arc<AtomicU64>) -> Self {
        sending.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(sending))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NetSnapshot<TypeConfig> for ReplicaLink {
    type SnapshotData = Image;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, Image>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let network = &self.network;
        let _sending = Sending::begin(&network.sending);
        let known = network.lanes.address(NodeId(self.node.node_id));
        let address = known.unwrap_or_else(|| self.node.address.clone());
        let sending =
            send_snapshot(&network.log, network.group, self.target, address, &network.lanes, &vote, snapshot);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = sending => answer.map(SnapshotResponse::new).map_err(|error| match error {
                // Another replica shall lead, and send its own.
                SnapshotError::Unread(error) => {
                    StorageError::read_snapshot(None, TypeConfig::err_from_error(&error)).into()
                }
                error => StreamingError::Unreachable(Unreachable::new(&error)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use openraft::EntryPayload;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::super::{Entry, LogId};
    use super::*;

    const WAIT: Duration = Duration::from_millis(5);

    fn log_id(index: u64) -> LogId {
        codec::log_id_from_peer(&leasehold_proto::peer::LogId { term: 1, index })
    }

    /// News that all up to this index is committed, with the entry after it if there is one.
    fn append(committed: u64, entry: Option<u64>) -> AppendEntriesRequest<TypeConfig> {
        let entry = entry.map(|index| Entry { log_id: log_id(index), payload: EntryPayload::Blank });
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(committed)),
            entries: entry.into_iter().collect(),
            leader_commit: Some(log_id(committed)),
        }
    }

    fn told(request: Option<AppendEntriesRequest<TypeConfig>>) -> Option<(u64, usize)> {
        request.map(|request| (request.leader_commit.map_or(0, |id| id.index), request.entries.len()))
    }

    #[tokio::test(start_paused = true)]
    async fn news_travel_with_entries_that_come_in_time() {
        let mut input = stream::iter([append(1, None), append(2, None), append(2, Some(3))]);
        assert_eq!(told(next_append(&mut input, WAIT).await), Some((2, 1)));
        assert_eq!(told(next_append(&mut input, WAIT).await), None);
    }

    #[tokio::test(start_paused = true)]
    async fn news_go_alone_when_no_entries_come() {
        let (sender, queue) = mpsc::unbounded_channel();
        let mut input = UnboundedReceiverStream::new(queue);
        let began = Instant::now();
        sender.send(append(1, None)).unwrap();
        // More news do not make the first wait longer.
        tokio::spawn(async move {
            tokio::time::sleep(WAIT / 2).await;
            sender.send(append(2, None)).unwrap();
            tokio::time::sleep(WAIT).await;
            sender.send(append(2, Some(3))).unwrap();
        });
        assert_eq!(told(next_append(&mut input, WAIT).await), Some((2, 0)));
        // The timer's own grain is a millisecond.
        assert!(began.elapsed() <= WAIT + Duration::from_millis(1), "{:?}", began.elapsed());
        assert_eq!(told(next_append(&mut input, WAIT).await), Some((2, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_replica_is_sent_no_more_than_has_room() {
        let room = Room::new();
        let half = room.of(APPEND_BYTES_IN_FLIGHT_MAX / 2).await.unwrap();
        let too_long = room.of(10 * APPEND_BYTES_IN_FLIGHT_MAX);
        let mut too_long = std::pin::pin!(too_long);
        assert!(timeout(Duration::from_secs(9), &mut too_long).await.is_err(), "half of it is taken");
        drop(half);
        assert!(too_long.await.is_some(), "alone it has room");
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_the_catalogue_go_at_once() {
        let mut input = stream::iter([append(1, None)]).chain(stream::pending());
        let began = Instant::now();
        assert_eq!(told(next_append(&mut input, Duration::ZERO).await), Some((1, 0)));
        assert!(began.elapsed() <= Duration::from_millis(1), "{:?}", began.elapsed());
    }
}
