//! What peers ask of this node over their lanes.

use std::collections::HashMap;
use std::sync::Arc;

use leasehold_catalogue::PartitionId;
use leasehold_partition::{QueueId, Reply};
use leasehold_proto::peer;
use leasehold_proto::v1::Reason;
use prost::Message as _;
use tokio::task::AbortHandle;

use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::failure::Failure;
use crate::in_turn;
use crate::lane::{Answers, Dispatch, Frame, FrameKind};
use crate::raft::{Group, GroupDirectory, GroupId, Pipelines, serve_call};
use crate::replica::CommandCall;
use crate::sweep::Sweep;

impl GroupDirectory for Core {
    fn find(&self, group: GroupId, replica: u64) -> Option<Group> {
        let found = if group == CATALOGUE_GROUP {
            Some(self.catalogue.group.clone())
        } else {
            self.router.replica(PartitionId(group.0 - 1)).map(|replica| replica.group().clone())
        };
        found.filter(|found| found.replica() == replica)
    }
}

/// Serves one inbound lane.
pub struct Inbound {
    core: Arc<Core>,
    pipelines: Pipelines<Core>,
    /// Questions whose answers are being worked out, so that they can be cancelled.
    questions: HashMap<u64, AbortHandle>,
    sweep: Sweep,
}

impl Inbound {
    pub fn new(core: Arc<Core>) -> Self {
        let pipelines = Pipelines::new(core.clone());
        Self { core, pipelines, questions: HashMap::new(), sweep: Sweep::default() }
    }

    fn vote(&self, frame: Frame, kind: FrameKind, answers: &Answers) {
        match self.core.find(GroupId(frame.group), frame.target) {
            Some(group) => {
                drop(tokio::spawn(serve_call(group, kind, frame.call, frame.body, answers.clone())))
            }
            None => {
                let detail = format!("group {} has no replica {} here", frame.group, frame.target);
                answers.failed(frame.call, &Failure::not_done(Reason::UnknownPartition, detail).to_peer());
            }
        }
    }

    fn question(&mut self, frame: Frame, answers: &Answers) {
        let (core, answers, call) = (self.core.clone(), answers.clone(), frame.call);
        let task = tokio::spawn(async move {
            let answer = match peer::Query::decode(frame.body) {
                Ok(query) => core.router.answer_here(partition_of(frame.group), query).await,
                Err(error) => Err(malformed(&error)),
            };
            match answer {
                Ok(body) => answers.done(call, body),
                Err(failure) => answers.failed(call, &failure.to_peer()),
            }
        });
        if self.sweep.is_due(self.questions.len()) {
            self.questions.retain(|_, task| !task.is_finished());
            self.sweep.left(self.questions.len());
        }
        self.questions.insert(call, task.abort_handle());
    }
}

impl Dispatch for Inbound {
    fn dispatch(&mut self, frame: Frame, kind: FrameKind, answers: &Answers) {
        match kind {
            FrameKind::Append => self.pipelines.append(frame, answers),
            FrameKind::Vote | FrameKind::PreVote | FrameKind::TransferLeader => {
                self.vote(frame, kind, answers)
            }
            FrameKind::Command => {
                in_turn::begin(serve_command(self.core.clone(), frame, answers.clone()));
            }
            FrameKind::Query => self.question(frame, answers),
            FrameKind::Cancel => {
                if let Some(task) = self.questions.remove(&frame.call) {
                    task.abort();
                }
            }
            FrameKind::Catalogue => {
                drop(tokio::spawn(serve_catalogue(self.core.clone(), frame, answers.clone())))
            }
            FrameKind::Liveness | FrameKind::Answer | FrameKind::Failure => {
                let detail = format!("{kind:?} is not a call");
                answers.failed(frame.call, &Failure::not_done(Reason::InvalidArgument, detail).to_peer());
            }
        }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        // The peer has hung up: nobody waits for these.
        self.questions.values().for_each(AbortHandle::abort);
    }
}

async fn serve_command(core: Arc<Core>, frame: Frame, answers: Answers) {
    let outcome = match peer::Command::decode(frame.body) {
        Ok(command) => {
            let call = CommandCall {
                queue: QueueId(command.queue),
                command: command.command,
                promised_leases_ms: command.promised_leases_ms,
            };
            core.router.command_here(partition_of(frame.group), call).await
        }
        Err(error) => Err(malformed(&error)),
    };
    match outcome {
        Ok(reply) => answers.done(frame.call, encoded(&reply).into()),
        Err(failure) => answers.failed(frame.call, &failure.to_peer()),
    }
}

async fn serve_catalogue(core: Arc<Core>, frame: Frame, answers: Answers) {
    match core.catalogue.answer_here(frame.body).await {
        Ok(body) => answers.done(frame.call, body),
        Err(failure) => answers.failed(frame.call, &failure.to_peer()),
    }
}

fn encoded(reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(reply.len_bytes_about());
    reply.encode_into(&mut bytes);
    bytes
}

fn partition_of(group: u32) -> PartitionId {
    PartitionId(group.saturating_sub(1))
}

fn malformed(error: &prost::DecodeError) -> Failure {
    Failure::not_done(Reason::InvalidArgument, format!("a peer's frame is malformed: {error}"))
}
