//! What peers ask of the groups of this node: appends in order, votes and leader transfers.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use leasehold_proto::peer::{self, Failure, TransferAnswer};
use openraft::raft::AppendEntriesRequest;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::codec;
use super::election::VotePhase;
use super::group::Group;
use super::{GroupId, TypeConfig};
use crate::lane::{Answers, Frame, FrameKind};

/// Finds the replica that a Raft message is meant for.
pub trait GroupDirectory: Send + Sync + 'static {
    /// The local replica of `group` whose Raft id is `replica`.
    fn find(&self, group: GroupId, replica: u64) -> Option<Group>;
}

/// The append pipelines of one inbound lane: each is an ordered stream from one leader to one replica.
pub struct Pipelines<D> {
    directory: Arc<D>,
    open: HashMap<(u32, u64, u64), mpsc::UnboundedSender<Append>>,
}

struct Append {
    call: u64,
    request: AppendEntriesRequest<TypeConfig>,
}

impl<D: GroupDirectory> Pipelines<D> {
    pub fn new(directory: Arc<D>) -> Self {
        Self { directory, open: HashMap::new() }
    }

    /// Hands an append to its replica, in the order of these calls.
    pub fn append(&mut self, frame: Frame, answers: &Answers) {
        let call = frame.call;
        let decoded =
            peer::AppendRequest::decode(frame.body).map_err(codec::CodecError::from).and_then(|message| {
                let pipeline = message.pipeline;
                Ok((pipeline, codec::append_request_from(message)?))
            });
        let (pipeline, request) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return refuse(answers, call, format!("malformed append: {error}")),
        };
        let key = (frame.group, frame.target, pipeline);
        let append = match self.open.get(&key) {
            Some(open) => match open.send(Append { call, request }) {
                Ok(()) => return,
                Err(ended) => ended.0,
            },
            None => Append { call, request },
        };
        let Some(group) = self.directory.find(GroupId(frame.group), frame.target) else {
            return refuse(
                answers,
                call,
                format!("group {} has no replica {} here", frame.group, frame.target),
            );
        };
        self.open.retain(|_, open| !open.is_closed());
        let (sender, queue) = mpsc::unbounded_channel();
        // The receiver is held by the task that starts below.
        let _ = sender.send(append);
        self.open.insert(key, sender);
        tokio::spawn(run_pipeline(group, queue, answers.clone()));
    }
}

async fn run_pipeline(group: Group, queue: mpsc::UnboundedReceiver<Append>, answers: Answers) {
    let (calls, mut answered) = mpsc::unbounded_channel();
    let requests = UnboundedReceiverStream::new(queue).map(move |append| {
        // When the outcomes have ended nobody waits for the call either.
        let _ = calls.send(append.call);
        append.request
    });
    let mut outcomes = group.stream_append(requests.boxed());
    while let Some(outcome) = outcomes.next().await {
        let Some(call) = answered.recv().await else { return };
        match outcome {
            Ok(outcome) => answers.done(call, codec::append_answer(&outcome)),
            Err(fatal) => refuse(&answers, call, format!("the group has stopped: {fatal}")),
        }
    }
    // A rejected append ends the stream; what was queued behind it is void.
    answered.close();
    while let Some(call) = answered.recv().await {
        refuse(&answers, call, "an earlier append of this pipeline was rejected".to_owned());
    }
}

/// Serves a vote, a pre-vote or a leader transfer.
pub async fn serve_call(group: Group, kind: FrameKind, call: u64, body: Bytes, answers: Answers) {
    match answer_call(&group, kind, body).await {
        Ok(body) => answers.done(call, body),
        Err(detail) => refuse(&answers, call, detail),
    }
}

async fn answer_call(group: &Group, kind: FrameKind, body: Bytes) -> Result<Bytes, String> {
    match kind {
        FrameKind::Vote | FrameKind::PreVote => {
            let request = codec::vote_request_from(body).map_err(|error| error.to_string())?;
            let answer = group
                .vote(request, if kind == FrameKind::PreVote { VotePhase::Before } else { VotePhase::Real })
                .await?;
            Ok(codec::vote_answer(&answer))
        }
        FrameKind::TransferLeader => {
            let request = codec::transfer_request_from(body).map_err(|error| error.to_string())?;
            let outcome = group.handle_transfer(request).await?;
            let detail = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Ok(TransferAnswer { accepted: outcome.is_ok(), detail }.encode_to_vec().into())
        }
        other => Err(format!("{other:?} is not a call to a group")),
    }
}

fn refuse(answers: &Answers, call: u64, detail: String) {
    answers.failed(call, &Failure { detail, ..Failure::default() });
}
