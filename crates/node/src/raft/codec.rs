//! Raft's messages in the words of the peer protocol, both ways.

use bytes::Bytes;
use leasehold_proto::peer;
use leasehold_raft_log::{decode_entry_body, encode_entry_body};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::CommittedLeaderIdOf;
use prost::Message;

use super::{Entry, LogId, TypeConfig, Vote};

/// A message of a peer that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{0}")]
    Frame(#[from] prost::DecodeError),
    #[error("a {0} is missing")]
    Missing(&'static str),
    #[error("an entry is malformed: {0}")]
    Entry(String),
}

pub fn vote_to_peer(vote: &Vote) -> peer::Vote {
    peer::Vote { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

pub fn vote_from_peer(vote: Option<peer::Vote>) -> Result<Vote, CodecError> {
    let vote = vote.ok_or(CodecError::Missing("vote"))?;
    let made = if vote.committed { Vote::new_committed } else { Vote::new };
    Ok(made(vote.term, vote.voted_for))
}

pub fn log_id_to_peer(log_id: &LogId) -> peer::LogId {
    peer::LogId { term: log_id.leader_id.term, index: log_id.index }
}

pub fn log_id_from_peer(log_id: &peer::LogId) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(log_id.term), log_id.index)
}

pub fn append_request(request: AppendEntriesRequest<TypeConfig>, pipeline: u64) -> Bytes {
    let entries = request.entries.iter().map(entry_to_peer).collect();
    let message = peer::AppendRequest {
        vote: Some(vote_to_peer(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_peer),
        entries,
        committed: request.leader_commit.as_ref().map(log_id_to_peer),
        pipeline,
    };
    message.encode_to_vec().into()
}

pub fn append_request_from(
    message: peer::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, CodecError> {
    Ok(AppendEntriesRequest {
        vote: vote_from_peer(message.vote)?,
        prev_log_id: message.previous.as_ref().map(log_id_from_peer),
        entries: message.entries.into_iter().map(entry_from_peer).collect::<Result<_, _>>()?,
        leader_commit: message.committed.as_ref().map(log_id_from_peer),
    })
}

fn entry_to_peer(entry: &Entry) -> peer::Entry {
    peer::Entry {
        term: entry.log_id.leader_id.term,
        index: entry.log_id.index,
        body: encode_entry_body(entry),
    }
}

fn entry_from_peer(entry: peer::Entry) -> Result<Entry, CodecError> {
    let log_id = log_id_from_peer(&peer::LogId { term: entry.term, index: entry.index });
    decode_entry_body(log_id, entry.body).map_err(|error| CodecError::Entry(error.to_string()))
}

/// What a follower says of one append: how far its log matches and is flushed, or why not.
pub type AppendOutcome = Result<Option<LogId>, StreamAppendError<TypeConfig>>;

pub fn append_answer(outcome: &AppendOutcome) -> Bytes {
    use peer::append_answer::Kind;
    let kind = match outcome {
        Ok(matched) => Kind::Matched(peer::Matched { log_id: matched.as_ref().map(log_id_to_peer) }),
        Err(StreamAppendError::Conflict(log_id)) => Kind::Conflict(log_id_to_peer(log_id)),
        Err(StreamAppendError::HigherVote(vote)) => Kind::HigherVote(vote_to_peer(vote)),
    };
    peer::AppendAnswer { kind: Some(kind) }.encode_to_vec().into()
}

pub fn append_answer_from(body: Bytes) -> Result<AppendOutcome, CodecError> {
    use peer::append_answer::Kind;
    match peer::AppendAnswer::decode(body)?.kind.ok_or(CodecError::Missing("outcome"))? {
        Kind::Matched(matched) => Ok(Ok(matched.log_id.as_ref().map(log_id_from_peer))),
        Kind::Conflict(log_id) => Ok(Err(StreamAppendError::Conflict(log_id_from_peer(&log_id)))),
        Kind::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote_from_peer(Some(vote))?))),
    }
}

pub fn vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let message = peer::VoteRequest {
        vote: Some(vote_to_peer(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to_peer),
        leadership_transfer: request.leadership_transfer,
    };
    message.encode_to_vec().into()
}

pub fn vote_request_from(body: Bytes) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let message = peer::VoteRequest::decode(body)?;
    let mut request =
        VoteRequest::new(vote_from_peer(message.vote)?, message.last.as_ref().map(log_id_from_peer));
    request.leadership_transfer = message.leadership_transfer;
    Ok(request)
}

pub fn vote_answer(answer: &VoteResponse<TypeConfig>) -> Bytes {
    let message = peer::VoteAnswer {
        vote: Some(vote_to_peer(&answer.vote)),
        granted: answer.vote_granted,
        last: answer.last_log_id.as_ref().map(log_id_to_peer),
    };
    message.encode_to_vec().into()
}

pub fn vote_answer_from(body: Bytes) -> Result<VoteResponse<TypeConfig>, CodecError> {
    let message = peer::VoteAnswer::decode(body)?;
    let vote = vote_from_peer(message.vote)?;
    Ok(VoteResponse::new(vote, message.last.as_ref().map(log_id_from_peer), message.granted))
}

pub fn transfer_request(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let message = peer::TransferRequest {
        from: Some(vote_to_peer(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id_to_peer),
    };
    message.encode_to_vec().into()
}

pub fn transfer_request_from(body: Bytes) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let message = peer::TransferRequest::decode(body)?;
    let last = message.last.as_ref().map(log_id_from_peer);
    Ok(TransferLeaderRequest::new(vote_from_peer(message.from)?, message.to, last))
}
