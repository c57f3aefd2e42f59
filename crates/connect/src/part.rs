//! What of a batch goes in one request: all of it, and then the halves of what failed.

/// Messages of a batch that are asked about together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<T> {
    pub(crate) pieces: Vec<T>,
    /// Whether a request with all of these has failed: they have had their try.
    was_failed: bool,
}

/// Why nothing more is asked about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The connector stops.
    Stopped,
    /// A request might outlast the leases.
    Late,
}

impl<T> Part<T> {
    /// What nobody was asked about yet.
    pub(crate) fn new(pieces: Vec<T>) -> Self {
        Self { pieces, was_failed: false }
    }

    /// The same part with some of its messages.
    pub(crate) fn with(&self, pieces: Vec<T>) -> Self {
        Self { pieces, was_failed: self.was_failed }
    }

    /// Of a part that failed, the first half and the rest.
    pub(crate) fn halves(mut self) -> [Self; 2] {
        let rest = self.pieces.split_off(self.pieces.len().div_ceil(2));
        [self.pieces, rest].map(|pieces| Self { pieces, was_failed: true })
    }

    /// Whether its messages have failed, when nothing more is asked about them. One on which the endpoint takes all of the time would
    /// never be found out otherwise, and come back for ever without a receive spent.
    pub(crate) fn has_failed(&self, ended: Ended) -> bool {
        self.was_failed && ended == Ended::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_never_answers_fails_what_it_was_asked_about() {
        let part = Part::new(vec![1, 2, 3]);
        assert!(!part.has_failed(Ended::Late), "nobody was asked");
        let [first, rest] = part.halves();
        assert_eq!((&first.pieces[..], &rest.pieces[..]), (&[1, 2][..], &[3][..]));
        for half in [&first, &rest] {
            assert!(half.has_failed(Ended::Late) && !half.has_failed(Ended::Stopped));
        }
        // Some of it was given back, and a refusal changes nothing.
        assert!(first.with(vec![2]).has_failed(Ended::Late));
        assert!(first.halves().iter().all(|half| half.has_failed(Ended::Late)));
    }
}
