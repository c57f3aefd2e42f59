//! What a request can end with, in the words of both protocols.
//!
//! The codes and statuses are those of the API reference ("Errors" of each action, and "Common Errors"); the code of the Query protocol
//! travels with JSON too, in `x-amzn-query-error`, where SDKs look for it.

use leasehold_node::Failure;
use leasehold_proto::v1::{Outcome, Reason};

/// A request that was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", self.code())]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

macro_rules! kinds {
    ($($kind:ident: $shape:literal, $code:literal, $status:literal;)*) => {
        /// The kinds of errors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The name of the shape in JSON, the code in the Query protocol, the HTTP status.
            const fn row(self) -> (&'static str, &'static str, u16) {
                match self {
                    $(Self::$kind => ($shape, $code, $status),)*
                }
            }
        }
    };
}

kinds! {
    QueueDoesNotExist: "com.amazonaws.sqs#QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", 400;
    QueueDeletedRecently: "com.amazonaws.sqs#QueueDeletedRecently", "AWS.SimpleQueueService.QueueDeletedRecently", 400;
    QueueNameExists: "com.amazonaws.sqs#QueueNameExists", "QueueAlreadyExists", 400;
    PurgeQueueInProgress: "com.amazonaws.sqs#PurgeQueueInProgress", "AWS.SimpleQueueService.PurgeQueueInProgress", 403;
    BatchEntryIdsNotDistinct: "com.amazonaws.sqs#BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct", 400;
    BatchRequestTooLong: "com.amazonaws.sqs#BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", 400;
    EmptyBatchRequest: "com.amazonaws.sqs#EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest", 400;
    InvalidBatchEntryId: "com.amazonaws.sqs#InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId", 400;
    TooManyEntriesInBatchRequest: "com.amazonaws.sqs#TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", 400;
    MessageNotInflight: "com.amazonaws.sqs#MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", 400;
    UnsupportedOperation: "com.amazonaws.sqs#UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation", 400;
    OverLimit: "com.amazonaws.sqs#OverLimit", "OverLimit", 403;
    RequestThrottled: "com.amazonaws.sqs#RequestThrottled", "RequestThrottled", 403;
    InvalidAddress: "com.amazonaws.sqs#InvalidAddress", "InvalidAddress", 404;
    InvalidAttributeName: "com.amazonaws.sqs#InvalidAttributeName", "InvalidAttributeName", 400;
    InvalidAttributeValue: "com.amazonaws.sqs#InvalidAttributeValue", "InvalidAttributeValue", 400;
    InvalidMessageContents: "com.amazonaws.sqs#InvalidMessageContents", "InvalidMessageContents", 400;
    ReceiptHandleIsInvalid: "com.amazonaws.sqs#ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", 404;
    ResourceNotFound: "com.amazonaws.sqs#ResourceNotFoundException", "ResourceNotFoundException", 404;
    InvalidParameterValue: "com.amazonaws.sqs#InvalidParameterValue", "InvalidParameterValue", 400;
    MissingParameter: "com.amazonaws.sqs#MissingParameter", "MissingParameter", 400;
    InvalidAction: "com.amazon.coral.service#UnknownOperationException", "InvalidAction", 400;
    MissingAction: "com.amazon.coral.service#UnknownOperationException", "MissingAction", 400;
    Malformed: "com.amazon.coral.service#SerializationException", "MalformedInput", 400;
    TooLarge: "com.amazon.coral.service#RequestEntityTooLargeException", "RequestEntityTooLarge", 413;
    MissingAuthentication: "com.amazon.coral.service#MissingAuthenticationTokenException", "MissingAuthenticationToken", 403;
    IncompleteSignature: "com.amazon.coral.service#IncompleteSignatureException", "IncompleteSignature", 400;
    UnknownKey: "com.amazon.coral.service#UnrecognizedClientException", "InvalidClientTokenId", 403;
    SignatureDoesNotMatch: "com.amazon.coral.service#InvalidSignatureException", "SignatureDoesNotMatch", 403;
    RequestExpired: "com.amazon.coral.service#RequestExpired", "RequestExpired", 400;
    InternalFailure: "com.amazon.coral.service#InternalFailure", "InternalFailure", 500;
    Unavailable: "com.amazon.coral.service#ServiceUnavailableException", "ServiceUnavailable", 503;
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A parameter that the request lacks.
    pub fn missing(parameter: &str) -> Self {
        Self::new(Kind::MissingParameter, format!("The request must contain the parameter {parameter}."))
    }

    /// A parameter whose value is not allowed.
    pub fn value(parameter: &str, value: impl std::fmt::Display, reason: &str) -> Self {
        let message = format!("Value {value} for parameter {parameter} is invalid. Reason: {reason}");
        Self::new(Kind::InvalidParameterValue, message)
    }

    pub fn shape(&self) -> &'static str {
        self.kind.row().0
    }

    /// The code of the Query protocol, which entries of batches have too.
    pub fn code(&self) -> &'static str {
        self.kind.row().1
    }

    pub fn status(&self) -> u16 {
        self.kind.row().2
    }

    pub fn is_senders(&self) -> bool {
        self.status() < 500
    }

    /// `Sender` or `Receiver`: whose fault it is.
    pub fn fault(&self) -> &'static str {
        if self.is_senders() { "Sender" } else { "Receiver" }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        of_node(failure.outcome, failure.reason, failure.detail)
    }
}

