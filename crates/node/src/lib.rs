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
mod cluster;
pub mod config;
mod failure;
mod history;
mod identity;
mod lane;
mod limits;
mod raft;
mod receipt_token;
mod replica;
mod router;
pub mod telemetry;
