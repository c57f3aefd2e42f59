//! Raft types for those who drive a log without a state machine: tests, examples and benchmarks.

use std::fmt;

use crate::payload::{Payload, ReplicaNode};

/// What a state machine would answer.
#[derive(Debug)]
pub struct Applied;

impl fmt::Display for Applied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("applied")
    }
}

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Payload,
        R = Applied,
        NodeId = u64,
        Node = ReplicaNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);
