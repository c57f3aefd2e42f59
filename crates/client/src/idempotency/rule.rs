//! Who may run an effect, decided from what is on record. Every store that keeps its records apart from the effects uses it.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::store::Operation;

/// The version of records that this code writes, and the only one that it reads.
const VERSION: u32 = 1;

/// An operation on record. Its bytes lie in stores that outlive programs: fields are added, never changed.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Record {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The message whose delivery wrote it.
    #[prost(string, tag = "2")]
    message: String,
    #[prost(uint64, tag = "3")]
    fencing_token: u64,
    /// Against other messages; wall time of the writer.
    #[prost(uint64, tag = "4")]
    claimed_until_ms: u64,
    /// The result, once it is done.
    #[prost(bytes = "bytes", optional, tag = "5")]
    done: Option<Bytes>,
}

/// A record that is not of this version, or damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record of an operation cannot be read: {0}")]
pub(super) struct Unreadable(String);

/// What is to be done about an operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Write the claim in the place of what was found.
    Claim,
    Done(Bytes),
    Superseded,
    Busy(Duration),
}

impl Record {
    pub(super) fn claim(operation: &Operation, until_ms: u64) -> Self {
        Self {
            version: VERSION,
            message: operation.message.clone(),
            fencing_token: operation.fencing_token,
            claimed_until_ms: until_ms,
            done: None,
        }
    }

    pub(super) fn with_result(self, result: Bytes) -> Self {
        Self { done: Some(result), ..self }
    }

    pub(super) fn result(&self) -> Option<&Bytes> {
        self.done.as_ref()
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        let record = Self::decode(bytes).map_err(|error| Unreadable(error.to_string()))?;
        if record.version != VERSION {
            return Err(Unreadable(format!("it is of version {}, {VERSION} is known", record.version)));
        }
        Ok(record)
    }
}

/// Deliveries of one message are ordered by their fencing tokens. Those of different messages are not: the first goes on, and
/// the others wait until it is done or was silent for long.
pub(super) fn judge(found: Option<&Record>, operation: &Operation, now_ms: u64) -> Verdict {
    let Some(record) = found else { return Verdict::Claim };
    if let Some(result) = &record.done {
        return Verdict::Done(result.clone());
    }
    if record.message == operation.message {
        let is_later = operation.fencing_token >= record.fencing_token;
        return if is_later { Verdict::Claim } else { Verdict::Superseded };
    }
    match record.claimed_until_ms.checked_sub(now_ms).filter(|left_ms| *left_ms > 0) {
        Some(left_ms) => Verdict::Busy(Duration::from_millis(left_ms)),
        None => Verdict::Claim,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(message: &str, fencing_token: u64) -> Operation {
        Operation { key: "k".to_owned(), message: message.to_owned(), fencing_token }
    }

    #[test]
    fn the_later_delivery_of_a_message_takes_over_and_the_earlier_does_not() {
        let claim = Record::claim(&operation("m", 7), u64::MAX);
        assert_eq!(judge(None, &operation("m", 1), 0), Verdict::Claim);
        assert_eq!(judge(Some(&claim), &operation("m", 6), 0), Verdict::Superseded);
        assert_eq!(judge(Some(&claim), &operation("m", 7), 0), Verdict::Claim);
        assert_eq!(judge(Some(&claim), &operation("m", 8), 0), Verdict::Claim);
    }

    #[test]
    fn another_message_waits_whatever_its_token() {
        let claim = Record::claim(&operation("m", 7), 1_000);
        for fencing_token in [1, 7, 100] {
            let other = operation("n", fencing_token);
            assert_eq!(judge(Some(&claim), &other, 400), Verdict::Busy(Duration::from_millis(600)));
            assert_eq!(judge(Some(&claim), &other, 1_000), Verdict::Claim);
        }
    }

    #[test]
    fn what_is_done_stays_done_for_everybody() {
        let done = Record::claim(&operation("m", 7), 0).with_result(Bytes::from("result"));
        for operation in [operation("m", 1), operation("m", 9), operation("n", 3)] {
            assert_eq!(judge(Some(&done), &operation, u64::MAX), Verdict::Done(Bytes::from("result")));
        }
    }

    #[test]
    fn records_are_read_as_they_were_written_for_ever() {
        let record = Record::claim(&operation("q/1-2", 300), 5).with_result(Bytes::from("r"));
        // These bytes lie in stores.
        let bytes = b"\x08\x01\x12\x05q/1-2\x18\xac\x02\x20\x05\x2a\x01r";
        assert_eq!(record.to_bytes(), bytes.as_slice());
        assert_eq!(Record::from_bytes(bytes), Ok(record));
        assert!(Record::from_bytes(b"\x08\x02").is_err());
        assert!(Record::from_bytes(b"\x08").is_err());
    }
}