/// The error of a whole call, or of one entry of a batch, that the node did not do.
pub fn of_node(outcome: Outcome, reason: Reason, detail: String) -> Error {
    let kind = match reason {
        Reason::UnknownQueue => {
            return Error::new(Kind::QueueDoesNotExist, "The specified queue does not exist.");
        }
        // Nobody knows whether it happened, whatever came after.
        _ if outcome == Outcome::Unknown => Kind::Unavailable,
        Reason::QueueExists => Kind::QueueNameExists,
        Reason::InvalidArgument
        | Reason::MessageTooLarge
        | Reason::LeaseTooLong
        | Reason::DelayNotAllowed
        | Reason::MessageGone => Kind::InvalidParameterValue,
        Reason::BatchTooLarge => Kind::BatchRequestTooLong,
        Reason::GroupRequired => Kind::MissingParameter,
        Reason::ReceiptForged => Kind::ReceiptHandleIsInvalid,
        Reason::ReceiptStale => Kind::MessageNotInflight,
        Reason::OverLimit | Reason::QueueFull => Kind::OverLimit,
        Reason::Busy => Kind::RequestThrottled,
        Reason::RedriveRunning => Kind::UnsupportedOperation,
        Reason::NoRedrive => Kind::ResourceNotFound,
        Reason::UnknownNode
        | Reason::UnknownPartition
        | Reason::AlreadyInitialised
        | Reason::NoDeadLetterQueue
        | Reason::None => Kind::InternalFailure,
        Reason::NoLeader
        | Reason::DiskLow
        | Reason::NotInitialised
        | Reason::TimedOut
        | Reason::Stopping
        | Reason::NodeFailed
        | Reason::TooSoon
        | Reason::Changed => Kind::Unavailable,
    };
    Error::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_shape_a_code_and_a_status() {
        for kind in Kind::ALL {
            let error = Error::new(*kind, "why");
            assert!(error.shape().starts_with("com.amazon") && error.shape().contains('#'), "{error}");
            assert!((400..=503).contains(&error.status()), "{error}");
            assert!(!error.code().is_empty());
            assert_eq!(error.is_senders(), error.fault() == "Sender");
        }
    }

    /// SDKs correct their clocks by the date of an answer whose error has one of a few names.
    #[test]
    fn a_wrong_clock_has_the_name_that_sdks_know() {
        let shape = Error::new(Kind::RequestExpired, "late").shape();
        assert_eq!(shape.split_once('#').map(|(_, name)| name), Some("RequestExpired"));
    }

    #[test]
    fn an_unknown_outcome_is_worth_another_try_and_a_missing_queue_is_not() {
        let of = |outcome, reason| of_node(outcome, reason, String::new()).kind;
        assert_eq!(of(Outcome::Unknown, Reason::NoLeader), Kind::Unavailable);
        assert_eq!(of(Outcome::Unknown, Reason::InvalidArgument), Kind::Unavailable);
        assert_eq!(of(Outcome::NotDone, Reason::UnknownQueue), Kind::QueueDoesNotExist);
        assert_eq!(of(Outcome::NotDone, Reason::Busy), Kind::RequestThrottled);
    }
}
