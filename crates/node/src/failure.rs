//! What a call that was not done says of itself, on every way it can take: between tasks, between nodes, and to clients.

use std::fmt;

use leasehold_catalogue::NodeId;
use leasehold_proto::peer;
use leasehold_proto::v1::{CallError, Outcome, Reason};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::lane::CallFailure;
use crate::limits::RETRY_AFTER_MS;

/// A call without a result. `outcome` is never `Done`.
#[derive(Debug, Clone)]
pub struct Failure {
    pub outcome: Outcome,
    pub reason: Reason,
    pub detail: String,
    /// Zero when waiting does not help.
    pub retry_after_ms: u64,
    /// Who leads the partition, when a follower was asked and knows.
    pub leader: Option<NodeId>,
}

impl Failure {
    /// Nothing happened, for a reason that waiting does not change.
    pub fn not_done(reason: Reason, detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotDone, reason, detail: detail.into(), retry_after_ms: 0, leader: None }
    }

    /// Nothing happened, and it is worth trying again.
    pub fn try_again(reason: Reason, detail: impl Into<String>) -> Self {
        Self { retry_after_ms: RETRY_AFTER_MS, ..Self::not_done(reason, detail) }
    }

    /// It may or may not have happened.
    pub fn unknown(reason: Reason, detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::Unknown, ..Self::try_again(reason, detail) }
    }

    /// This replica does not lead.
    pub fn not_leader(leader: Option<NodeId>) -> Self {
        Self { leader, ..Self::try_again(Reason::NoLeader, "the partition has no leader at this moment") }
    }

    /// After an attempt of unknown outcome, a later refusal does not say that nothing happened.
    pub fn after(mut self, earlier_unknown: bool) -> Self {
        if earlier_unknown {
            self.outcome = Outcome::Unknown;
        }
        self
    }

    pub fn to_peer(&self) -> peer::Failure {
        peer::Failure {
            outcome: self.outcome as u32,
            reason: self.reason as u32,
            detail: self.detail.clone(),
            retry_after_ms: self.retry_after_ms,
            leader_node: self.leader.map_or(0, |leader| leader.0),
        }
    }

    pub fn to_call_error(&self) -> CallError {
        CallError {
            outcome: self.outcome as i32,
            reason: self.reason as i32,
            detail: self.detail.clone(),
            retry_after_ms: self.retry_after_ms,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason.as_str_name(), self.detail)
    }
}

impl std::error::Error for Failure {}

impl From<peer::Failure> for Failure {
    fn from(failure: peer::Failure) -> Self {
        let number = |number: u32| i32::try_from(number).unwrap_or_default();
        Self {
            outcome: match Outcome::try_from(number(failure.outcome)) {
                Ok(Outcome::NotDone) => Outcome::NotDone,
                _ => Outcome::Unknown,
            },
            reason: Reason::try_from(number(failure.reason)).unwrap_or(Reason::None),
            detail: failure.detail,
            retry_after_ms: failure.retry_after_ms,
            leader: (failure.leader_node != 0).then_some(NodeId(failure.leader_node)),
        }
    }
}

impl From<CallFailure> for Failure {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Unreachable(_) => Self::try_again(Reason::NoLeader, failure.to_string()),
            CallFailure::TooLong(_) => Self::not_done(Reason::BatchTooLarge, failure.to_string()),
            CallFailure::Lost(_) => Self::unknown(Reason::NoLeader, failure.to_string()),
            CallFailure::Refused(failure) => failure.into(),
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut metadata = MetadataMap::new();
        metadata.insert("leasehold-reason", MetadataValue::from_static(failure.reason.as_str_name()));
        metadata.insert("leasehold-outcome", MetadataValue::from_static(failure.outcome.as_str_name()));
        if failure.retry_after_ms > 0 {
            metadata.insert("leasehold-retry-after-ms", MetadataValue::from(failure.retry_after_ms));
        }
        Status::with_metadata(code_of(failure.reason), failure.detail, metadata)
    }
}

fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::UnknownQueue | Reason::UnknownNode | Reason::UnknownPartition | Reason::NoRedrive => {
            Code::NotFound
        }
        Reason::QueueExists | Reason::AlreadyInitialised | Reason::RedriveRunning => Code::AlreadyExists,
        Reason::Changed => Code::Aborted,
        Reason::InvalidArgument
        | Reason::MessageTooLarge
        | Reason::BatchTooLarge
        | Reason::GroupRequired
        | Reason::DelayNotAllowed
        | Reason::LeaseTooLong
        | Reason::ReceiptForged => Code::InvalidArgument,
        Reason::QueueFull | Reason::OverLimit | Reason::Busy | Reason::DiskLow => Code::ResourceExhausted,
        Reason::ReceiptStale | Reason::MessageGone | Reason::NotInitialised | Reason::NoDeadLetterQueue => {
            Code::FailedPrecondition
        }
        Reason::TimedOut => Code::DeadlineExceeded,
        Reason::TooSoon => Code::FailedPrecondition,
        Reason::NoLeader | Reason::Stopping => Code::Unavailable,
        Reason::NodeFailed => Code::DataLoss,
        Reason::None => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_after_an_unknown_attempt_is_unknown() {
        let refused = || Failure::not_leader(None);
        assert_eq!(refused().after(false).outcome, Outcome::NotDone);
        assert_eq!(refused().after(true).outcome, Outcome::Unknown);
        assert_eq!(refused().after(true).reason, Reason::NoLeader);
    }
}
