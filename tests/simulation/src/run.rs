//! One run: a cluster, workers, a phase of faults, and a phase in which everything has to come right; then the verdict.

use std::sync::atomic::Ordering;

use leasehold_histories::checkers::{self, Verdict, progress};
use leasehold_histories::history::{History, Op};
use leasehold_histories::workload::Workload;

use crate::faults::{Fault, Faults};
use crate::trace;
use crate::workers::{QUEUE, consumer, create_queues, drain, lessee, owner, sender};
use crate::world::{World, streams};

/// What is run; with the seed it says everything.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    #[arg(long, default_value_t = 3)]
    pub partitions: u32,
    /// Seconds of faults, of virtual time.
    #[arg(long, default_value_t = 15)]
    pub seconds: u64,
    #[arg(long, default_value_t = 3)]
    pub senders: u64,
    #[arg(long, default_value_t = 5)]
    pub consumers: u64,
    /// Without it, all of them.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub faults: Vec<Fault>,
}

/// Patience in virtual time: nothing but a fault of the product makes it longer.
const SET_UP_US: u64 = 60_000_000;
const DRAIN_US: u64 = 120_000_000;
const CONVERGE_US: u64 = 30_000_000;

/// Of queues, in the workload about them.
const OWNERS: u64 = 3;

pub struct Outcome {
    pub verdict: Verdict,
    pub history: History,
    pub hash: u64,
}

/// Runs a seed, in this thread.
pub fn run(plan: &Plan, workload: Workload, seed: u64) -> Outcome {
    let mut world = World::new(seed, plan.nodes, workload);
    let mut faults = Faults::new(&plan.faults, seed);
    let end = phases(plan, &mut world, &mut faults);
    let mut violations = std::mem::take(&mut world.violations);
    let lies = world.judge.found();
    // What was found on the way ends a run early.
    violations.extend(end.err().filter(|_| violations.is_empty() && lies.is_empty()));
    let history = History { ops: std::mem::take(&mut *world.stage.ops()) };
    let is_whole = violations.is_empty() && lies.is_empty();
    let mut verdict = if is_whole { checkers::check(&history) } else { Verdict::default() };
    verdict.violations.insert("simulation", violations);
    verdict.violations.insert("answer before its sync", lies);
    verdict.seed = Some(seed);
    verdict.faults = faults.count;
    verdict.counts.insert("packets", world.network.packets());
    verdict.counts.insert("snapshots_sent", world.network.snapshots());
    let (claims, judged) = world.judge.counts();
    verdict.counts.insert("claims", claims);
    verdict.counts.insert("claims_judged", judged);
    verdict.counts.insert("starts", world.starts);
    verdict.counts.insert("virtual_ms", world.now_us / 1_000);
    Outcome { verdict, history, hash: trace::hash() }
}

fn phases(plan: &Plan, world: &mut World, faults: &mut Faults) -> Result<(), String> {
    let partitions = set_up(plan, world, faults)?;
    for worker in 0..plan.senders {
        let client = world.client(streams::WORKERS + worker);
        world.clients.spawn(sender(world.stage.clone(), client));
    }
    for worker in 0..plan.consumers {
        let client = world.client(streams::WORKERS + plan.senders + worker);
        let stage = world.stage.clone();
        match stage.workload {
            Workload::Leases => drop(world.clients.spawn(lessee(stage, client))),
            _ => drop(world.clients.spawn(consumer(stage, client))),
        }
    }
    for worker in 0..OWNERS * u64::from(world.stage.workload == Workload::Queues) {
        let client = world.client(streams::WORKERS + plan.senders + plan.consumers + worker);
        world.clients.spawn(owner(world.stage.clone(), client));
    }
    let for_us = plan.seconds * 1_000_000;
    faults.begin(world.now_us, world.now_us + for_us);
    world.run_until(for_us, faults, |_| false);
    faults.end(world);
    world.heal();
    let at_us = world.now_us;
    world.stage.ops().push(Op::Healed { at_us, partitions: partitions.clone() });
    // Whether it was in time is the checker's business.
    world.run_until(2 * progress::BOUND.as_micros() as u64, faults, |world| {
        let served = progress::served_since(&world.stage.ops(), at_us);
        partitions.iter().all(|partition| served.contains_key(partition))
    });
    world.stage.is_over.store(true, Ordering::Relaxed);
    let conductor = world.client(streams::CONDUCTOR + 1);
    world.clients.spawn(drain(world.stage.clone(), conductor));
    let is_drained = |world: &World| matches!(world.stage.ops().last(), Some(Op::Remaining { .. }));
    if !world.run_until(DRAIN_US, faults, is_drained) {
        return Err("the healed cluster is not drained in 120 s".to_owned());
    }
    if !world.run_until(CONVERGE_US, faults, |world| world.has_converged(plan.partitions)) {
        return Err("the replicas of the healed cluster do not become equal in 30 s".to_owned());
    }
    // The states are compared once more.
    world.run_until(500_000, faults, |_| false);
    let equal = u64::from(plan.partitions);
    world.stage.ops().push(Op::Replicas { equal, busy: Vec::new(), diverged: Vec::new() });
    Ok(())
}

/// Founds the cluster and makes the queues; returns the partitions of the queue.
fn set_up(plan: &Plan, world: &mut World, faults: &mut Faults) -> Result<Vec<u32>, String> {
    (0..plan.nodes).for_each(|node| world.start(node));
    if !world
        .run_until(SET_UP_US, faults, |world| world.machines.iter().all(|machine| machine.node().is_some()))
    {
        return Err("the nodes do not start".to_owned());
    }
    let (places, partitions) = (world.places(), plan.partitions);
    if let Some((process, node)) = world.machines[0].process.as_ref().zip(world.machines[0].node().cloned()) {
        process.enter(|| {
            tokio::spawn(async move {
                while node.found([9; 32], &places, partitions).await.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            })
        });
    }
    let (stage, mut client) = (world.stage.clone(), world.client(streams::CONDUCTOR));
    world.clients.spawn(async move { create_queues(&stage, &mut client).await });
    let queue =
        |world: &World| world.machines[0].node().map(|node| node.partitions_of(QUEUE)).unwrap_or_default();
    let is_ready = |world: &World| !queue(world).is_empty() && world.has_converged(partitions);
    if !world.run_until(SET_UP_US, faults, is_ready) {
        return Err("the cluster cannot be founded".to_owned());
    }
    Ok(queue(world))
}
