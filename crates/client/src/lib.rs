//! The client of Leasehold, an at-least-once distributed work queue.

#![deny(missing_docs)]

mod admin;
mod backoff;
mod call;
mod channels;
mod client;
mod consumer;
mod error;
mod message;
mod messages;
mod producer;
mod routes;
mod session;

pub use client::{Client, ClientBuilder};
pub use consumer::{Consumer, ConsumerBuilder, Delivery, RetryAfter, Settling};
pub use error::Error;
pub use leasehold_proto::v1;
pub use leasehold_proto::v1::{Attribute, MessageId, Origin, Outcome, QueueKind, QueueSettings, Reason};
pub use message::{Lease, Message, NewMessage, ReceiveOptions, Sent};
pub use messages::ItemResults;
pub use producer::{Pending, Producer, ProducerBuilder};
