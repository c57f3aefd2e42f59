//! A machine of the cluster: its disk, its clock, and the process of a node when one is running.
//!
//! Every process has a runtime of its own, with its own time: it is let run for a millisecond at a time, and ends, as a process does,
//! with everything that was going on in it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use leasehold_node::config::Config;
use leasehold_node::simulation::{Place, SimulatedNode};
use leasehold_raft_log::{Driver, Fault, Log, Options, SimulatedFileSystem, Survival};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use leasehold_histories::random::Random;

use crate::judge::{Judge, Witness};
use crate::network::{Host, Network};
use crate::system::{self, Clock};
use crate::trace;
use crate::transport::{SimulatedTransport, address_of};

pub const CLUSTER: [u8; 16] = [7; 16];
/// One step of a process.
pub const STEP: Duration = Duration::from_millis(1);
/// Small, so that segments are often full, and used again.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// How long a healthy disk takes for a batch at most.
const SYNC_US_MAX: u64 = 2_000;
const KEEPER_INTERVAL_US: u64 = 50_000;
pub const LOG_DIR: &str = "/data/log";
/// A node whose disk has failed ends by itself, and somebody starts it again.
pub const FAILED_FOR_US: u64 = 300_000;

/// How every node keeps its log.
pub fn log_options() -> Options {
    Options { segment_bytes: SEGMENT_BYTES, cache_bytes: 256 * 1024, disk_low_bytes: 0, ..Options::default() }
}

/// A running node.
pub struct Process {
    runtime: Runtime,
    log: Log,
    driver: Driver,
    node: Arc<OnceLock<Result<SimulatedNode, String>>>,
    write_due_us: Option<u64>,
    keep_due_us: u64,
    /// Time that has passed while it was stopped.
    owed: Duration,
    started: Instant,
    started_us: u64,
    witness: Witness,
}

pub struct Machine {
    pub place: Place,
    pub fs: SimulatedFileSystem,
    pub process: Option<Process>,
    pub skew_ms: i64,
    /// How long the disk takes for a batch at most.
    pub sync_us_max: u64,
    pub paused_until_us: u64,
    /// When the process is started again.
    pub start_at_us: Option<u64>,
    is_off: bool,
    /// Until when the power goes at the latest, and what survives that.
    power: Option<(u64, Survival)>,
    at: usize,
    processes: u64,
    random: Random,
    network: Arc<Network>,
    judge: Judge,
}

/// A single-threaded runtime whose time stands still unless it is told to go on.
///
/// # Panics
/// Never: it needs nothing of the system.
pub fn runtime() -> Runtime {
    let built = Builder::new_current_thread().enable_time().start_paused(true).build();
    built.unwrap_or_else(|error| panic!("a runtime without input and output needs nothing: {error}"))
}

impl Process {
    /// Whether its time has gone on as that of the run.
    fn is_on_time(&self, now_us: u64) -> bool {
        let passed = self.enter(|| self.started.elapsed());
        passed + self.owed == Duration::from_micros(now_us - self.started_us)
    }

    /// The node, once it has started.
    pub fn node(&self) -> Option<&SimulatedNode> {
        self.node.get()?.as_ref().ok()
    }

    /// Why it did not start.
    pub fn refusal(&self) -> Option<&str> {
        self.node.get()?.as_ref().err().map(String::as_str)
    }

    /// Who watches what leaves it.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Does something as if in the process.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        work()
    }

    fn step(&mut self, now_us: u64, sync_us: u64) {
        assert!(self.is_on_time(now_us), "a runtime has lost or gained time");
        let owed = std::mem::take(&mut self.owed);
        self.runtime.block_on(async {
            if !owed.is_zero() {
                tokio::time::advance(owed).await;
            }
            tokio::time::sleep(STEP).await;
        });
        let _inside = self.runtime.enter();
        if self.driver.has_work() {
            let due_us = *self.write_due_us.get_or_insert(now_us + sync_us);
            if due_us <= now_us {
                self.driver.write();
                self.write_due_us = None;
            }
        }
        if self.keep_due_us <= now_us {
            self.driver.keep();
            self.keep_due_us = now_us + KEEPER_INTERVAL_US;
        }
    }
}

impl Machine {
    pub fn new(at: usize, network: Arc<Network>, judge: Judge, random: Random) -> Self {
        let place = Place { name: format!("n{at}"), node_id: at as u64 + 1, address: address_of(at) };
        Self {
            place,
            fs: SimulatedFileSystem::new(),
            process: None,
            skew_ms: 0,
            sync_us_max: SYNC_US_MAX,
            paused_until_us: 0,
            start_at_us: None,
            is_off: false,
            power: None,
            at,
            processes: 0,
            random,
            network,
            judge,
        }
    }

