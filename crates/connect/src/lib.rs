//! Hands the messages of a queue to an HTTP endpoint, in batches, as an event-source mapping does.
//!
//! ```text
//!   consumer ─▶ Gathering ─ a full batch, and the Gate lets one more through ─▶ request ─▶ endpoint
//!      ▲            ▲                                                              │
//!      │            └── the next of a message group ◀──┐                           ▼
//!      └──────────────── ack, release, reject ◀─────── settle ◀── each message ◀── answer
//!                                                                  └─ halves ◀── a batch that failed
//! ```
//!
//! It stands above the client crate and adds no rule of queues: leases, receive counts, order and dead letters are the broker's. The
//! forms of requests and answers are a contract, told in docs/connect.md.

#![deny(missing_docs)]

mod answer;
mod connector;
mod endpoint;
mod gate;
mod gathering;
mod numbers;
mod part;
mod request;
mod settings;
mod signature;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tls;
mod work;

pub use connector::Connector;
pub use numbers::{Kind, Numbers, Tally};
pub use request::Form;
pub use settings::{
    BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, CONCURRENCY_MAX, HELD_MESSAGES_MAX, Invalid, KEEP_MAX, Settings,
    TIMEOUT_MAX, WINDOW_MAX,
};
pub use signature::Secrets;
