//! Who leads: elections at once when a node is gone, leaders spread as the catalogue prefers, and hand-over before a stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_catalogue::NodeId;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::core::Core;
use crate::lane::PeerEvent;
use crate::raft::{Group, GroupId, Members, Role};

/// The first survivor asks for votes at once, each next one this much later, so that they do not split the votes.
const STAGGER: Duration = Duration::from_millis(40);
/// A survivor that finds no new leader asks again.
const CAMPAIGN_AGAIN: Duration = Duration::from_millis(400);
/// One that was not wanted is, as soon as the others miss the leader too.
const CONSENT_AGAIN: Duration = Duration::from_millis(50);
const CAMPAIGN_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked for groups without a leader, and how long one may be without.
const LEADERLESS_INTERVAL: Duration = Duration::from_millis(100);
const LEADERLESS_PATIENCE: Duration = Duration::from_millis(300);

/// How often it is looked which replicas are cut off, when no peer was lost or found.
const REACH_INTERVAL: Duration = Duration::from_secs(1);

/// How often leaders are compared with where they are best.
const BALANCE_INTERVAL: Duration = Duration::from_secs(2);
/// A node that came back leads again after this long.
const UP_FOR: Duration = Duration::from_secs(5);
/// A node that did not stay the leader is made it again after this long.
const TRANSFER_AGAIN: Duration = Duration::from_secs(10);
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// Reacts to nodes that go down, until the node stops.
pub async fn watch_peers(core: Arc<Core>, mut events: mpsc::UnboundedReceiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Down(node) => {
                tracing::warn!(node = node.0, "a node is down");
                replace_leaders(&core, node);
            }
            PeerEvent::Up(node) => tracing::info!(node = node.0, "a node is up"),
        }
    }
}

fn replace_leaders(core: &Arc<Core>, gone: NodeId) {
    for group in groups(core) {
        let is_led_there = matches!(&*group.role().borrow(), Role::Follower { leader: Some(leader) } if leader.node_id == gone.0);
        if is_led_there {
            tokio::spawn(campaign_in_turn(core.clone(), group, gone));
        }
    }
}

fn groups(core: &Core) -> Vec<Group> {
    let partitions = core.router.replicas().into_iter().map(|replica| replica.group().clone());
    partitions.chain([core.catalogue.group.clone()]).collect()
}

/// Whether this replica may win; an election that cannot be won would only make the next leader step down.
fn can_win(core: &Core, group: &Group) -> bool {
    let members = group.members();
    members.voters.contains(&group.replica()) && reaches_majority(core, &members)
}

fn reaches_majority(core: &Core, members: &Members) -> bool {
    let can_vote = |replica: &&u64| {
        let is_reachable = |node: NodeId| node == core.view.here() || core.lanes.is_reachable(node);
        members.nodes.get(replica).is_some_and(|node| is_reachable(NodeId(node.node_id)))
    };
    let votes = members.voters.iter().filter(can_vote).count();
    votes * 2 > members.voters.len()
}

/// Tells replicas whether they reach a majority, until the node stops.
pub async fn watch_reach(core: Arc<Core>) {
    let mut reach = core.lanes.reach();
    // A group that is about to be founded has no voters yet.
    let is_cut_off = |group: &Group| {
        let members = group.members();
        !members.voters.is_empty() && !reaches_majority(&core, &members)
    };
    loop {
        for replica in core.router.replicas() {
            replica.cut_off().set(is_cut_off(replica.group()));
        }
        core.catalogue.cut_off.set(is_cut_off(&core.catalogue.group));
        // Members change too, and replicas are started.
        let _ = timeout(REACH_INTERVAL, reach.changed()).await;
    }
}

/// Whether a follower knows no leader, or none that answers. One that is heard and does not hear would lead nobody for ever.
fn is_leaderless(core: &Core, group: &Group) -> bool {
    match &*group.role().borrow() {
        Role::Follower { leader: None } => true,
        Role::Follower { leader: Some(leader) } => !core.lanes.is_reachable(NodeId(leader.node_id)),
        Role::Leader { .. } | Role::Stopped => false,
    }
}

/// Stands for groups that nobody leads, as after a start of all nodes, until the node stops. Raft's own time-outs would do it
/// too, seconds later.
pub async fn watch_leaderless(core: Arc<Core>) {
    let mut leaderless: HashMap<GroupId, Instant> = HashMap::new();
    loop {
        sleep(LEADERLESS_INTERVAL).await;
        for group in groups(&core) {
            if !is_leaderless(&core, &group) {
                leaderless.remove(&group.id());
                continue;
            }
            let now = Instant::now();
            let due =
                leaderless.entry(group.id()).or_insert_with(|| now + LEADERLESS_PATIENCE + turn_of(&group));
            if now >= *due && can_win(&core, &group) {
                *due = now + CAMPAIGN_AGAIN + turn_of(&group);
                group.campaign().await;
            }
        }
    }
}

