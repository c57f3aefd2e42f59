//! What the command and its tests share: clusters of real processes, the comparison of replicas, and backups.

pub mod backup;
pub mod processes;
pub mod replicas;