    /// Starts the node from what the disk holds.
    ///
    /// # Errors
    /// When it refuses, unless the disk has failed just now: then somebody starts it again.
    pub fn start(&mut self, now_us: u64) -> Result<(), String> {
        self.set_clock(now_us);
        (self.is_off, self.start_at_us) = (false, None);
        let awaits_fault = !self.fs.has_failed();
        let opened = Log::open_driven(Arc::new(self.fs.clone()), Path::new(LOG_DIR), log_options());
        let (log, driver) = match opened {
            Ok(opened) => opened,
            Err(error) if awaits_fault && self.fs.has_failed() => {
                trace::event(&[self.at as u64, 4], format_args!("n{} cannot start: {error}", self.at));
                self.start_at_us = Some(now_us + FAILED_FOR_US);
                return Ok(());
            }
            Err(error) => return Err(format!("{} refuses to start: {error}", self.place.name)),
        };
        let config = Config::with_defaults(&self.place.name, Path::new("/data"));
        let config = config.map_err(|error| error.to_string())?;
        let transport = Arc::new(SimulatedTransport::new(self.network.clone(), self.at));
        let (runtime, node) = (runtime(), Arc::new(OnceLock::new()));
        let starting = SimulatedNode::start(config, CLUSTER, self.place.clone(), log.clone(), transport);
        let started = {
            let _inside = runtime.enter();
            Instant::now()
        };
        let slot = node.clone();
        runtime.spawn(async move { drop(slot.set(starting.await)) });
        self.process = Some(Process {
            runtime,
            log,
            driver,
            node,
            write_due_us: None,
            keep_due_us: now_us + self.random.below(KEEPER_INTERVAL_US),
            owed: Duration::ZERO,
            started,
            started_us: now_us,
            witness: self.judge.witness(self.at, self.fs.clone()),
        });
        self.processes += 1;
        self.show();
        Ok(())
    }

    /// Tells the network what is to be heard of this machine.
    fn show(&self) {
        let host = match &self.process {
            Some(_) if self.paused_until_us > 0 => Host::Paused(self.processes),
            Some(_) => Host::Up(self.processes),
            None if self.is_off => Host::Off,
            None => Host::Down,
        };
        self.network.set_host(self.at, host);
    }

    fn set_clock(&self, now_us: u64) {
        system::set_clock(Clock { now_us, skew_ms: self.skew_ms });
    }

    /// Lets the process run for one step, unless it is stopped.
    pub fn step(&mut self, now_us: u64) {
        self.set_clock(now_us);
        if self.paused_until_us > 0 {
            if now_us < self.paused_until_us {
                self.process.iter_mut().for_each(|process| process.owed += STEP);
                return;
            }
            self.paused_until_us = 0;
            self.show();
        }
        let sync_us = self.random.below(self.sync_us_max);
        if let Some(process) = &mut self.process {
            process.step(now_us, sync_us);
        }
    }

    pub fn pause(&mut self, until_us: u64) {
        self.paused_until_us = until_us;
        self.show();
    }

    /// Ends the process; what it wrote is in the cache of the machine.
    pub fn kill(&mut self, now_us: u64) {
        self.set_clock(now_us);
        if self.process.take().is_some() {
            self.fs = self.fs.after_kill();
            self.network.closed_by_death(self.at);
        }
        self.paused_until_us = 0;
        self.show();
    }

    /// Lets the power go at an operation of the disk, or at a time if none comes before.
    pub fn cut_power(&mut self, after_operations: u64, by_us: u64, survival: Survival) {
        self.fs.fail_at(self.fs.operations() + after_operations, Fault::PowerLoss);
        self.power = Some((by_us, survival));
    }

    /// Whether the power has gone, or goes now.
    pub fn power_is_lost(&self, now_us: u64) -> bool {
        self.power.is_some_and(|(by_us, _)| by_us <= now_us || self.fs.has_failed())
    }

    /// Ends the process with its machine.
    pub fn lose_power(&mut self, now_us: u64) {
        let Some((_, survival)) = self.power.take() else { return };
        self.set_clock(now_us);
        self.process = None;
        self.fs = self.fs.after_power_loss(survival, self.random.draw());
        (self.paused_until_us, self.is_off) = (0, true);
        self.show();
    }

    pub fn heal_disk(&mut self) {
        self.sync_us_max = SYNC_US_MAX;
    }

    /// Nothing is wrong with it from here on; a process that has ended stays so.
    pub fn heal(&mut self, now_us: u64) {
        if self.power.is_some() {
            self.lose_power(now_us);
        }
        self.heal_disk();
        self.fs.fail_at(u64::MAX, Fault::NoSpace);
        self.paused_until_us = self.paused_until_us.min(now_us);
        self.show();
    }

    pub fn node(&self) -> Option<&SimulatedNode> {
        self.process.as_ref()?.node()
    }
}
