//! What is done to the nodes and to the network between them. Each kind of target has a file with its faults.

mod clock;
mod corruption;
mod data;
mod disk;
mod network;
mod process;
mod queue;
mod schedule;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use leasehold::processes::{Build, Processes};
use leasehold_histories::history::Op;
use tokio::task::JoinHandle;
use tokio::time::sleep;

pub use process::finish_upgrade;
pub use schedule::{Overlap, Planned, schedule};

use crate::machine::{Loss, Machines};
use crate::network::Network;
use crate::workers::Stage;
use corruption::Damaged;
use schedule::{Moment, steps};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Process(process::Fault),
    Network(network::Fault),
    Disk(disk::Fault),
    Clock(clock::Fault),
    Data(data::Fault),
    Queue(queue::Fault),
}

impl ValueEnum for Fault {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<Fault>> = LazyLock::new(|| {
            let mut all = Vec::new();
            all.extend(process::Fault::value_variants().iter().copied().map(Fault::Process));
            all.extend(network::Fault::value_variants().iter().copied().map(Fault::Network));
            all.extend(disk::Fault::value_variants().iter().copied().map(Fault::Disk));
            all.extend(clock::Fault::value_variants().iter().copied().map(Fault::Clock));
            all.extend(data::Fault::value_variants().iter().copied().map(Fault::Data));
            all.extend(queue::Fault::value_variants().iter().copied().map(Fault::Queue));
            all
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Process(fault) => fault.to_possible_value(),
            Self::Network(fault) => fault.to_possible_value(),
            Self::Disk(fault) => fault.to_possible_value(),
            Self::Clock(fault) => fault.to_possible_value(),
            Self::Data(fault) => fault.to_possible_value(),
            Self::Queue(fault) => fault.to_possible_value(),
        }
    }
}

impl Fault {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it needs a network of the harness's own.
    pub fn is_of_network(self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// Whether it is done by asking the cluster, which has to answer when it begins and when it ends.
    pub fn is_of_queue(self) -> bool {
        matches!(self, Self::Queue(_))
    }

    /// Whether nodes begin as an earlier build.
    pub fn is_of_builds(self) -> bool {
        matches!(self, Self::Process(process::Fault::Upgrade))
    }

    /// Whether it needs machines of the harness's own.
    pub fn is_of_machine(self) -> bool {
        matches!(self, Self::Disk(_) | Self::Clock(_))
    }

    /// Whether it is about what a running node reads from its disk: bodies have to be there and not in memory.
    pub fn is_of_reads(self) -> bool {
        matches!(self, Self::Data(data::Fault::CorruptRunning))
    }

    /// Whether a node may find no memory, which it may say in any words.
    pub fn is_of_memory(self) -> bool {
        matches!(self, Self::Data(data::Fault::Memory))
    }

    /// Whether it means something with so many nodes.
    pub fn is_possible_with(self, nodes: usize) -> bool {
        match self {
            Self::Network(network::Fault::PartitionRing) => nodes >= 5,
            // Its steps are those of three nodes.
            Self::Disk(disk::Fault::PausePower) => nodes == 3,
            _ => nodes >= 3,
        }
    }

    /// How long it lasts, in milliseconds: from, and up to.
    fn lasts_ms(self) -> [u64; 2] {
        match self {
            Self::Process(_) => process::LASTS_MS,
            Self::Network(_) => network::LASTS_MS,
            Self::Disk(_) => disk::LASTS_MS,
            Self::Clock(_) => clock::LASTS_MS,
            Self::Data(_) => data::LASTS_MS,
            Self::Queue(_) => queue::LASTS_MS,
        }
    }

    /// The calm afterwards, in milliseconds: from, and up to.
    fn calm_ms(self) -> [u64; 2] {
        match self {
            Self::Network(_) => network::CALM_MS,
            _ => process::CALM_MS,
        }
    }
}

/// What nodes are started as.
pub struct Builds {
    /// At first, if the run has an upgrade.
    pub earlier: Option<Build>,
    pub later: Build,
}

/// What faults are done to, and where they are written down.
pub struct Scene<'a> {
    pub stage: &'a Stage,
    pub processes: &'a mut Processes,
    pub builds: &'a Builds,
    pub network: Option<&'a Network>,
    pub machines: Option<&'a Machines>,
    /// What goes on doing something for as long as a fault lasts, by its number.
    pub repeated: BTreeMap<usize, JoinHandle<()>>,
    /// What is damaged under a running node for as long as a fault lasts, by its number.
    pub damaged: BTreeMap<usize, Damaged>,
    /// How many times a running node said that a file is damaged.
    pub noticed: u64,
    /// How many messages were refused because the queue was full, before the last fault that made it so.
    pub full_before: u64,
    /// How many nodes ended by themselves for want of memory.
    pub out_of_memory: u64,
    /// What nodes lost with their power.
    pub lost: Loss,
    /// How many faults are in force beside the one that begins or ends.
    pub in_force: usize,
}

