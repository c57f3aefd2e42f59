//! A node: replicas of partitions, the way to every leader, and the services that clients and other nodes call.
//!
//! ```text
//!   clients ─▶ services ─▶ router ─┬─▶ replica ─▶ raft ─▶ raft-log
//!                                  │      └─▶ partition (decides)
//!                                  └─▶ lanes ─▶ other nodes
//!   catalogue (a group of its own) ─▶ cluster view ─▶ reconcile: which replicas belong here
//! ```
#![deny(unsafe_code)]

pub mod admin_http;
mod answers;
mod catalogue_link;
mod cluster;
pub mod config;
pub mod connection;
mod contents;
mod core;
mod disk;
mod endings;
mod failure;
mod give_way;
mod headroom;
mod history;
mod housekeeping;
mod identity;
mod in_turn;
mod inbound;
mod lane;
mod leaders;
mod limits;
mod listener;
mod node;
mod numbers;
mod outbox;
mod question;
mod queue_info;
mod raft;
mod receipt_token;
mod reconcile;
mod redrive_id;
mod replica;
mod router;
mod seeds;
mod service;
mod services;
mod serving;
#[cfg(feature = "simulation")]
pub mod simulation;
mod stop_on_drop;
mod storms;
mod sweep;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
mod transfer_hold;
mod versions;

pub use failure::Failure;
pub use node::{Node, StartError};
pub use queue_info::QueueInfo;
pub use service::{Deletion, Service};
