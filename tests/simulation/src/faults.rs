//! What goes wrong: faults of processes, machines, disks, clocks and the network, from the seed, several at a time.

use clap::ValueEnum;
use leasehold_histories::history::Op;
use leasehold_histories::random::Random;
use leasehold_raft_log::Fault as DiskFault;

use crate::network::{End, Link};
use crate::trace;
use crate::world::{World, streams, survival};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The process of a node ends.
    Kill,
    /// Those of all nodes end.
    KillAll,
    /// A node stops for 0.1 to 4 s and does not notice.
    Pause,
    /// A machine loses power, at any write or sync.
    PowerLoss,
    /// Two machines do.
    PowerLossMajority,
    /// All do.
    PowerLossAll,
    /// A node is stopped while others go on, one of these loses power and goes on with the one that was stopped, the other is stopped.
    PausePower,
    /// The leader of a partition hands over.
    Transfer,
    /// A node is cut from the others; clients reach everybody.
    PartitionHalves,
    /// The node that leads most is.
    PartitionLeader,
    /// What a node says to the others does not arrive, or what they say to it.
    PartitionOneWay,
    /// Two nodes are cut from each other, and see the rest.
    PartitionBridge,
    /// No node sees another.
    IsolateAll,
    /// A node sees its peers and no client.
    IsolateClients,
    /// Packets of all links come late, by up to 200 ms.
    Delay,
    /// 5 to 30 % of the packets of all links have to be sent again.
    Loss,
    /// Connections break, with what is on its way.
    Reset,
    /// The wall clock of a node jumps by up to an hour either way.
    ClockJump,
    /// The batches of a disk take up to 3 s.
    SyncStall,
    /// A sync fails, and what it covered may be lost.
    SyncError,
    /// A write finds no room.
    DiskFull,
    /// A node takes snapshots and drops its entries: a follower that is behind needs one.
    Snapshot,
}

impl Fault {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How long it lasts, in milliseconds. Those of zero are over at once.
    fn lasts_ms(self) -> [u64; 2] {
        match self {
            Self::PartitionHalves
            | Self::PartitionLeader
            | Self::PartitionOneWay
            | Self::PartitionBridge
            | Self::IsolateAll
            | Self::IsolateClients => [300, 5_000],
            Self::Delay | Self::Loss | Self::SyncStall => [500, 4_000],
            Self::PausePower => [1_500, 4_000],
            _ => [0, 1],
        }
    }
}

struct Active {
    fault: Fault,
    number: usize,
    node: usize,
    ends_at_us: u64,
}

/// The faults of a run.
pub struct Faults {
    kinds: Vec<Fault>,
    random: Random,
    next_at_us: u64,
    ends_at_us: u64,
    active: Vec<Active>,
    pub count: usize,
}

impl Faults {
    /// None until they begin.
    pub fn new(kinds: &[Fault], seed: u64) -> Self {
        let random = Random::new(seed, streams::FAULTS);
        Self {
            kinds: kinds.to_vec(),
            random,
            next_at_us: u64::MAX,
            ends_at_us: 0,
            active: Vec::new(),
            count: 0,
        }
    }

    pub fn begin(&mut self, now_us: u64, ends_at_us: u64) {
        (self.next_at_us, self.ends_at_us) = (now_us + 500_000, ends_at_us);
    }

    /// Ends what is in force; healing is the world's.
    pub fn end(&mut self, world: &World) {
        self.next_at_us = u64::MAX;
        for Active { number, .. } in self.active.drain(..) {
            world.stage.ops().push(Op::FaultEnded { number, at_us: world.now_us });
        }
    }

    pub fn step(&mut self, world: &mut World) {
        let now_us = world.now_us;
        let (over, active) =
            std::mem::take(&mut self.active).into_iter().partition(|active| active.ends_at_us <= now_us);
        self.active = active;
        for active in over {
            self.undo(world, &active);
        }
        if self.next_at_us <= now_us && now_us < self.ends_at_us && !self.kinds.is_empty() {
            self.next_at_us = now_us + 1_000 * (20 + self.random.below(1_000));
            self.inject(world);
        }
    }

