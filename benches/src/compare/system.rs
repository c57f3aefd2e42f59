//! What a workload may ask of a system: queues, and connections that send, receive and settle. Workloads know no system by name.
//!
//! ```text
//!  workload ─▶ System ─▶ Sender    a batch in, and for each message when it was confirmed
//!                 │  └─▶ Receiver  a batch out, and then an ack of it that is confirmed
//!                 └────▶ the processes: their ids, who leads, kill, restart
//! ```

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use serde::{Deserialize, Serialize};

/// Why something could not be done, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure(String);

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

pub type Doing<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// How many nodes a cluster has, and how many groups of replicas its queues may spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub nodes: usize,
    pub partitions: u32,
}

impl Shape {
    /// Three nodes, and one group of replicas as the queues of the other systems are. On two cores more of them only cost (W8).
    pub const USUAL: Self = Self { nodes: 3, partitions: 1 };

    /// As usual, with so many partitions.
    pub fn of_partitions(partitions: u32) -> Self {
        Self { partitions, ..Self::USUAL }
    }
}

/// A queue to create. Each message is on three nodes, or on all where there are fewer.
#[derive(Debug, Clone, Copy)]
pub struct Queue<'a> {
    pub name: &'a str,
    pub spread: Spread,
    pub lease: Duration,
}

impl<'a> Queue<'a> {
    /// For as much as the machine gives.
    pub fn wide(name: &'a str) -> Self {
        Self { name, spread: Spread::AllPartitions, lease: Duration::from_secs(60) }
    }

    /// With one leader, whose end is the end of the queue's service.
    pub fn narrow(name: &'a str, lease: Duration) -> Self {
        Self { name, spread: Spread::OnePartition, lease }
    }
}

/// Over how many groups of replicas a queue spreads, for systems whose queues can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    OnePartition,
    AllPartitions,
}

/// The nodes that a connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    AnyNode,
    /// A node that is about to be killed is left out where a client does not follow the leader by itself.
    AllBut(usize),
}

impl Through {
    #[cfg(feature = "compare")]
    pub fn allows(self, node: usize) -> bool {
        self != Self::AllBut(node)
    }
}

/// A cluster of processes on loopback. It ends with its value.
pub trait System: Send + Sync {
    /// Where its files are.
    fn dir(&self) -> &Path;

    /// Of the processes that run.
    fn pids(&self) -> Vec<u32>;

    /// How many queues of [`Spread::AllPartitions`] it takes for so many groups of replicas.
    fn queues_for(&self, partitions: u32) -> usize;

    fn create_queue<'a>(&'a self, queue: Queue<'a>) -> Doing<'a, ()>;

    /// Over a connection that is there already.
    fn send_one<'a>(&'a self, queue: &'a str, body: Bytes) -> Doing<'a, ()>;

    fn delete_queue<'a>(&'a self, name: &'a str) -> Doing<'a, ()>;

    /// On a connection of its own.
    fn sender<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Arc<dyn Sender>>;

    /// On a connection of its own.
    fn receiver<'a>(&'a self, queue: &'a str, through: Through) -> Doing<'a, Box<dyn Receiver>>;

    /// The node whose end stops the queue until another leads.
    fn leader<'a>(&'a self, queue: &'a str) -> Doing<'a, usize>;

    /// Ends a node as a crash does.
    fn kill(&mut self, node: usize) -> Doing<'_, ()>;

    /// Starts a killed node again and waits until it takes part: how long that took.
    fn restart(&mut self, node: usize) -> Doing<'_, Duration>;

    /// Waits until what a restart leaves to be done would not fall into what is measured next.
    fn settle(&self) -> Doing<'_, ()> {
        ready(Ok(())).boxed()
    }

    /// Ends all processes.
    fn stop(self: Box<Self>) -> Doing<'static, ()>;
}

/// Sends to one queue, many batches at a time if asked.
pub trait Sender: Send + Sync {
    /// Sends messages and waits for each; a message's result is when its confirmation came.
    fn send(&self, bodies: Vec<Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>>;
}

/// Receives from one queue.
pub trait Receiver: Send {
    /// Up to `messages_max` bodies; as soon as there is one, and none when there is none within `wait`.
    fn receive(&mut self, messages_max: usize, wait: Duration) -> Doing<'_, Vec<Bytes>>;

    /// Acknowledges all that was received and waits until that is confirmed, as far as the system confirms it: how many were.
    fn ack(&mut self) -> Doing<'_, usize>;
}
