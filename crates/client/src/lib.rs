//! The client of Leasehold, an at-least-once distributed work queue.
//!
//! A [`Client`] is cheap to clone and connects by itself. Each request carries an id of its session, so that it can be tried
//! again at any node without happening twice. What cannot be answered says so: [`Error::outcome`] is `NotDone` or `Unknown`.
//!
//! - [`Client::send`], [`Client::receive`], [`Client::ack`] and their like make one call each.
//! - [`Producer`] sends many messages in few requests, with a result for each.
//! - [`ConsumerBuilder::run`] handles messages with a function, and keeps their leases meanwhile; [`Consumer`] is a stream of them.
//! - [`idempotency`] helps handlers to be right about messages that come twice.
//!
//! ```no_run
//! use leasehold_client::{CancellationToken, Client, NewMessage, QueueSettings};
//!
//! # async fn handle(body: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["127.0.0.1:7301", "127.0.0.1:7302"])?;
//! client.create_queue("emails", QueueSettings::default(), 1).await?;
//!
//! let producer = client.queue("emails").producer().start();
//! let sent = producer.send(NewMessage::new("hello").deduplication_id("welcome-42")).await?;
//! println!("{:?}", sent.id);
//! producer.close().await;
//!
//! let stop = CancellationToken::new(); // cancel it at SIGTERM
//! let consumer = client.queue("emails").consumer().concurrency(64).name("mailer").stop_on(stop.clone());
//! consumer
//!     .run(|job| async move {
//!         handle(&job.body).await?;
//!         Ok(())
//!     })
//!     .await?;
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]

mod admin;
mod backoff;
mod call;
mod channels;
mod client;
mod consumer;
mod error;
pub mod idempotency;
mod message;
mod messages;
mod producer;
mod queue;
mod routes;
mod session;
mod tls;
mod trace_context;
mod unanswered;

pub use client::{Client, ClientBuilder};
pub use consumer::{
    Consumer, ConsumerBuilder, Counters, Counts, Delivery, Failure, Job, RetryPolicy, Settling,
};
pub use error::Error;
pub use leasehold_proto::v1;
pub use leasehold_proto::v1::{Attribute, MessageId, Origin, Outcome, QueueKind, QueueSettings, Reason};
pub use message::{Lease, Message, NewMessage, ReceiveOptions, Rejection, Sent};
pub use messages::ItemResults;
pub use producer::{Pending, Producer, ProducerBuilder, ProducerSink, SinkError};
pub use queue::Queue;
pub use tls::Tls;
pub use tokio_util::sync::CancellationToken;
pub use trace_context::{InvalidTraceContext, TraceContext};