    fn inject(&mut self, world: &mut World) {
        let fault = self.kinds[self.random.below(self.kinds.len() as u64) as usize];
        let node = match fault {
            Fault::PartitionLeader => world.leaders().first().copied().unwrap_or(0),
            _ => self.random.below(world.machines.len() as u64) as usize,
        };
        let [shortest, longest] = fault.lasts_ms();
        let ends_at_us = world.now_us + 1_000 * (shortest + self.random.below(longest - shortest));
        let what = self.apply(world, fault, node);
        let number = self.count;
        self.count += 1;
        trace::event(&[number as u64, node as u64], format_args!("fault {number}: {} {what}", fault.name()));
        world.stage.ops().push(Op::Fault { number, at_us: world.now_us, fault: fault.name(), what });
        self.active.push(Active { fault, number, node, ends_at_us });
    }

    fn apply(&mut self, world: &mut World, fault: Fault, node: usize) -> String {
        let (now_us, nodes) = (world.now_us, world.machines.len());
        let other = (node + 1 + self.random.below(nodes as u64 - 1) as usize) % nodes;
        let all = (0..nodes).collect::<Vec<_>>();
        match fault {
            Fault::Kill => self.kill(world, &[node]),
            Fault::KillAll => self.kill(world, &all),
            Fault::Pause => {
                let until_us = now_us + 1_000 * (100 + self.random.below(3_900));
                world.machines[node].pause(until_us);
                return format!("n{node} until {until_us}");
            }
            Fault::PowerLoss => self.cut_power(world, &[node]),
            Fault::PowerLossMajority => self.cut_power(world, &[node, other]),
            Fault::PowerLossAll => self.cut_power(world, &all),
            // Until the fault is undone.
            Fault::PausePower => world.machines[node].pause(u64::MAX),
            Fault::Transfer => self.transfer(world, other),
            Fault::Snapshot => drop_entries(world, node),
            Fault::Reset => world.network.reset(End::Node(node), End::Node(other), 50),
            Fault::ClockJump => {
                world.machines[node].skew_ms = self.random.below(7_200_000) as i64 - 3_600_000;
            }
            Fault::SyncStall => world.machines[node].sync_us_max = 3_000_000,
            Fault::SyncError => self.fail_disk(world, node, DiskFault::SyncFails),
            Fault::DiskFull => self.fail_disk(world, node, DiskFault::NoSpace),
            Fault::Loss => {
                let percent = 5 + self.random.below(25);
                change_links(world, &pairs(nodes), |link| link.lost_percent = percent);
                return format!("{percent} percent");
            }
            Fault::Delay => change_links(world, &pairs(nodes), |link| link.delay_us_max = 200_000),
            _ => {
                let cut = self.cuts(fault, node, other, nodes);
                change_links(world, &cut, |link| link.is_cut = true);
            }
        }
        format!("n{node}, n{other}")
    }

    /// The links that a partition of the network cuts.
    fn cuts(&mut self, fault: Fault, node: usize, other: usize, nodes: usize) -> Vec<(End, End)> {
        let is_outward = self.random.percent(50);
        let here = End::Node(node);
        let is_cut = |(from, to): &(End, End)| match fault {
            Fault::PartitionHalves | Fault::PartitionLeader => {
                (*from == here || *to == here) && *from != End::Clients && *to != End::Clients
            }
            Fault::PartitionOneWay => {
                let (of, by) = if is_outward { (from, to) } else { (to, from) };
                *of == here && *by != End::Clients
            }
            Fault::PartitionBridge => {
                [(here, End::Node(other)), (End::Node(other), here)].contains(&(*from, *to))
            }
            Fault::IsolateAll => *from != End::Clients && *to != End::Clients,
            _ => (*from == here || *to == here) && (*from == End::Clients || *to == End::Clients),
        };
        pairs(nodes).into_iter().filter(is_cut).collect()
    }

