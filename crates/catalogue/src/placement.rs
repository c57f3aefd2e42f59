//! Where things go: partitions on nodes, shards on partitions, message groups on shards.
//!
//! The hash is SipHash-2-4 with fixed keys over canonical bytes, so every node and every version computes the same.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher as _};

use hashring::HashRing;
use siphasher::sip::SipHasher24;

use crate::PartitionId;

/// Points of each node on the ring: the fullest of ten nodes is then within a tenth of the mean.
const POINTS: u32 = 256;
const KEYS: (u64, u64) = (0x4c65_6173_6568_6f6c, 0x6420_7269_6e67_2031);

#[derive(Clone, Copy)]
struct StableHash;

impl BuildHasher for StableHash {
    type Hasher = SipHasher24;

    fn build_hasher(&self) -> SipHasher24 {
        SipHasher24::new_with_keys(KEYS.0, KEYS.1)
    }
}

/// Hashed by one write of canonical bytes: derived hashes differ between platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    node: u64,
    number: u32,
}

impl Hash for Point {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 13];
        bytes[0] = b'n';
        bytes[1..9].copy_from_slice(&self.node.to_le_bytes());
        bytes[9..].copy_from_slice(&self.number.to_le_bytes());
        state.write(&bytes);
    }
}

struct Key(u32);

impl Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut bytes = [b'p'; 5];
        bytes[1..].copy_from_slice(&self.0.to_le_bytes());
        state.write(&bytes);
    }
}

fn stable_hash(tag: u8, parts: [&[u8]; 2]) -> u64 {
    let mut hasher = StableHash.build_hasher();
    hasher.write(&[tag]);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish()
}

/// The shard of a queue that a message group belongs to. Shards never change, so neither does this.
pub fn shard_of_group(shards: &[u32], group: &[u8]) -> Option<PartitionId> {
    let at = stable_hash(b'g', [group, &[]]).checked_rem(shards.len() as u64)?;
    Some(PartitionId(shards[at as usize]))
}

/// How many replicas, and how many leaders, each node has.
#[derive(Debug, Clone, Default)]
pub struct Load {
    pub replicas: BTreeMap<u64, usize>,
    pub leads: BTreeMap<u64, usize>,
}

impl Load {
    pub fn add(&mut self, nodes: &[u64]) {
        for node in nodes {
            *self.replicas.entry(*node).or_default() += 1;
        }
        if let Some(first) = nodes.first() {
            *self.leads.entry(*first).or_default() += 1;
        }
    }

    pub fn remove(&mut self, nodes: &[u64]) {
        for node in nodes {
            *self.replicas.entry(*node).or_default() -= 1;
        }
        if let Some(first) = nodes.first() {
            *self.leads.entry(*first).or_default() -= 1;
        }
    }

    pub fn move_lead(&mut self, from: u64, to: u64) {
        *self.leads.entry(from).or_default() -= 1;
        *self.leads.entry(to).or_default() += 1;
    }

    pub fn replicas_on(&self, node: u64) -> usize {
        self.replicas.get(&node).copied().unwrap_or(0)
    }

    pub fn leads_on(&self, node: u64) -> usize {
        self.leads.get(&node).copied().unwrap_or(0)
    }
}

/// Nodes on a consistent-hash ring.
pub struct Ring {
    ring: HashRing<Point, StableHash>,
    nodes: Vec<u64>,
}

impl Ring {
    pub fn new(nodes: impl IntoIterator<Item = u64>) -> Self {
        let nodes = nodes.into_iter().collect::<Vec<_>>();
        let mut ring = HashRing::with_hasher(StableHash);
        ring.batch_add(
            nodes.iter().flat_map(|node| (0..POINTS).map(|number| Point { node: *node, number })).collect(),
        );
        Self { ring, nodes }
    }

    /// All nodes in the order in which the ring prefers them for a partition.
    fn preference(&self, partition: u32) -> Vec<u64> {
        let points = self
            .ring
            .get_with_replicas(&Key(partition), self.ring.len().saturating_sub(1))
            .unwrap_or_default();
        let mut order = Vec::with_capacity(self.nodes.len());
        for point in points {
            if !order.contains(&point.node) {
                order.push(point.node);
                if order.len() == self.nodes.len() {
                    break;
                }
            }
        }
        order
    }

    /// Chooses up to `count` distinct nodes for a partition: those in `keep` stay, the others are the first on the ring that are
    /// not fuller than the mean, and the one with the fewest leaders comes first.
    pub fn choose(
        &self,
        partition: u32,
        count: usize,
        keep: &[u64],
        load: &Load,
        mean_ceil: usize,
    ) -> Vec<u64> {
        let mut chosen =
            keep.iter().copied().filter(|node| self.nodes.contains(node)).take(count).collect::<Vec<_>>();
        let preference = self.preference(partition);
        for node in &preference {
            if chosen.len() < count && !chosen.contains(node) && load.replicas_on(*node) < mean_ceil {
                chosen.push(*node);
            }
        }
        let mut rest = preference.into_iter().filter(|node| !chosen.contains(node)).collect::<Vec<_>>();
        rest.sort_by_key(|node| load.replicas_on(*node));
        chosen.extend(rest.into_iter().take(count.saturating_sub(chosen.len())));
        if keep.is_empty()
            && let Some(first) = (0..chosen.len()).min_by_key(|at| load.leads_on(chosen[*at]))
        {
            chosen.swap(0, first);
        }
        chosen
    }
}

/// Chooses partitions for the shards of a queue: the emptiest, and among equals those that its name hashes to.
pub fn choose_shards(queue: &str, count: usize, shards_on: impl Iterator<Item = (u32, u64)>) -> Vec<u32> {
    let score = |(partition, shards): (u32, u64)| {
        (shards, stable_hash(b's', [queue.as_bytes(), &partition.to_le_bytes()]), partition)
    };
    let mut scored = shards_on.map(score).collect::<Vec<_>>();
    scored.sort_unstable();
    scored.into_iter().take(count).map(|(_, _, partition)| partition).collect()
}

pub fn hash_of_state(bytes: &[u8]) -> u64 {
    stable_hash(b'h', [bytes, &[]])
}
