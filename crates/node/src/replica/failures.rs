//! What a leader says when it cannot do what it was asked.

use leasehold_partition::Reply;
use leasehold_proto::v1::Reason;

use crate::failure::Failure;
use crate::raft::ProposeError;

pub fn propose_failure(error: &ProposeError) -> Failure {
    match error {
        ProposeError::NotAppended => Failure::not_leader(None),
        ProposeError::Unknown => Failure::unknown(Reason::NoLeader, error.to_string()),
        ProposeError::Stopped(_) => Failure::unknown(Reason::NodeFailed, error.to_string()),
    }
}

pub fn invalid(error: &leasehold_partition::DecodeError) -> Failure {
    Failure::not_done(Reason::InvalidArgument, error.to_string())
}

pub fn behind() -> Failure {
    Failure::try_again(Reason::NoLeader, "the leader's copy of the catalogue is behind")
}

pub fn stopping() -> Failure {
    Failure::try_again(Reason::Stopping, "the node is stopping")
}

pub fn receive_refused(reply: &Reply) -> Failure {
    match reply {
        Reply::OverLimit => {
            Failure::try_again(Reason::OverLimit, "too many messages of the queue are in flight")
        }
        Reply::Refused { reason } => super::refusal(*reason),
        other => Failure::unknown(Reason::None, format!("an unexpected reply: {other:?}")),
    }
}
