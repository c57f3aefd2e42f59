//! The workloads. Each is a file, asks a [`System`] for queues and connections, and tells the log what it found out.

mod arrivals;
mod backlog;
mod cycle;
mod drain;
mod failover;
mod load;
mod numbers;
mod pace;
mod paced;
mod pipeline;
mod projection;
mod queues;
mod scaling;
mod send;

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Comparison;
use super::results::Log;
use super::system::{Failure, Shape, System};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Send only.
    W1,
    /// Receive and acknowledge a backlog.
    W2,
    /// Send, receive and acknowledge: as fast as it goes, and at a fixed rate.
    W3,
    /// The leader is killed under load.
    W4,
    /// Many queues.
    W5,
    /// A deep backlog.
    W6,
    /// Events become rows of a store.
    W7,
    /// More partitions, more nodes.
    W8,
}

/// How long W7 is in each run, if it is not shorter anyway: a system that does a third less than it is asked for falls too far
/// behind in it.
const PIPELINE_TIME_SHORT: Duration = Duration::from_secs(30);
/// More cases of [`Plan::time`] no workload has on one cluster.
const CASES_MAX: u32 = 8;

/// What holds for all workloads of a round.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long each case is measured.
    pub time: Duration,
    /// How long W7 is.
    pub pipeline_time: Duration,
    /// How long W7 is then once more, on a system that did not fall behind.
    pub pipeline_held_time: Option<Duration>,
    /// Kills of a leader in each run of W4.
    pub kills: usize,
    /// Over which a queue spreads, where it can.
    pub partitions: u32,
}

impl Plan {
    pub fn of(comparison: &Comparison, round: u32) -> Self {
        let asked = Duration::from_secs(comparison.pipeline_seconds);
        let pipeline_time = asked.min(PIPELINE_TIME_SHORT);
        Self {
            time: Duration::from_secs(comparison.seconds),
            pipeline_time,
            pipeline_held_time: (round == 0 && asked > pipeline_time).then_some(asked),
            kills: comparison.kills.div_ceil(comparison.runs) as usize,
            partitions: comparison.partitions,
        }
    }

    /// That is measured on one cluster.
    pub fn time_max(&self) -> Duration {
        self.time * CASES_MAX + self.pipeline_time + self.pipeline_held_time.unwrap_or_default()
    }
}

impl Workload {
    pub const ALL: [Self; 8] =
        [Self::W1, Self::W2, Self::W3, Self::W4, Self::W5, Self::W6, Self::W7, Self::W8];

    pub fn key(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W2 => "W2",
            Self::W3 => "W3",
            Self::W4 => "W4",
            Self::W5 => "W5",
            Self::W6 => "W6",
            Self::W7 => "W7",
            Self::W8 => "W8",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::W1 => "W1: send",
            Self::W2 => "W2: drain a backlog, acks confirmed",
            Self::W3 => "W3: full cycle (send, receive, ack)",
            Self::W4 => "W4: the leader is killed under 2,000 messages/s",
            Self::W5 => "W5: many queues",
            Self::W6 => "W6: a deep backlog",
            Self::W7 => "W7: 50,000 events/s into a store",
            Self::W8 => "W8: more partitions, more nodes",
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Self::W1 => "Messages are sent as fast as they are confirmed; nobody receives.",
            Self::W2 => {
                "8 receivers take and acknowledge batches of up to 256 from a backlog of what could be sent in the same time \
                 before; nobody sends."
            }
            Self::W3 => {
                "Saturated: 8 senders with batches of 256 and 8 receivers, at most 16,384 messages in the queue. At a fixed \
                 rate: each message is sent when it is due, or as soon after that as it fits into 8,192 that wait for a \
                 confirmation; those that became due together go in batches of up to 500. What did not come within 10 s after \
                 the last was due counts with the time until then. A system that is 10 s behind is ended."
            }
            Self::W4 => {
                "The node that leads the queue gets SIGKILL. The gaps are the longest times without a confirmed send and \
                 without a received message, from the last before the kill until both went on for 2 s. Clients of the other \
                 systems are connected to nodes that stay; Leasehold's talk to the leader itself. Lost is what was confirmed \
                 and never came; duplicates are what came more than once."
            }
            Self::W5 => {
                "Queues of one partition are created, 64 at a time, and each gets a message of 128 B. Memory is that of a node \
                 on average, since before the first queue. Then nothing happens for a while (idle, all nodes together), and \
                 then 64 senders send one message at a time to all queues in turn. What would take more than 120 s is left \
                 out."
            }
            Self::W6 => {
                "1 KiB messages are sent with 4,096 outstanding until so many wait; then 8 receivers take and acknowledge some \
                 of them; then the node that leads (for a spread queue: its first partition) gets SIGKILL and is started, and \
                 the time is until it takes part again. What would take more than 150 s or more disk than there is is left \
                 out."
            }
            Self::W7 => {
                "Events of 500 B are sent when they are due, as in W3 at a fixed rate. 8 consumers write each batch into an \
                 embedded store (redb, one transaction a batch, not synced), in which an event that comes twice changes a row \
                 once, and then acknowledge. Latency runs from when an event was due to when its row is written. Each run is \
                 of 30 s at most; in the first one a system that did not fall behind goes on to the long case. A system that is 10 s \
                 behind is ended: then its figures are of the time until then, and what did not come counts with it."
            }
            Self::W8 => {
                "W3 with 128 B, saturated, on clusters that grow one way at a time. Each message is on three nodes, or on all \
                 where there are fewer. Partitions are groups of replicas: one queue of Leasehold \
                 spreads over them; of the other systems there are as many queues (streams, quorum queues), since each is one \
                 group. 8 senders go through their queues in turn, a batch to each, and each queue has a receiver of its own \
                 (8 receivers, where there are fewer queues), so that all queues get the same load."
            }
        }
    }

    /// The clusters that it is run on, one after the other.
    pub fn shapes(self, plan: &Plan) -> Vec<Shape> {
        match self {
            Self::W1 | Self::W2 | Self::W3 | Self::W6 | Self::W7 => {
                vec![Shape::of_partitions(plan.partitions)]
            }
            Self::W4 | Self::W5 => vec![Shape::USUAL],
            Self::W8 => scaling::SHAPES.to_vec(),
        }
    }

    /// Whether a case is one of this workload.
    pub fn has(self, case: &str) -> bool {
        case.strip_prefix(self.key()).is_some_and(|rest| rest.starts_with(' '))
    }

    /// Runs all cases on a cluster of its own; what was recorded before a failure stays.
    pub async fn run(
        self,
        system: &mut dyn System,
        shape: Shape,
        plan: &Plan,
        log: &mut Log,
    ) -> Result<(), Failure> {
        match self {
            Self::W1 => send::run(system, plan, log).await,
            Self::W2 => drain::run(system, plan, log).await,
            Self::W3 => cycle::run(system, plan, log).await,
            Self::W4 => failover::run(system, plan, log).await,
            Self::W5 => queues::run(system, plan, log).await,
            Self::W6 => backlog::run(system, plan, log).await,
            Self::W7 => pipeline::run(system, plan, log).await,
            Self::W8 => scaling::run(system, shape, plan, log).await,
        }
    }
}
