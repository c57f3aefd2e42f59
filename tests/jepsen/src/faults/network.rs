//! Faults of the network: which links, and what happens to their packets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_client::v1::StatusResponse;
use tokio::time::sleep;

use leasehold_histories::random::Random;

use super::Scene;
use super::schedule::Planned;
use crate::network::{Disturbance, Effect, Link, Place, Switch};

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
    /// Each of five or more nodes sees its two neighbours in a ring: all see a majority, and no two the same.
    PartitionRing,
    /// One direction after the other between nodes is cut until none is left, and they come back in another order.
    PartitionClog,
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

pub async fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let node = match fault {
        Fault::PartitionLeader => leader_of_most(scene).await.unwrap_or(planned.node),
        _ => planned.node,
    };
    let nodes = scene.processes.nodes.len();
    let disturbance = disturbance(fault, node, planned.choice, nodes);
    let what = format!("node {} for {:?}: {:?}", node + 1, planned.lasts, disturbance.effect);
    let switch = switch(scene)?.clone();
    if fault == Fault::PartitionClog {
        let step = planned.lasts / (2 * disturbance.links.len() as u32);
        let order = orders(disturbance.links, &mut Random::new(planned.choice, 0));
        scene.repeat(planned, clog(switch, planned.number, order, step));
    } else {
        switch.impose(planned.number, disturbance);
    }
    Ok(what)
}

pub async fn end(scene: &mut Scene<'_>, planned: &Planned) -> Result<(), String> {
    scene.end_repeating(planned).await;
    switch(scene)?.lift(planned.number);
    Ok(())
}

/// The order in which links are cut, and the one in which they come back.
fn orders(links: Vec<Link>, random: &mut Random) -> [Vec<Link>; 2] {
    let mut shuffled = || {
        let mut left = links.clone();
        let mut order = Vec::with_capacity(left.len());
        while !left.is_empty() {
            order.push(left.swap_remove(random.below(left.len() as u64) as usize));
        }
        order
    };
    [shuffled(), shuffled()]
}

async fn clog(switch: Arc<Switch>, number: usize, [cut, back]: [Vec<Link>; 2], step: Duration) {
    let closing = (1..=cut.len()).map(|count| cut[..count].to_vec());
    let opening = (1..=back.len()).map(|count| back[count..].to_vec());
    for links in closing.chain(opening) {
        switch.impose(number, Disturbance { links, effect: CUT });
        sleep(step).await;
    }
}

fn switch<'a>(scene: &Scene<'a>) -> Result<&'a Arc<Switch>, String> {
    let network = scene.network.ok_or("there is no network to disturb: this run is on loopback")?;
    Ok(&network.switch)
}

fn disturbance(fault: Fault, node: Place, choice: u64, nodes: usize) -> Disturbance {
    let is_node = |place: Place| place < nodes;
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
        Fault::PartitionRing => {
            let are_neighbours =
                |one: Place, other: Place| (one + 1) % nodes == other || (other + 1) % nodes == one;
            (links(nodes, |from, to| among_nodes(from, to) && !are_neighbours(from, to)), CUT)
        }
        Fault::IsolateAll | Fault::PartitionClog => (links(nodes, among_nodes), CUT),
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
    // The clients have the last place.
    let all = (0..=nodes).flat_map(|from| (0..=nodes).map(move |to| Link { from, to }));
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

    const CLIENTS: Place = 3;

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
    fn in_a_ring_every_node_sees_a_majority_and_no_two_the_same() {
        let cut = disturbance(Fault::PartitionRing, 0, 0, 5).links;
        let sees =
            |from: Place| (0..5).filter(|to| !cut.contains(&Link { from, to: *to })).collect::<Vec<_>>();
        let seen = (0..5).map(sees).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(seen.len(), 5);
        assert!(seen.iter().all(|seen| seen.len() == 3), "{seen:?}");
    }

    #[test]
    fn what_is_clogged_comes_back_in_another_order() {
        let all = disturbance(Fault::PartitionClog, 0, 0, 3).links;
        let [cut, back] = orders(all.clone(), &mut Random::new(1, 0));
        assert_ne!(cut, back);
        assert!(all.iter().all(|link| cut.contains(link) && back.contains(link)));
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
