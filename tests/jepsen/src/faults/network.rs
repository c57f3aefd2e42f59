//! Faults of the network: which links, and what happens to their packets.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold_client::v1::StatusResponse;

use super::Scene;
use super::schedule::Planned;
use crate::network::{CLIENTS, Disturbance, Effect, Link, Place, Switch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// A node is cut from the others; clients reach everybody.
    PartitionHalves,
    /// The node that leads most partitions is cut from the others.
    PartitionLeader,
    /// What a node says to the others vanishes, or what they say to it; the way back works.
    PartitionOneWay,
    /// Two nodes are cut from each other, and both see the third.
    PartitionBridge,
    /// No node sees another.
    IsolateAll,
    /// A node sees its peers, and no client.
    IsolateClients,
    /// 5 to 30 of a hundred packets vanish, everywhere.
    Loss,
    /// Every packet is late by 20 to 200 ms, each by another time.
    Delay,
    /// 5 to 50 of a hundred packets come twice, everywhere.
    Duplicate,
}

/// A cut is noticed after a second: it has to last longer than that and the election that follows.
pub const LASTS_MS: [u64; 2] = [2_000, 8_000];
/// Nodes that were cut off find each other again within a second: shorter calm would hide what comes after.
pub const CALM_MS: [u64; 2] = [1_000, 4_000];

const CUT: Effect = Effect::Loss { percent: 100 };

pub async fn begin(
    scene: &mut Scene<'_>,
    fault: Fault,
    number: usize,
    planned: &Planned,
) -> Result<String, String> {
    let node = match fault {
        Fault::PartitionLeader => leader_of_most(scene).await.unwrap_or(planned.node),
        _ => planned.node,
    };
    let disturbance = disturbance(fault, node, planned.choice, scene.processes.nodes.len());
    let what = format!("node {} for {:?}: {:?}", node + 1, planned.lasts, disturbance.effect);
    switch(scene)?.impose(number, disturbance);
    Ok(what)
}

pub fn end(scene: &Scene<'_>, number: usize) -> Result<(), String> {
    switch(scene)?.lift(number);
    Ok(())
}

fn switch<'a>(scene: &'a Scene<'_>) -> Result<&'a Switch, String> {
    let network = scene.network.ok_or("there is no network to disturb: this run is on loopback")?;
    Ok(&network.switch)
}

fn disturbance(fault: Fault, node: Place, choice: u64, nodes: usize) -> Disturbance {
    let is_node = |place: Place| place != CLIENTS;
    let all = |_: Place, _: Place| true;
    let of_node = |one: Place, other: Place| one == node || other == node;
    let among_nodes = |from: Place, to: Place| is_node(from) && is_node(to);
    let chosen = |least: u64, most: u64| least + choice % (most - least + 1);
    let (links, effect) = match fault {
        Fault::PartitionHalves | Fault::PartitionLeader => {
            (links(nodes, |from, to| among_nodes(from, to) && of_node(from, to)), CUT)
        }
        Fault::PartitionOneWay if choice.is_multiple_of(2) => {
            (links(nodes, |from, to| among_nodes(from, to) && from == node), CUT)
        }
        Fault::PartitionOneWay => (links(nodes, |from, to| among_nodes(from, to) && to == node), CUT),
        Fault::PartitionBridge => (links(nodes, |from, to| among_nodes(from, to) && !of_node(from, to)), CUT),
        Fault::IsolateAll => (links(nodes, among_nodes), CUT),
        Fault::IsolateClients => (links(nodes, |from, to| !among_nodes(from, to) && of_node(from, to)), CUT),
        Fault::Loss => (links(nodes, all), Effect::Loss { percent: chosen(5, 30) }),
        Fault::Delay => {
            let (min, max) = (Duration::from_millis(20), Duration::from_millis(chosen(60, 200)));
            (links(nodes, all), Effect::Delay { min, max })
        }
        Fault::Duplicate => (links(nodes, all), Effect::Duplicate { percent: chosen(5, 50) }),
    };
    Disturbance { links, effect }
}

fn links(nodes: usize, wanted: impl Fn(Place, Place) -> bool) -> Vec<Link> {
    let places = || (0..nodes).chain([CLIENTS]);
    let all = places().flat_map(|from| places().map(move |to| Link { from, to }));
    all.filter(|link| link.from != link.to && wanted(link.from, link.to)).collect()
}

/// The node that leads most partitions, as the cluster tells it.
async fn leader_of_most(scene: &Scene<'_>) -> Option<usize> {
    let status = scene.stage.client().ok()?.cluster_status().await.ok()?;
    let name = name_of_most(&status)?;
    scene.processes.nodes.iter().position(|node| node.name == name)
}

fn name_of_most(status: &StatusResponse) -> Option<String> {
    let mut led: BTreeMap<u64, usize> = BTreeMap::new();
    for partition in &status.partitions {
        *led.entry(partition.leader).or_default() += 1;
    }
    let (leader, _) = led.into_iter().filter(|(leader, _)| *leader != 0).max_by_key(|(_, count)| *count)?;
    status.nodes.iter().find(|node| node.id == leader).map(|node| node.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(fault: Fault, choice: u64) -> Vec<(Place, Place)> {
        let imposed = disturbance(fault, 1, choice, 3);
        imposed.links.iter().map(|link| (link.from, link.to)).collect()
    }

    #[test]
    fn each_partition_cuts_its_links_and_no_other() {
        assert_eq!(pairs(Fault::PartitionHalves, 0), [(0, 1), (1, 0), (1, 2), (2, 1)]);
        assert_eq!(pairs(Fault::PartitionLeader, 0), pairs(Fault::PartitionHalves, 0));
        assert_eq!(pairs(Fault::PartitionOneWay, 0), [(1, 0), (1, 2)]);
        assert_eq!(pairs(Fault::PartitionOneWay, 1), [(0, 1), (2, 1)]);
        assert_eq!(pairs(Fault::PartitionBridge, 0), [(0, 2), (2, 0)]);
        assert_eq!(pairs(Fault::IsolateAll, 0), [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
        assert_eq!(pairs(Fault::IsolateClients, 0), [(1, CLIENTS), (CLIENTS, 1)]);
        assert_eq!(pairs(Fault::Loss, 0).len(), 12);
    }

    #[test]
    fn what_is_chosen_stays_within_what_is_said() {
        for choice in 0..1_000 {
            match disturbance(Fault::Loss, 0, choice, 3).effect {
                Effect::Loss { percent } => assert!((5..=30).contains(&percent)),
                other => panic!("{other:?}"),
            }
            match disturbance(Fault::Delay, 0, choice, 3).effect {
                Effect::Delay { min, max } => {
                    assert!(min < max && max <= Duration::from_millis(200));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
