//! The systems that are compared: how each is found on this machine, started and talked to.

mod leasehold;
#[cfg(feature = "compare")]
mod nats;
#[cfg(feature = "compare")]
mod rabbitmq;
#[cfg(feature = "compare")]
mod servers;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::journal::Measured;
use super::system::{Failure, Shape, System};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    Leasehold,
    /// NATS JetStream that syncs before it answers.
    NatsSynced,
    /// NATS JetStream as it is without settings: it answers from the memory of a quorum.
    Nats,
    /// Quorum queues.
    Rabbitmq,
}

impl Name {
    pub const ALL: [Self; 4] = [Self::Leasehold, Self::NatsSynced, Self::Nats, Self::Rabbitmq];

    pub fn key(self) -> &'static str {
        match self {
            Self::Leasehold => "leasehold",
            Self::NatsSynced => "nats-synced",
            Self::Nats => "nats",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Leasehold => "Leasehold",
            Self::NatsSynced => "NATS, synced",
            Self::Nats => "NATS, default",
            Self::Rabbitmq => "RabbitMQ",
        }
    }

    /// What an answer means.
    pub fn durability(self) -> &'static str {
        match self {
            Self::Leasehold => "sends, grants and acks are answered after the sync of a quorum",
            Self::NatsSynced => {
                "JetStream R3, `sync_interval: always`; each ack is answered (`+ACK` as a request)"
            }
            Self::Nats => {
                "JetStream R3 with the default `sync_interval` of two minutes: answered from the memory of a quorum; each ack is answered"
            }
            Self::Rabbitmq => {
                "quorum queue of three, publisher confirms after the sync of a quorum; AMQP 0.9.1 does not answer acks: after each batch the channel is asked for the queue's state, which shows that the leader has the acks, not that a quorum has"
            }
        }
    }

    /// Finds what there is on this machine, or brings it into the working folder.
    ///
    /// # Errors
    /// Why the system is left out.
    pub async fn find(self, work_dir: &Path) -> Result<Found, Failure> {
        match self {
            Self::Leasehold => leasehold::find().await,
            #[cfg(feature = "compare")]
            Self::NatsSynced | Self::Nats => nats::find(self, work_dir).await,
            #[cfg(feature = "compare")]
            Self::Rabbitmq => rabbitmq::find().await,
            #[cfg(not(feature = "compare"))]
            Self::NatsSynced | Self::Nats | Self::Rabbitmq => Err(Failure::new(format!(
                "this program has no client of it and would keep nothing in {}: build it with `--features compare`",
                work_dir.display()
            ))),
        }
    }
}

/// A system that can be started.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: Name,
    pub version: String,
    program: PathBuf,
}

impl Found {
    pub fn measured(&self) -> Measured {
        Measured { name: self.name, version: self.version.clone() }
    }

    /// Starts a cluster that keeps its files below a folder.
    ///
    /// # Errors
    /// When a process does not start or the cluster does not become ready.
    pub async fn start(&self, dir: &Path, shape: Shape) -> Result<Box<dyn System>, Failure> {
        match self.name {
            Name::Leasehold => leasehold::start(&self.program, dir, shape).await,
            #[cfg(feature = "compare")]
            Name::NatsSynced => nats::start(&self.program, dir, shape, nats::Sync::Always).await,
            #[cfg(feature = "compare")]
            Name::Nats => nats::start(&self.program, dir, shape, nats::Sync::Default).await,
            #[cfg(feature = "compare")]
            Name::Rabbitmq => rabbitmq::start(&self.program, dir, shape).await,
            #[cfg(not(feature = "compare"))]
            Name::NatsSynced | Name::Nats | Name::Rabbitmq => {
                Err(Failure::new(format!("{} is not in this program", self.program.display())))
            }
        }
    }
}
