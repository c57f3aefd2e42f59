//! Histories of what clients did and were told, the checkers that judge them, and the numbers that a seed gives.
//!
//! Whoever drives a cluster writes one: real processes under real faults, or the simulation. The rules are the same.

pub mod checkers;
pub mod history;
pub mod random;
pub mod workload;
