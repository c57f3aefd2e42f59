//! Where replicas go while nodes come and leave: one per node, evenly, and never fewer than there is room for.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use leasehold_catalogue::{
    AddNode, AddPartitions, Catalogue, Command, Found, Founder, Kind, Partition, PlacePartition, Rebalance,
    Refusal, RemoveNode, Reply, SettlePartition,
};

struct Rig {
    catalogue: Catalogue,
    log_index: u64,
}

impl Rig {
    fn founded(nodes: u64, partitions: u32, replication: u32) -> Self {
        let founders = (1..=nodes).map(|node| Founder {
            node,
            name: format!("n{node}"),
            peer_address: format!("n{node}:7701"),
            client_address: format!("n{node}:7700"),
            catalogue_replica: node,
        });
        let (cluster_id, secret) = (vec![1; 16], vec![2; 32]);
        let found =
            Found { cluster_id, secret, replication, partitions, founders: founders.collect(), version: 1 };
        let mut rig = Self { catalogue: Catalogue::new(), log_index: 0 };
        assert_eq!(rig.apply(Kind::Found(found)), Reply::Done);
        rig.settle_all();
        rig
    }

    fn apply(&mut self, kind: Kind) -> Reply {
        self.log_index += 1;
        let reply = self.catalogue.apply(self.log_index, &Command::bytes(kind)).unwrap();
        self.catalogue.check_invariants().unwrap();
        one_replica_on_each_node(&self.catalogue);
        reply
    }

    fn settle(&mut self, partition: &Partition) {
        let replicas = partition.replicas.iter().map(|replica| replica.id).collect();
        let settle = SettlePartition { partition: partition.id, replicas };
        assert_eq!(self.apply(Kind::SettlePartition(settle)), Reply::Done);
    }

    fn settle_all(&mut self) {
        for partition in self.catalogue.partitions().cloned().collect::<Vec<_>>() {
            let replicas = partition.replicas.iter().map(|replica| replica.id).collect();
            let settle = Kind::SettlePartition(SettlePartition { partition: partition.id, replicas });
            self.log_index += 1;
            assert_eq!(self.catalogue.apply(self.log_index, &Command::bytes(settle)).unwrap(), Reply::Done);
        }
        self.catalogue.check_invariants().unwrap();
    }

    fn add(&mut self, name: &str) {
        let peer_address = format!("{name}:7701");
        let add = AddNode { name: name.to_owned(), peer_address, client_address: String::new() };
        assert!(matches!(self.apply(Kind::AddNode(add)), Reply::Node { .. }));
    }

    fn remove(&mut self, name: &str) {
        assert_eq!(self.apply(Kind::RemoveNode(RemoveNode { name: name.to_owned() })), Reply::Done);
    }

    fn rebalance(&mut self, moves_max: u32) {
        assert_eq!(self.apply(Kind::Rebalance(Rebalance { moves_max })), Reply::Done);
    }

    fn place(&mut self, partition: u32, nodes: &[u64]) {
        let place = PlacePartition { partition, nodes: nodes.to_vec() };
        assert_eq!(self.apply(Kind::PlacePartition(place)), Reply::Done);
    }

    fn unsettled(&self) -> usize {
        self.catalogue.partitions().filter(|partition| !partition.is_settled).count()
    }