/// When it is this replica's turn to stand, after the first.
fn turn_of(group: &Group) -> Duration {
    let mut voters = group.members().voters;
    spread(&mut voters, group.id());
    let turn = voters.iter().position(|replica| *replica == group.replica()).unwrap_or(0);
    STAGGER * 5 * turn as u32
}

/// A different order for every group, so that its candidates and leaders spread.
fn spread(replicas: &mut [u64], group: GroupId) {
    replicas.sort_unstable();
    if !replicas.is_empty() {
        replicas.rotate_left(group.0 as usize % replicas.len());
    }
}

/// Asks for votes when it is this replica's turn among the survivors, and until somebody leads.
async fn campaign_in_turn(core: Arc<Core>, group: Group, gone: NodeId) {
    let mut survivors = group.members().voters_beyond(gone);
    spread(&mut survivors, group.id());
    let Some(turn) = survivors.iter().position(|replica| *replica == group.replica()) else { return };
    sleep(STAGGER * turn as u32).await;
    let end = Instant::now() + CAMPAIGN_PATIENCE;
    while Instant::now() < end {
        let is_led = match &*group.role().borrow() {
            Role::Leader { .. } | Role::Stopped => true,
            Role::Follower { leader } => leader.as_ref().is_some_and(|leader| leader.node_id != gone.0),
        };
        if is_led || core.lanes.is_reachable(gone) {
            return;
        }
        let has_asked = can_win(&core, &group) && group.campaign().await;
        sleep(if has_asked { CAMPAIGN_AGAIN + STAGGER * turn as u32 } else { CONSENT_AGAIN }).await;
    }
}

/// Hands partitions to the nodes that the catalogue prefers as their leaders, until the node stops.
pub async fn balance(core: Arc<Core>) {
    let mut up_since = HashMap::new();
    let mut tried = HashMap::new();
    loop {
        sleep(BALANCE_INTERVAL).await;
        let now = Instant::now();
        let nodes =
            core.view.look(|catalogue| catalogue.nodes().map(|node| NodeId(node.id)).collect::<Vec<_>>());
        for node in nodes {
            if core.lanes.is_reachable(node) {
                up_since.entry(node).or_insert(now);
            } else {
                up_since.remove(&node);
            }
        }
        for replica in core.router.replicas() {
            let leads = replica.group().term_led().is_some();
            if !leads || replica.group().gives_up_leadership() {
                continue;
            }
            let preferred = core.view.look(|catalogue| {
                let partition = catalogue.partition(replica.id()).filter(|partition| partition.is_settled)?;
                partition.replicas.first().copied()
            });
            let Some(preferred) = preferred.filter(|preferred| preferred.node_id() != core.view.here())
            else {
                continue;
            };
            let is_up =
                up_since.get(&preferred.node_id()).is_some_and(|since| now.duration_since(*since) >= UP_FOR);
            let is_too_soon =
                tried.get(&replica.id()).is_some_and(|at| now.duration_since(*at) < TRANSFER_AGAIN);
            if is_up && !is_too_soon && replica.group().may_hand_over_to(preferred.id) {
                tried.insert(replica.id(), now);
                hand_over(replica.group(), preferred.id).await;
            }
        }
    }
}

async fn hand_over(group: &Group, to: u64) {
    tracing::info!(group = group.id().0, to, "hands leadership over");
    if let Err(error) = group.transfer(to).await {
        tracing::warn!(group = group.id().0, to, error, "leadership cannot be handed over");
    }
}

/// Gives away everything that this node leads, before it stops.
pub async fn hand_over_all(core: &Core) {
    let groups =
        core.router.replicas().into_iter().map(|replica| replica.group().clone()).collect::<Vec<_>>();
    let led = groups.into_iter().chain([core.catalogue.group.clone()]);
    let led = led.filter(|group| group.term_led().is_some()).collect::<Vec<_>>();
    let mut given = Vec::new();
    for group in &led {
        let members = group.members();
        let is_reachable = |replica: &u64| {
            members.nodes.get(replica).is_some_and(|node| core.lanes.is_reachable(NodeId(node.node_id)))
        };
        let others = members.voters_beyond(core.view.here());
        let is_close = |replica: &u64| group.may_hand_over_to(*replica);
        let reachable = others.iter().copied().filter(is_reachable).filter(is_close).collect::<Vec<_>>();
        if let Some(to) = reachable.get(group.id().0 as usize % reachable.len().max(1)) {
            hand_over(group, *to).await;
            given.push(group);
        }
    }
    let all_gone = async {
        for group in given {
            let mut role = group.role();
            // A group that has stopped leads nothing either.
            let _ = role.wait_for(|role| !matches!(role, Role::Leader { .. })).await;
        }
    };
    if timeout(HAND_OVER_PATIENCE, all_gone).await.is_err() {
        tracing::warn!("some partitions found no new leader before this node stops");
    }
}