    fn undo(&mut self, world: &mut World, active: &Active) {
        let nodes = world.machines.len();
        let Active { fault, node, .. } = *active;
        match fault {
            Fault::SyncStall => world.machines[node].heal_disk(),
            Fault::PausePower => self.swap_after_pause(world, node),
            Fault::Loss => change_links(world, &pairs(nodes), |link| link.lost_percent = 0),
            Fault::Delay => change_links(world, &pairs(nodes), |link| link.delay_us_max = 1_500),
            _ if fault.lasts_ms()[0] > 0 => change_links(world, &pairs(nodes), |link| link.is_cut = false),
            _ => {}
        }
        world.stage.ops().push(Op::FaultEnded { number: active.number, at_us: world.now_us });
    }

    fn restart_after(&mut self, world: &mut World, node: usize) {
        let at_us = world.now_us + 1_000 * (50 + self.random.below(2_500));
        world.machines[node].start_at_us = Some(at_us);
    }

    fn kill(&mut self, world: &mut World, nodes: &[usize]) {
        for node in nodes {
            world.machines[*node].kill(world.now_us);
            self.restart_after(world, *node);
        }
    }

    /// The power goes at one of the next operations of the disk, or soon.
    fn cut_power(&mut self, world: &mut World, nodes: &[usize]) {
        for node in nodes {
            let survival = survival(&mut self.random);
            let (after, within_us) = (1 + self.random.below(6), self.random.below(20_000));
            world.machines[*node].cut_power(after, world.now_us + within_us, survival);
            self.restart_after(world, *node);
        }
    }

    /// The machine that was stopped meets one that has lost what it had not synced, without the third.
    fn swap_after_pause(&mut self, world: &mut World, node: usize) {
        let nodes = world.machines.len();
        let (loses, stops) = ((node + 1) % nodes, (node + 2) % nodes);
        world.machines[node].pause(world.now_us);
        world.machines[loses].cut_power(1, world.now_us, survival(&mut self.random));
        world.machines[loses].start_at_us = Some(world.now_us + 200_000);
        world.machines[stops].pause(world.now_us + 2_500_000);
    }

    fn transfer(&mut self, world: &World, to: usize) {
        for machine in &world.machines {
            let (Some(process), Some(node)) = (&machine.process, machine.node().cloned()) else { continue };
            let led = node.replicas().into_iter().filter(|replica| replica.leads).collect::<Vec<_>>();
            let Some(replica) = led.get(self.random.below(led.len() as u64) as usize).copied() else {
                continue;
            };
            let to = world.machines[to].place.node_id;
            process.enter(|| drop(tokio::spawn(async move { node.hand_over(replica.partition, to).await })));
        }
    }

    fn fail_disk(&mut self, world: &World, node: usize, fault: DiskFault) {
        let fs = &world.machines[node].fs;
        fs.fail_at(fs.operations() + 1 + self.random.below(20), fault);
    }
}

fn drop_entries(world: &World, node: usize) {
    let machine = &world.machines[node];
    if let (Some(process), Some(node)) = (&machine.process, machine.node().cloned()) {
        process.enter(|| drop(tokio::spawn(async move { node.drop_entries().await })));
    }
}

fn pairs(nodes: usize) -> Vec<(End, End)> {
    let ends = || (0..nodes).map(End::Node).chain([End::Clients]);
    ends().flat_map(|from| ends().map(move |to| (from, to))).filter(|(from, to)| from != to).collect()
}

fn change_links(world: &World, links: &[(End, End)], change: impl Fn(&mut Link)) {
    for (from, to) in links {
        world.network.change(*from, *to, &change);
    }
}
