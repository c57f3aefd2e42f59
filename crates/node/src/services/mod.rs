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
mod queue_changes;
mod queues;
mod receive;
mod redrive;
mod send;
mod settle;
mod validate;

use futures::future::join_all;

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