impl Scene<'_> {
    fn repeat(&mut self, planned: &Planned, what: impl Future<Output = ()> + Send + 'static) {
        self.repeated.insert(planned.number, tokio::spawn(what));
    }

    /// Ends what a fault repeats, and waits until it does nothing any more.
    async fn end_repeating(&mut self, planned: &Planned) {
        if let Some(repeated) = self.repeated.remove(&planned.number) {
            repeated.abort();
            // It was told to end.
            let _ = repeated.await;
        }
    }
}

/// Carries a schedule out, for at least so long; afterwards every node runs and every packet arrives.
///
/// # Errors
/// When a process ended by itself, or cannot be started again: the node refuses its own data.
pub async fn inject(scene: &mut Scene<'_>, schedule: &[Planned], time_limit: Duration) -> Result<(), String> {
    let mut passed = Duration::ZERO;
    for (at, number, moment) in steps(schedule) {
        // The time between two steps is kept, whatever the first of them took.
        sleep(at - passed).await;
        passed = at;
        let recorder = &scene.stage.recorder;
        let planned = &schedule[number];
        match moment {
            Moment::Begin => {
                let at_us = recorder.now_us();
                let what = begin(scene, planned).await?;
                recorder.add(Op::Fault { number, at_us, fault: planned.fault.name(), what });
                scene.in_force += 1;
            }
            Moment::End => {
                scene.in_force -= 1;
                end(scene, planned).await?;
                recorder.add(Op::FaultEnded { number, at_us: recorder.now_us() });
            }
        }
    }
    let calm = schedule.last().map_or(Duration::ZERO, |planned| planned.pause);
    sleep(calm.max(time_limit.saturating_sub(passed))).await;
    Ok(())
}

/// Begins a fault and says what is done, for people.
async fn begin(scene: &mut Scene<'_>, planned: &Planned) -> Result<String, String> {
    match planned.fault {
        Fault::Process(fault) => process::begin(scene, fault, planned).await,
        Fault::Network(fault) => network::begin(scene, fault, planned).await,
        Fault::Disk(fault) => disk::begin(scene, fault, planned).await,
        Fault::Clock(fault) => clock::begin(scene, fault, planned),
        Fault::Data(fault) => data::begin(scene, fault, planned).await,
        Fault::Queue(queue::Fault::QueueFull) => queue::begin(scene, planned).await,
    }
}

async fn end(scene: &mut Scene<'_>, planned: &Planned) -> Result<(), String> {
    match planned.fault {
        Fault::Process(fault) => process::end(scene, fault, planned).await,
        Fault::Network(_) => network::end(scene, planned).await,
        Fault::Disk(fault) => disk::end(scene, fault, planned).await,
        Fault::Clock(_) => clock::end(scene, planned).await,
        Fault::Data(fault) => data::end(scene, fault, planned).await,
        Fault::Queue(queue::Fault::QueueFull) => queue::end(scene, planned).await,
    }
}
