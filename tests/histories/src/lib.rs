//! Histories of what clients did and were told, and the checkers that judge them.
//!
//! Whoever drives a cluster writes one: real processes under real faults, or the simulation. The rules are the same.

pub mod checkers;
pub mod history;
pub mod workload;
