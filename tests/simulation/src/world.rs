//! All there is in a run: machines, the network between them, clients, and faults. One step of it is a millisecond of everybody.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leasehold_node::simulation::{Place, ReplicaState};
use leasehold_raft_log::Survival;
use tokio::runtime::Runtime;

use leasehold_histories::random::Random;

use crate::client::Client;
use crate::faults::Faults;
use crate::judge::Judge;
use crate::machine::{FAILED_FOR_US, Machine, STEP, runtime};
use crate::network::Network;
use crate::system::{self, Clock};
use crate::trace;
use crate::workers::Stage;

const STEP_US: u64 = 1_000;
/// How often the states of replicas are compared and recounted.
const LOOK_INTERVAL_US: u64 = 250_000;

/// How far the run of this process is, for who watches it from outside.
pub static NOW_US: AtomicU64 = AtomicU64::new(0);

/// Sequences of random numbers, one for each purpose.
pub mod streams {
    pub const NETWORK: u64 = 1;
    pub const FAULTS: u64 = 2;
    pub const ORDER: u64 = 3;
    pub const CONDUCTOR: u64 = 4;
    pub const JUDGE: u64 = 5;
    pub const MACHINES: u64 = 100;
    pub const WORKERS: u64 = 200;
}

pub struct World {
    pub now_us: u64,
    pub network: Arc<Network>,
    pub machines: Vec<Machine>,
    pub clients: Runtime,
    pub stage: Arc<Stage>,
    /// What was found that no history shows.
    pub violations: Vec<String>,
    /// Of what leaves the nodes.
    pub judge: Judge,
    pub starts: u64,
    seed: u64,
    order: Random,
    hashes: BTreeMap<(u32, u64), u64>,
}

impl World {
    pub fn new(seed: u64, nodes: usize, workload: leasehold_histories::workload::Workload) -> Self {
        let network = Network::new(nodes, Random::new(seed, streams::NETWORK));
        let judge = Judge::new(Random::new(seed, streams::JUDGE));
        let machine = |at| {
            let random = Random::new(seed, streams::MACHINES + at as u64);
            Machine::new(at, network.clone(), judge.clone(), random)
        };
        let machines = (0..nodes).map(machine).collect();
        let clients = runtime();
        let stage = clients.block_on(async { Stage::new(workload) });
        let order = Random::new(seed, streams::ORDER);
        let (violations, hashes) = (Vec::new(), BTreeMap::new());
        Self {
            now_us: 0,
            network,
            machines,
            clients,
            stage,
            violations,
            judge,
            starts: 0,
            seed,
            order,
            hashes,
        }
    }

    pub fn client(&self, stream: u64) -> Client {
        Client::new(self.network.clone(), self.machines.len(), Random::new(self.seed, stream))
    }

    pub fn places(&self) -> Vec<Place> {
        self.machines.iter().map(|machine| machine.place.clone()).collect()
    }

    pub fn start(&mut self, node: usize) {
        self.starts += 1;
        if let Err(refusal) = self.machines[node].start(self.now_us) {
            self.violations.push(refusal);
        }
    }

    /// Goes on until something holds, or for so long at most; says whether it holds.
    pub fn run_until(&mut self, limit_us: u64, faults: &mut Faults, holds: impl Fn(&Self) -> bool) -> bool {
        let end_us = self.now_us + limit_us;
        while self.now_us < end_us && self.violations.is_empty() && self.judge.is_content() {
            if holds(self) {
                return true;
            }
            faults.step(self);
            self.step();
        }
        holds(self)
    }

    fn step(&mut self) {
        let now_us = self.now_us;
        (0..self.machines.len()).for_each(|node| self.look_after(node));
        system::set_clock(Clock { now_us, skew_ms: 0 });
        let machines = &self.machines;
        self.network.deliver(now_us, |node| machines[node].process.as_ref());
        let first = self.order.below(self.machines.len() as u64) as usize;
        for turn in 0..self.machines.len() {
            let node = (first + turn) % self.machines.len();
            self.machines[node].step(now_us);
        }
        system::set_clock(Clock { now_us, skew_ms: 0 });
        self.clients.block_on(async { tokio::time::sleep(STEP).await });
        if now_us.is_multiple_of(LOOK_INTERVAL_US) {
            self.look_at_states();
        }
        self.violations.extend(trace::panics());
        self.now_us += STEP_US;
        NOW_US.store(self.now_us, Ordering::Relaxed);
    }

