//! What all batches have in common: their ids, their limits, and entries that fail one by one.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::absent::Batch;
use crate::error::{Error, Kind};
use crate::limits::{BATCH_ENTRIES_MAX, BATCH_ID_CHARACTERS_MAX};
use crate::text::Text;

/// Entries that were done, and those that were not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Outcome<'a, D> {
    pub successful: Vec<D>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Failed<'a> {
    id: Text<'a>,
    sender_fault: bool,
    code: &'static str,
    message: String,
}

/// An entry that was done and has nothing else to say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DoneEntry<'a> {
    pub id: Text<'a>,
}

impl<'a, D> Outcome<'a, D> {
    /// With room for `entries` that are done.
    pub fn of(entries: usize) -> Self {
        Self { successful: Vec::with_capacity(entries), failed: Vec::new() }
    }

    /// Adds the outcome of an entry; `done` makes of it what the client is told.
    pub fn add<T>(&mut self, id: Text<'a>, outcome: Result<T, Error>, done: impl FnOnce(Text<'a>, T) -> D) {
        match outcome {
            Ok(outcome) => self.successful.push(done(id, outcome)),
            Err(error) => self.failed.push(Failed {
                id,
                sender_fault: error.is_senders(),
                code: error.code(),
                message: error.message,
            }),
        }
    }
}

/// The entries of a batch, whose ids are right.
///
/// # Errors
/// The errors of a batch as a whole.
pub fn checked<T>(batch: Batch<T>, id: impl Fn(&T) -> Option<&str>) -> Result<Vec<T>, Error> {
    check(batch.count, batch.kept.iter().map(id))?;
    Ok(batch.kept)
}

fn check<'a>(entries: usize, ids: impl Iterator<Item = Option<&'a str>>) -> Result<(), Error> {
    if entries == 0 {
        let message = "There should be at least one entry in the request.";
        return Err(Error::new(Kind::EmptyBatchRequest, message));
    }
    if entries > BATCH_ENTRIES_MAX {
        let message = format!(
            "Maximum number of entries per request are {BATCH_ENTRIES_MAX}. You have sent {entries}."
        );
        return Err(Error::new(Kind::TooManyEntriesInBatchRequest, message));
    }
    let mut seen = BTreeSet::new();
    for id in ids {
        let id = id.ok_or_else(|| Error::missing("Id"))?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=BATCH_ID_CHARACTERS_MAX).contains(&id.len()) || !id.bytes().all(allowed) {
            let message = "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.";
            return Err(Error::new(Kind::InvalidBatchEntryId, message));
        }
        if !seen.insert(id) {
            return Err(Error::new(Kind::BatchEntryIdsNotDistinct, format!("Id {id} repeated.")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_few() {
        let check =
            |ids: &[&str]| check(ids.len(), ids.iter().map(|id| Some(*id))).map_err(|error| error.kind);
        assert_eq!(check(&["a", "b_-9"]), Ok(()));
        assert_eq!(check(&[]), Err(Kind::EmptyBatchRequest));
        assert_eq!(check(&["a"; 11]), Err(Kind::TooManyEntriesInBatchRequest));
        assert_eq!(check(&["a", "a"]), Err(Kind::BatchEntryIdsNotDistinct));
        for wrong in ["", "a b", "ü", &"a".repeat(81)] {
            assert_eq!(check(&[wrong]), Err(Kind::InvalidBatchEntryId), "{wrong}");
        }
        let none = super::check(1, [None].into_iter()).unwrap_err();
        assert_eq!(none.kind, Kind::MissingParameter);
    }

    #[test]
    fn a_batch_that_is_too_long_is_told_its_length() {
        let batch = Batch { kept: vec!["a"; BATCH_ENTRIES_MAX], count: 2_800_000 };
        let error = checked(batch, |id| Some(*id)).unwrap_err();
        assert_eq!(error.kind, Kind::TooManyEntriesInBatchRequest);
        assert!(error.message.ends_with("You have sent 2800000."), "{error}");
    }
}
