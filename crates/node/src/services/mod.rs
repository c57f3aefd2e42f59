//! What clients and other nodes call. Each call is checked here, split by shard, brought to the leaders, and put together again.

mod backup;
mod cluster;
mod describe;
mod founding;
mod lookup;
mod messages;
mod peer;
mod publish;
mod pull;
mod pushed;
mod queue_changes;
mod queues;
mod receive;
mod redrive;
mod send;
mod settle;
mod validate;

use futures::future::join_all;
use leasehold_proto::v1::Reason;

use crate::failure::Failure;

pub use cluster::ClusterService;
pub use describe::{Counting, describe};
pub use lookup::queue as look_up_queue;
pub use messages::MessagesService;
#[cfg(feature = "simulation")]
pub use peer::take_snapshot;
pub use peer::{PeerService, serve_lane};
pub use queue_changes::{create, delete, list, list_sources, purge, set};
pub use queues::QueuesService;
pub use receive::receive;
pub use redrive::{cancel as cancel_redrive, start as start_redrive};
pub use send::send;
pub use settle::{Settle, settle};

/// Does all parts of a request at the same time. Most have one, which needs no task list.
async fn each<P: Future>(mut parts: impl ExactSizeIterator<Item = P>) -> Vec<P::Output> {
    match (parts.next(), parts.len()) {
        (Some(only), 0) => vec![only.await],
        (first, _) => join_all(first.into_iter().chain(parts)).await,
    }
}

/// Puts what became of one part of a batch where its items stand in the batch.
fn place<T>(
    outcomes: &mut [T],
    places: impl ExactSizeIterator<Item = usize>,
    done: Result<Vec<T>, Failure>,
    failed: impl Fn(&Failure) -> T,
) {
    let asked = places.len();
    // The reply that is remembered for a request's name may be that of other items.
    let done =
        done.and_then(|done| if done.len() == asked { Ok(done) } else { Err(miscounted(done.len(), asked)) });
    match done {
        Ok(done) => places.zip(done).for_each(|(at, outcome)| outcomes[at] = outcome),
        Err(failure) => places.for_each(|at| outcomes[at] = failed(&failure)),
    }
}

fn miscounted(answered: usize, asked: usize) -> Failure {
    let detail = format!("an answer for {answered} items to a request of {asked}: its id is that of another");
    Failure::unknown(Reason::None, detail)
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1::Outcome;

    use super::*;

    #[test]
    fn an_answer_for_another_number_of_items_is_the_answer_of_none() {
        let placed = |done: Result<Vec<Outcome>, Failure>| {
            let mut outcomes = [Outcome::NotDone; 4];
            place(&mut outcomes, [3, 1].into_iter(), done, |failure| failure.outcome);
            outcomes
        };
        let (done, not_done, unknown) = (Outcome::Done, Outcome::NotDone, Outcome::Unknown);
        assert_eq!(placed(Ok(vec![done, unknown])), [not_done, unknown, not_done, done]);
        for count in [0, 1, 3] {
            assert_eq!(placed(Ok(vec![done; count])), [not_done, unknown, not_done, unknown]);
        }
        assert_eq!(placed(Err(Failure::not_leader(None))), [not_done; 4]);
    }
}
