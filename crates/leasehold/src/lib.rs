//! What the command and its tests share: clusters of real processes.

pub mod processes;