    /// Starts a node whose time has come, and ends one that cannot go on.
    fn look_after(&mut self, node: usize) {
        let now_us = self.now_us;
        let machine = &mut self.machines[node];
        if machine.start_at_us.is_some_and(|at_us| at_us <= now_us) && machine.process.is_none() {
            return self.start(node);
        }
        if machine.power_is_lost(now_us) {
            trace::event(&[node as u64, 3], format_args!("n{node} loses power"));
            machine.lose_power(now_us);
        }
        let Some(process) = &machine.process else { return };
        if process.log().failure().is_some() {
            machine.kill(now_us);
            machine.start_at_us.get_or_insert(now_us + FAILED_FOR_US);
        } else if let Some(refusal) = process.refusal() {
            self.violations.push(format!("n{node} refuses to start: {refusal}"));
        }
    }

    /// Replicas that have applied the same entries are equal (I12), and count right (I16).
    fn look_at_states(&mut self) {
        for machine in &self.machines {
            let Some(node) = machine.node() else { continue };
            let Ok(replicas) = catch_unwind(AssertUnwindSafe(|| node.replicas())) else { continue };
            for ReplicaState { partition, applied_index, state_hash, .. } in replicas {
                trace::event(
                    &[partition.into(), applied_index, state_hash],
                    format_args!(
                        "{} has partition {partition} at {applied_index}: {state_hash:x}",
                        machine.place.name
                    ),
                );
                let known = *self.hashes.entry((partition, applied_index)).or_insert(state_hash);
                if known != state_hash {
                    self.violations.push(format!(
                        "partition {partition} at entry {applied_index} is {known:x} and, on {}, {state_hash:x}",
                        machine.place.name
                    ));
                }
            }
        }
    }

    /// The nodes that lead partitions, the busiest first.
    pub fn leaders(&self) -> Vec<usize> {
        let led = |machine: &Machine| {
            machine.node().map_or(0, |node| node.replicas().iter().filter(|replica| replica.leads).count())
        };
        let mut leaders = (0..self.machines.len())
            .map(|at| (std::cmp::Reverse(led(&self.machines[at])), at))
            .collect::<Vec<_>>();
        leaders.sort_unstable();
        leaders.into_iter().filter(|(led, _)| led.0 > 0).map(|(_, at)| at).collect()
    }

    /// Whether every replica is on its node and has applied what the others have, and each partition has a leader.
    pub fn has_converged(&self, partitions: u32) -> bool {
        let mut seen: BTreeMap<u32, Vec<ReplicaState>> = BTreeMap::new();
        for machine in &self.machines {
            let Some(node) = machine.node() else { return false };
            node.replicas()
                .into_iter()
                .for_each(|replica| seen.entry(replica.partition).or_default().push(replica));
        }
        let is_equal = |replicas: &Vec<ReplicaState>| {
            replicas.len() == 3
                && replicas.iter().filter(|replica| replica.leads).count() == 1
                && replicas.iter().all(|replica| replica.applied_index == replicas[0].applied_index)
        };
        seen.len() == partitions as usize && seen.values().all(is_equal)
    }

    /// Everything works from here on.
    pub fn heal(&mut self) {
        self.network.heal();
        for node in 0..self.machines.len() {
            self.machines[node].heal(self.now_us);
            if self.machines[node].process.is_none() {
                self.start(node);
            }
        }
    }
}

/// What a seed lets survive of what was not synced.
pub fn survival(random: &mut Random) -> Survival {
    Survival::ALL[random.below(Survival::ALL.len() as u64) as usize]
}