    /// The lowest and highest number, over the nodes that stay, of what `count` finds.
    fn spread(&self, count: impl Fn(&Partition, u64) -> usize) -> (usize, usize) {
        let active = self.catalogue.nodes().filter(|node| !node.is_leaving);
        let counts = active.map(|node| self.catalogue.partitions().map(|p| count(p, node.id)).sum());
        let counts = counts.collect::<Vec<usize>>();
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    fn replicas_spread(&self) -> (usize, usize) {
        self.spread(|partition, node| nodes(partition).iter().filter(|on| **on == node).count())
    }

    fn leads_spread(&self) -> (usize, usize) {
        self.spread(|partition, node| usize::from(partition.replicas[0].node == node))
    }
}

fn nodes(partition: &Partition) -> Vec<u64> {
    partition.replicas.iter().map(|replica| replica.node).collect()
}

/// A node runs one replica of a group: the one that shall be there or the one that shall go.
fn one_replica_on_each_node(catalogue: &Catalogue) {
    for partition in catalogue.partitions() {
        let all = partition.replicas.iter().chain(&partition.previous).collect::<Vec<_>>();
        let distinct = all.iter().map(|replica| replica.node).collect::<BTreeSet<_>>();
        assert_eq!(distinct.len(), all.len(), "{partition:?}");
    }
}

#[test]
fn founding_and_growing_spread_replicas_and_leaders() {
    for (members, partitions, replication) in
        [(1, 16, 1), (3, 16, 3), (4, 16, 3), (5, 32, 3), (7, 64, 5), (10, 256, 3)]
    {
        let mut rig = Rig::founded(members, partitions, replication);
        for partitions in [partitions, partitions + 5] {
            let (partitions, members) = (partitions as usize, members as usize);
            let most = |total: usize| (total * 5).div_ceil(members * 4) + 1;
            let (replicas, leads) = (rig.replicas_spread().1, rig.leads_spread().1);
            let case =
                format!("{members} nodes, {partitions} partitions: {replicas} replicas, {leads} leaders");
            assert!(
                replicas <= most(partitions * replication as usize) && leads <= most(partitions),
                "{case}"
            );
            rig.apply(Kind::AddPartitions(AddPartitions { count: 5 }));
        }
    }
}

#[test]
fn rebalancing_reaches_evenness_for_any_number_of_new_nodes() {
    for (before, after) in [(3, 4), (3, 6), (5, 6), (5, 9)] {
        let mut rig = Rig::founded(before, 48, 3);
        (before + 1..=after).for_each(|node| rig.add(&format!("n{node}")));
        let mut rounds = 0;
        while rounds == 0 || rig.unsettled() > 0 {
            rig.settle_all();
            rig.rebalance(1000);
            rounds += 1;
            assert!(rounds < 10, "{before} to {after} nodes never ends");
        }
        let ((low, high), (leads_low, leads_high)) = (rig.replicas_spread(), rig.leads_spread());
        assert!(high - low <= 1, "{before} to {after} nodes: {low} to {high} replicas");
        assert!(
            leads_high - leads_low <= 1,
            "{before} to {after} nodes: {leads_low} to {leads_high} leaders"
        );
        rig.settle_all();
        let even = rig.catalogue.partitions().map(nodes).collect::<Vec<_>>();
        rig.rebalance(1000);
        assert_eq!(rig.catalogue.partitions().map(nodes).collect::<Vec<_>>(), even, "even stays as it is");
    }
}

#[test]
fn rebalancing_moves_no_more_than_it_may_and_no_more_than_it_needs() {
    let mut rig = Rig::founded(5, 100, 3);
    rig.add("n6");
    rig.rebalance(7);
    assert_eq!(rig.unsettled(), 7);
    rig.settle_all();
    rig.rebalance(1000);
    assert_eq!(rig.unsettled(), 50 - 7, "a sixth of 300 replicas goes to the sixth node");
}

#[test]
fn a_partition_that_is_moving_does_not_keep_others_from_moving() {
    let mut rig = Rig::founded(4, 8, 1);
    // Nodes 3 and 4 are the fullest; all that is on node 4 is moving already.
    (0..8).for_each(|partition| rig.place(partition, &[if partition < 4 { 3 } else { 4 }]));
    for partition in rig.catalogue.partitions().take(4).cloned().collect::<Vec<_>>() {
        rig.settle(&partition);
    }
    rig.rebalance(1000);
    let on_third = rig.catalogue.partitions().filter(|partition| nodes(partition) == [3]).count();
    assert!(on_third <= 2, "node 3 still has {on_third} of 8 partitions");
}

#[test]
fn a_node_that_gets_a_partition_back_while_it_moves_keeps_its_replica() {
    let mut rig = Rig::founded(4, 1, 3);
    rig.place(0, &[1, 2, 3]);
    rig.settle_all();
    let first = rig.catalogue.partitions().next().unwrap().clone();
    rig.place(0, &[4, 2, 3]);
    rig.remove("n4");
    let partition = rig.catalogue.partitions().next().unwrap();
    assert_eq!(nodes(partition).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 3]));
    let ids =
        |partition: &Partition| partition.replicas.iter().map(|r| (r.node, r.id)).collect::<BTreeMap<_, _>>();
    assert_eq!(ids(partition), ids(&first));
    assert_eq!(partition.previous.iter().map(|replica| replica.node).collect::<Vec<_>>(), [4]);
    assert!(!partition.is_settled);
}

