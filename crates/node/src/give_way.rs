//! Letting others go first, so that what they are about to add travels along.
//!
//! Entries, writes to a lane and wake-ups cost the same whether they carry one thing or fifty. Who is about to make one lets the
//! tasks that are ready run before: on an idle node there are none and nothing is lost, on a busy one the batch grows with the load.
//! No timer is involved.

use std::task::{Context, Poll};

/// Goes on when every task of this thread that is ready now has run.
pub async fn give_way() {
    let mut turn = Turn::default();
    std::future::poll_fn(|context| if turn.was_given(context) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

/// For what is polled: whether the others had their turn.
#[derive(Debug, Default)]
pub struct Turn {
    is_given: bool,
}

impl Turn {
    /// Every second time it is true; before, whoever polls has to return `Pending` and is polled again.
    pub fn was_given(&mut self, context: &mut Context<'_>) -> bool {
        self.is_given = !self.is_given;
        if self.is_given {
            context.waker().wake_by_ref();
        }
        !self.is_given
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn whoever_is_ready_goes_first() {
        let said = RefCell::new(Vec::new());
        let polite = async {
            give_way().await;
            said.borrow_mut().push("polite");
        };
        let others = async {
            said.borrow_mut().push("other");
            give_way().await;
            said.borrow_mut().push("other again");
        };
        futures::future::join(polite, others).await;
        assert_eq!(*said.borrow(), ["other", "polite", "other again"]);
    }
}
