//! What clients and other nodes call. Each call is checked here, split by shard, brought to the leaders, and put together again.

mod cluster;
mod lookup;
mod messages;
mod peer;
mod publish;
mod pull;
mod queues;
mod receive;
mod send;
mod settle;
mod validate;

#[cfg(feature = "simulation")]
pub use peer::{serve_lane, take_snapshot};
#[cfg(feature = "simulation")]
pub use queues::{create, describe};
#[cfg(feature = "simulation")]
pub use receive::receive;
#[cfg(feature = "simulation")]
pub use send::send;
#[cfg(feature = "simulation")]
pub use settle::{Settle, settle};

pub use cluster::ClusterService;
pub use messages::MessagesService;
pub use peer::PeerService;
pub use queues::QueuesService;
