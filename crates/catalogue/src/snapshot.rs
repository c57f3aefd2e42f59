//! The whole catalogue as bytes: `[magic 8 B][version u16][crc u32 of the rest] state`.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::requests::Session;
use crate::state::{Catalogue, Cluster, Node, Partition, Queue};

const MAGIC: [u8; 8] = *b"LHLDCAT\n";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 14;

/// Bytes that are no catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("not a snapshot of a catalogue")]
    NotOne,
    #[error(
        "the catalogue was written by a newer version (format {0}, this one knows {VERSION}): upgrade this node"
    )]
    NewerVersion(u16),
    #[error("the snapshot of the catalogue is damaged")]
    Damaged,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(message, optional, tag = "1")]
    cluster: Option<Cluster>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "3")]
    partitions: Vec<Partition>,
    #[prost(message, repeated, tag = "4")]
    queues: Vec<Queue>,
    #[prost(uint64, tag = "5")]
    next_node: u64,
    #[prost(uint64, tag = "6")]
    next_replica: u64,
    #[prost(uint64, tag = "7")]
    next_queue: u64,
    #[prost(uint64, tag = "8")]
    revision: u64,
    #[prost(btree_map = "string, uint64", tag = "9")]
    deleted: BTreeMap<String, u64>,
    #[prost(message, repeated, tag = "10")]
    sessions: Vec<Session>,
}

impl Catalogue {
    pub fn snapshot(&self) -> Vec<u8> {
        let image = Image {
            cluster: self.cluster.clone(),
            nodes: self.nodes.values().cloned().collect(),
            partitions: self.partitions.values().cloned().collect(),
            queues: self.queues.values().cloned().collect(),
            next_node: self.next_node,
            next_replica: self.next_replica,
            next_queue: self.next_queue,
            revision: self.revision,
            deleted: self.deleted.clone(),
            sessions: self.requests.iter().collect(),
        };
        let state = image.encode_to_vec();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + state.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&state).to_le_bytes());
        bytes.extend_from_slice(&state);
        bytes
    }

    /// # Errors
    /// When the bytes are no snapshot, are damaged, or of a newer version.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let header =
            bytes.get(..HEADER_BYTES).filter(|header| header[..8] == MAGIC).ok_or(RestoreError::NotOne)?;
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version == 0 {
            return Err(RestoreError::NotOne);
        }
        if version > VERSION {
            return Err(RestoreError::NewerVersion(version));
        }
        let crc = u32::from_le_bytes([header[10], header[11], header[12], header[13]]);
        let state = &bytes[HEADER_BYTES..];
        if crc32c::crc32c(state) != crc {
            return Err(RestoreError::Damaged);
        }
        let image = Image::decode(state).map_err(|_| RestoreError::Damaged)?;
        let mut catalogue = Self {
            cluster: image.cluster,
            nodes: image.nodes.into_iter().map(|node| (node.id, node)).collect(),
            partitions: image.partitions.into_iter().map(|partition| (partition.id, partition)).collect(),
            next_node: image.next_node,
            next_replica: image.next_replica,
            next_queue: image.next_queue,
            revision: image.revision,
            deleted: image.deleted,
            requests: image.sessions.into_iter().collect(),
            ..Self::default()
        };
        for queue in image.queues {
            if let Some(dead_letter) = queue.settings.dead_letter {
                let sources = catalogue.dead_letter_sources.entry(dead_letter.queue).or_default();
                sources.insert(queue.name.clone());
            }
            catalogue.names.insert(queue.name.clone(), queue.id);
            catalogue.queues.insert(queue.id, queue);
        }
        Ok(catalogue)
    }

    /// A number that two replicas with the same state agree on.
    pub fn state_hash(&self) -> u64 {
        crate::placement::hash_of_state(&self.snapshot())
    }
}