#[test]
fn a_node_that_comes_back_later_gets_a_new_replica() {
    let mut rig = Rig::founded(2, 1, 1);
    rig.place(0, &[1]);
    rig.settle_all();
    let first = rig.catalogue.partitions().next().unwrap().replicas[0];
    rig.place(0, &[2]);
    rig.settle_all();
    rig.place(0, &[1]);
    assert_ne!(rig.catalogue.partitions().next().unwrap().replicas[0].id, first.id);
}

#[test]
fn partitions_that_shrank_grow_again_when_there_is_room() {
    let mut rig = Rig::founded(3, 12, 3);
    rig.remove("n1");
    rig.settle_all();
    assert!(rig.catalogue.partitions().all(|partition| partition.replicas.len() == 2));
    assert_eq!(rig.catalogue.partitions_short(), 0, "there is no room for more");
    rig.add("n4");
    assert_eq!(rig.catalogue.partitions_short(), 12);
    rig.rebalance(5);
    assert_eq!(rig.catalogue.partitions().filter(|partition| partition.replicas.len() == 3).count(), 5);
    assert_eq!(rig.catalogue.partitions_short(), 7);
    rig.settle_all();
    rig.rebalance(1000);
    assert_eq!(rig.catalogue.partitions_short(), 0);
    assert!(rig.catalogue.partitions().all(|partition| partition.replicas.len() == 3));
    assert_eq!(rig.replicas_spread(), (12, 12));
}

#[test]
fn only_a_settled_partition_is_placed_by_hand() {
    let mut rig = Rig::founded(4, 2, 3);
    let place =
        |partition, nodes: &[u64]| Kind::PlacePartition(PlacePartition { partition, nodes: nodes.to_vec() });
    let refusal = |reply: Reply| match reply {
        Reply::Refused { refusal, detail } => (refusal, detail),
        other => panic!("not refused: {other:?}"),
    };
    for (nodes, expected) in [
        (&[][..], "a partition is on 1, 3 or 5 different nodes"),
        (&[1, 2], "a partition is on 1, 3 or 5 different nodes"),
        (&[1, 2, 2], "a partition is on 1, 3 or 5 different nodes"),
    ] {
        assert_eq!(refusal(rig.apply(place(0, nodes))), (Refusal::InvalidArgument, expected.to_owned()));
    }
    assert_eq!(
        refusal(rig.apply(place(9, &[1]))),
        (Refusal::UnknownPartition, "there is no partition 9".to_owned())
    );
    assert_eq!(refusal(rig.apply(place(0, &[7]))).0, Refusal::UnknownNode);
    rig.remove("n4");
    rig.settle_all();
    assert_eq!(refusal(rig.apply(place(0, &[4]))).0, Refusal::UnknownNode);
    assert_eq!(rig.apply(place(0, &[1])), Reply::Done);
    assert_eq!(refusal(rig.apply(place(0, &[2]))).0, Refusal::NotSettled);
    let stale = SettlePartition { partition: 0, replicas: vec![1, 2, 3] };
    assert_eq!(refusal(rig.apply(Kind::SettlePartition(stale))).0, Refusal::NotSettled);
}

/// Placing 1,024 partitions happens in one command; it once built the ring anew for each of them.
#[test]
fn the_largest_founding_and_removal_take_moments() {
    let mut rig = Rig::founded(50, 1024, 3);
    rig.remove("n7");
    rig.rebalance(1000);
    let (low, high) = rig.replicas_spread();
    assert!(high - low <= 2, "{low} to {high} replicas");
}
