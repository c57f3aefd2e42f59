//! What a call that has no result says of itself.

use std::error::Error as _;
use std::time::Duration;

use leasehold_proto::v1::{CallError, Outcome, Reason};
use tonic::{Code, Status};

/// Why something was not done, or is not known to be done.
///
/// ```
/// use leasehold_client::{Client, Outcome, Reason};
///
/// let none: [&str; 0] = [];
/// let error = Client::connect(none).unwrap_err();
/// assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::InvalidArgument));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}: {detail}", .outcome.as_str_name(), .reason.as_str_name())]
#[non_exhaustive]
pub struct Error {
    /// `NotDone`: nothing happened. `Unknown`: it may have happened; never `Done`.
    pub outcome: Outcome,
    /// What a program can match; `None` when only the connection failed.
    pub reason: Reason,
    /// For people.
    pub detail: String,
    /// The server's hint when waiting helps.
    pub retry_after: Option<Duration>,
    pub(crate) origin: Origin,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Server,
    /// The connection, a proxy, or a time limit of this client: another node may do better.
    Transport,
    /// A node that belongs to no cluster, while another may.
    Outsider,
}

impl Error {
    pub(crate) fn not_done(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::NotDone,
            reason,
            detail: detail.into(),
            retry_after: None,
            origin: Origin::Server,
        }
    }

    pub(crate) fn transport(outcome: Outcome, reason: Reason, detail: impl Into<String>) -> Self {
        Self { outcome, origin: Origin::Transport, ..Self::not_done(reason, detail) }
    }

    /// Of a node that belongs to no cluster, where another may do better.
    pub(crate) fn of_an_outsider(self) -> Self {
        Self { origin: Origin::Outsider, ..self }
    }

    pub(crate) fn timed_out(detail: impl Into<String>) -> Self {
        Self::transport(Outcome::Unknown, Reason::TimedOut, detail)
    }

    pub(crate) fn stopped(detail: impl Into<String>) -> Self {
        Self::not_done(Reason::Stopping, detail)
    }

    /// An item of an answer, or `None` when it was done.
    pub(crate) fn of_item(outcome: i32, reason: i32, detail: &str) -> Option<Self> {
        let outcome = Outcome::try_from(outcome).unwrap_or(Outcome::Unknown);
        let reason = Reason::try_from(reason).unwrap_or(Reason::None);
        (outcome != Outcome::Done).then(|| Self { outcome, ..Self::not_done(reason, detail) })
    }

    /// Whether the same request may have another result soon.
    pub(crate) fn is_transient(&self) -> bool {
        let passes = matches!(
            self.reason,
            Reason::Busy | Reason::NoLeader | Reason::Stopping | Reason::NodeFailed | Reason::TimedOut
        );
        let is_open = self.outcome == Outcome::Unknown && self.reason == Reason::None;
        passes || is_open || self.retry_after.is_some() || self.origin != Origin::Server
    }

    /// Whether to ask another node, and for the routes anew.
    pub(crate) fn is_of_the_node(&self) -> bool {
        self.origin != Origin::Server || matches!(self.reason, Reason::Stopping | Reason::NodeFailed)
    }

    /// Whether the leaders are no longer where they were.
    pub(crate) fn spoils_routes(&self) -> bool {
        self.is_of_the_node() || self.reason == Reason::NoLeader
    }

    /// After an attempt of unknown outcome, a later refusal does not say that nothing happened.
    pub(crate) fn after(mut self, earlier_unknown: bool) -> Self {
        if earlier_unknown {
            self.outcome = Outcome::Unknown;
        }
        self
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        let outcome = match Outcome::try_from(error.outcome) {
            Ok(Outcome::NotDone) => Outcome::NotDone,
            _ => Outcome::Unknown,
        };
        let reason = Reason::try_from(error.reason).unwrap_or(Reason::None);
        let retry_after = (error.retry_after_ms > 0).then(|| Duration::from_millis(error.retry_after_ms));
        Self { outcome, retry_after, ..Self::not_done(reason, error.detail) }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let text = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
        let Some(reason) = text("leasehold-reason").and_then(Reason::from_str_name) else {
            return without_metadata(&status);
        };
        let outcome = match text("leasehold-outcome").and_then(Outcome::from_str_name) {
            Some(Outcome::NotDone) => Outcome::NotDone,
            _ => Outcome::Unknown,
        };
        let retry_after_ms = text("leasehold-retry-after-ms").and_then(|value| value.parse().ok());
        let retry_after = retry_after_ms.map(Duration::from_millis);
        Self { outcome, retry_after, ..Self::not_done(reason, status.message()) }
    }
}

/// A status that no Leasehold node wrote: the transport's, or of a request that never reached a service.
fn without_metadata(status: &Status) -> Error {
    let detail = format!("{:?}: {}", status.code(), causes(status));
    match status.code() {
        Code::InvalidArgument => Error::not_done(Reason::InvalidArgument, detail),
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => {
            Error::not_done(Reason::None, detail)
        }
        // A message over the limit of either side; trying again changes nothing.
        Code::OutOfRange => {
            Error { outcome: Outcome::Unknown, ..Error::not_done(Reason::BatchTooLarge, detail) }
        }
        _ if never_connected(status) => Error::transport(Outcome::NotDone, Reason::None, detail),
        _ => Error::transport(Outcome::Unknown, Reason::None, detail),
    }
}

/// What went wrong, and below it why: a connection that broke may have been refused for its certificate.
fn causes(status: &Status) -> String {
    let mut told = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
        source = error.source();
    }
    told
}

fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
