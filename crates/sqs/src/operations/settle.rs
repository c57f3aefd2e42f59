//! What deleting messages and changing their visibility have in common: handles are read, the node settles, and each has its outcome.

use bytes::Bytes;
use leasehold_proto::v1::{Outcome, SettleOutcome};

use crate::error::{Error, of_node};
use crate::text::Text;

/// Entries with the receipts of those whose handles can be read; the others have their errors already.
pub struct Entries<'a, R> {
    pub ids: Vec<Text<'a>>,
    pub outcomes: Vec<Result<(), Error>>,
    pub receipts: Vec<R>,
}

impl<'a, R> Entries<'a, R> {
    pub fn read(entries: impl ExactSizeIterator<Item = (Text<'a>, Result<R, Error>)>) -> Self {
        let len = entries.len();
        let mut read = Self {
            ids: Vec::with_capacity(len),
            outcomes: Vec::with_capacity(len),
            receipts: Vec::with_capacity(len),
        };
        for (id, receipt) in entries {
            read.ids.push(id);
            read.outcomes.push(receipt.map(|receipt| read.receipts.push(receipt)));
        }
        read
    }

    /// The outcome of each entry, with the node's for those that it was asked about.
    pub fn with(
        self,
        settled: Vec<Result<(), Error>>,
    ) -> impl Iterator<Item = (Text<'a>, Result<(), Error>)> {
        let mut settled = settled.into_iter();
        let outcomes = self
            .outcomes
            .into_iter()
            .map(move |outcome| outcome.and_then(|()| settled.next().unwrap_or(Ok(()))));
        self.ids.into_iter().zip(outcomes)
    }
}

/// The node's outcome as a result.
pub fn result_of(outcome: SettleOutcome) -> Result<(), SettleOutcome> {
    if outcome.outcome() == Outcome::Done { Ok(()) } else { Err(outcome) }
}

pub fn error_of(outcome: SettleOutcome) -> Error {
    of_node(outcome.outcome(), outcome.reason(), outcome.detail)
}

/// The handle of an entry.
pub fn handle(handle: Option<&str>) -> Result<Bytes, Error> {
    match handle.filter(|handle| !handle.is_empty()) {
        Some(handle) => crate::receipt_handle::read(handle),
        None => Err(Error::missing("ReceiptHandle")),
    }
}
