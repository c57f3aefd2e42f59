//! Clients of Amazon SQS on a node of Leasehold: a thin translator above the node's [`Service`](leasehold_node::Service), without queue
//! rules of its own.
//!
//! ```text
//!   HTTP/1.1, HTTP/2 ─▶ server ─▶ exchange ─▶ signature
//!                                    │  AWS JSON 1.0: as it is
//!                                    │  Query: form ─▶ JSON           ... JSON ─▶ xml
//!                                    ▼                                      ▲
//!                               operations: JSON ─▶ node's Service ─▶ JSON ─┘
//! ```
//!
//! JSON is the one shape of requests and answers inside; the older Query protocol is translated at the edge. docs/sqs.md lists what
//! each operation takes and where it differs from Amazon's, and why.
#![deny(unsafe_code)]

mod absent;
mod answer;
mod arn;
mod body;
mod deadlines;
mod digest;
mod error;
mod exchange;
mod form;
mod gateway;
mod hex;
mod limits;
mod message_attributes;
mod message_id;
mod numbers;
mod operations;
mod patient;
mod policy;
mod queue_attributes;
mod queue_url;
mod receipt_handle;
mod room;
mod server;
mod sessions;
mod signature;
mod text;
mod xml;

pub use server::{Server, StartError};
