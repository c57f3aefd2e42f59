//! Random commands of every kind: the invariants hold after each, and replicas that restore a snapshot anywhere agree.
//!
//! A failure prints its seed; `SEED=<seed> cargo test -p leasehold-catalogue --test random` replays it alone.
#![allow(clippy::unwrap_used)]

use leasehold_catalogue::{
    AddNode, AddPartitions, Catalogue, Command, CreateQueue, DeleteQueue, ForgetNode, Found, Founder, Kind,
    PacePurge, PlacePartition, QueueChange, Rebalance, RedriveAllow, RemoveNode, SetQueue, SetVersion,
    SettlePartition, TagQueue, UpdateNode,
};

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn name(&mut self, letter: char, end: u64) -> String {
        format!("{letter}{}", self.below(end))
    }

    fn change(&mut self) -> QueueChange {
        let dead_letter_queue = (self.below(3) == 0).then(|| self.name('q', 12));
        let receives_max = (self.below(4) == 0).then(|| self.below(1002) as u32);
        let kind = (self.below(3) == 0).then(|| self.below(3) as i32);
        let lease_ms = Some(self.below(50_000_000)).filter(|ms| ms % 2 == 0);
        let queues = (0..self.below(3)).map(|_| self.name('q', 12)).collect();
        let redrive_allow = (self.below(4) == 0).then(|| RedriveAllow { rule: self.below(3) as i32, queues });
        let labels = [(self.name('l', 40), self.name('v', 9)), (self.name('l', 40), String::new())];
        QueueChange {
            kind,
            lease_ms,
            dead_letter_queue,
            receives_max,
            redrive_allow,
            labels: labels.into(),
            ..QueueChange::default()
        }
    }

    fn found(&mut self) -> Kind {
        let nodes = 1 + self.below(5);
        let founders = (1..=nodes).map(|node| Founder {
            node,
            name: format!("n{node}"),
            peer_address: format!("n{node}:1"),
            client_address: format!("n{node}:2"),
            catalogue_replica: node,
        });
        let replication = if nodes < 3 { 1 } else { 3 };
        let (cluster_id, secret, partitions) = (vec![1; 16], vec![2; 32], 1 + self.below(12) as u32);
        Kind::Found(Found {
            cluster_id,
            secret,
            replication,
            partitions,
            founders: founders.collect(),
            version: 1,
        })
    }

    fn command(&mut self, catalogue: &Catalogue, wall_ms: u64) -> Kind {
        match self.below(24) {
            0..=3 => Kind::CreateQueue(CreateQueue {
                name: self.name('q', 12),
                settings: self.change(),
                shards: self.below(4) as u32,
                wall_ms,
                pause_ms: self.below(2) * 50,
                ..CreateQueue::default()
            }),
            4..=5 => Kind::SetQueue(SetQueue {
                name: self.name('q', 12),
                change: self.change(),
                wall_ms,
                tags: (0..self.below(4) / 3).map(|_| (self.name('t', 20), self.name('v', 9))).collect(),
                ..SetQueue::default()
            }),
            6 => {
                let remember_wall_ms = self.below(2) * wall_ms;
                Kind::DeleteQueue(DeleteQueue { name: self.name('q', 12), remember_wall_ms })
            }
            7 => {
                let set = [(self.name('t', 60), self.name('v', 9))].into_iter().collect();
                let remove = vec![self.name('t', 60)];
                Kind::TagQueue(TagQueue { name: self.name('q', 12), set, remove, wall_ms })
            }
            8..=9 => {
                let (name, peer_address) = (self.name('n', 9), format!("h{}:1", self.below(3)));
                Kind::AddNode(AddNode { name, peer_address, client_address: String::new() })
            }
            10 => Kind::RemoveNode(RemoveNode { name: self.name('n', 9) }),
            11 => Kind::ForgetNode(ForgetNode { id: self.below(20) }),
            12 => {
                let (id, client_address) = (self.below(12), self.name('h', 9));
                Kind::UpdateNode(UpdateNode { id, peer_address: "h:3".to_owned(), client_address })
            }
            13 => Kind::Rebalance(Rebalance { moves_max: self.below(6) as u32 }),
            14..=15 => {
                let nodes = (0..self.below(4)).map(|_| 1 + self.below(12)).collect();
                Kind::PlacePartition(PlacePartition { partition: self.below(14) as u32, nodes })
            }
            16 if self.below(8) == 0 => Kind::AddPartitions(AddPartitions { count: self.below(3) as u32 }),
            16 => {
                let (name, pause_ms) = (self.name('q', 12), self.below(20));
                Kind::PacePurge(PacePurge { name, wall_ms, pause_ms })
            }
            17 => Kind::SetVersion(SetVersion { version: self.below(5) as u32 }),
            _ => {
                let at = self.below(catalogue.partitions().len().max(1) as u64) as usize;
                let wanted = catalogue.partitions().nth(at);
                let replicas = wanted.map(|p| p.replicas.iter().map(|replica| replica.id).collect());
                let replicas = replicas.unwrap_or_default();
                Kind::SettlePartition(SettlePartition { partition: at as u32, replicas })
            }
        }
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut whole = Catalogue::new();
    let mut other = Catalogue::new();
    for log_index in 1..=600 {
        let kind = if log_index == 2 { random.found() } else { random.command(&whole, log_index) };
        let bytes = Command::bytes(kind.clone());
        let context = || format!("SEED={seed} entry {log_index}: {kind:?}");
        let reply = whole.apply(log_index, &bytes).unwrap();
        whole.check_invariants().unwrap_or_else(|broken| panic!("{}: {broken}", context()));
        if random.below(20) == 0 {
            other = Catalogue::restore(&other.snapshot()).unwrap();
        }
        assert_eq!(other.apply(log_index, &bytes).unwrap(), reply, "{}", context());
        assert_eq!(other.state_hash(), whole.state_hash(), "{}", context());
    }
    assert_eq!(other, whole, "SEED={seed}");
    assert!(whole.cluster().is_some() && whole.revision() > 300, "SEED={seed}: little was done");
}

#[test]
fn replicas_agree_and_every_rule_holds() {
    if let Ok(seed) = std::env::var("SEED") {
        return run(seed.parse().unwrap());
    }
    (1..=40).for_each(run);
}
