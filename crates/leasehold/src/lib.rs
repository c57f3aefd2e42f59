//! What the command and its tests share: clusters of real processes, and the comparison of replicas.

pub mod processes;
pub mod replicas;
