//! Whether a replica reaches too few of its group's voters for anything to be decided. Raft does not say so for seconds, and lets
//! a leader that was cut off wait for a majority that has elected another one: those who wait for it would wait as long.

use std::future::Future;

use leasehold_proto::v1::Reason;
use tokio::sync::watch;

use crate::failure::Failure;

/// False until told otherwise.
#[derive(Default)]
pub struct CutOff {
    is_so: watch::Sender<bool>,
}

impl CutOff {
    pub fn is_so(&self) -> bool {
        *self.is_so.borrow()
    }

    pub fn set(&self, is_so: bool) {
        self.is_so.send_if_modified(|before| std::mem::replace(before, is_so) != is_so);
    }

    /// An answer of the group, unless it is cut off before: what was asked for may still happen when it no longer is.
    ///
    /// # Errors
    /// Those of the answer, and an unknown outcome.
    pub async fn or_answer<T>(&self, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut is_so = self.is_so.subscribe();
        tokio::select! {
            biased;
            answer = answer => answer,
            // The sender is borrowed here: it lives on.
            _ = is_so.wait_for(|is_so| *is_so) => {
                Err(Failure::unknown(Reason::NoLeader, "the replica was cut off from the others of its group"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use leasehold_proto::v1::Outcome;

    use super::*;

    #[tokio::test]
    async fn who_waits_learns_that_the_outcome_is_unknown() {
        let cut_off = CutOff::default();
        assert_eq!(cut_off.or_answer(ready(Ok(1))).await.unwrap(), 1);
        let waiting = cut_off.or_answer(pending::<Result<u8, Failure>>());
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        cut_off.set(true);
        assert_eq!(waiting.await.unwrap_err().outcome, Outcome::Unknown);
        // What is known is told all the same.
        assert_eq!(cut_off.or_answer(ready(Ok(2))).await.unwrap(), 2);
        cut_off.set(false);
        let waiting = cut_off.or_answer(pending::<Result<u8, Failure>>());
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
    }
}
