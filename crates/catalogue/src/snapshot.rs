//! The whole catalogue as bytes: `[magic 8 B][version u16][crc u32 of the rest] state`.

use std::collections::BTreeMap;

use prost::Message as _;
use prost::encoding::message;

use crate::requests::Session;
use crate::state::{Catalogue, Cluster, Node, Partition, Queue};

const MAGIC: [u8; 8] = *b"LHLDCAT\n";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 14;
const CRC_BYTES: usize = 4;
const ROOM: &str = "a vector has room for everything";
/// Of `Image::queues`.
const QUEUES_TAG: u32 = 4;

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
    /// Takes no more room than the bytes themselves: queues are encoded from where they are.
    pub fn snapshot(&self) -> Vec<u8> {
        let before = Image {
            cluster: self.cluster.clone(),
            nodes: self.nodes.values().cloned().collect(),
            partitions: self.partitions.values().cloned().collect(),
            ..Image::default()
        };
        let after = Image {
            next_node: self.next_node,
            next_replica: self.next_replica,
            next_queue: self.next_queue,
            revision: self.revision,
            deleted: self.deleted.clone(),
            sessions: self.requests.iter().collect(),
            ..Image::default()
        };
        let queues_bytes = self.queues().map(encoded_len_of).sum::<usize>();
        let state_bytes = before.encoded_len() + queues_bytes + after.encoded_len();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + state_bytes);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; CRC_BYTES]);
        before.encode(&mut bytes).expect(ROOM);
        self.queues().for_each(|queue| message::encode(QUEUES_TAG, queue, &mut bytes));
        after.encode(&mut bytes).expect(ROOM);
        let crc = crc32c::crc32c(&bytes[HEADER_BYTES..]);
        bytes[HEADER_BYTES - CRC_BYTES..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
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
            catalogue.queues.put(queue);
        }
        Ok(catalogue)
    }

    /// A number that two replicas with the same state agree on.
    pub fn state_hash(&self) -> u64 {
        crate::placement::hash_of_state(&self.snapshot())
    }
}

fn encoded_len_of(queue: &Queue) -> usize {
    message::encoded_len(QUEUES_TAG, queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, CreateQueue, DeleteQueue, Found, Founder, Kind, RequestName};

    /// A catalogue with something in every field of its image.
    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::new();
        let founders = (1..=3).map(|node| Founder {
            node,
            name: format!("n{node}"),
            peer_address: format!("n{node}:1"),
            client_address: format!("n{node}:2"),
            catalogue_replica: node,
        });
        let founders = founders.collect();
        let found = Found {
            cluster_id: vec![1; 16],
            secret: vec![2; 32],
            replication: 3,
            partitions: 4,
            founders,
            version: 1,
        };
        let create = |name: &str| {
            Kind::CreateQueue(CreateQueue { name: name.to_owned(), wall_ms: 5, ..CreateQueue::default() })
        };
        let named = RequestName { session: 7, sequence: 3, completed_below: 2 };
        let gone = DeleteQueue { name: "gone".to_owned(), remember_wall_ms: 9 };
        let kinds = [Kind::Found(found), create("gone"), create("b"), create("a"), Kind::DeleteQueue(gone)];
        for (index, kind) in (1..).zip(kinds) {
            let name = (index > 1).then_some(named);
            catalogue.apply(index, &Command::bytes_for(name, kind)).unwrap();
        }
        catalogue
    }

    #[test]
    fn the_state_is_the_image_in_one_piece() {
        let catalogue = catalogue();
        let image = Image {
            cluster: catalogue.cluster.clone(),
            nodes: catalogue.nodes.values().cloned().collect(),
            partitions: catalogue.partitions.values().cloned().collect(),
            queues: catalogue.queues().cloned().collect(),
            next_node: catalogue.next_node,
            next_replica: catalogue.next_replica,
            next_queue: catalogue.next_queue,
            revision: catalogue.revision,
            deleted: catalogue.deleted.clone(),
            sessions: catalogue.requests.iter().collect(),
        };
        assert!(image.queues.len() == 2 && image.deleted.len() == 1 && image.sessions.len() == 1);
        let bytes = catalogue.snapshot();
        assert_eq!(bytes[HEADER_BYTES..], image.encode_to_vec());
        assert_eq!(bytes.capacity(), bytes.len(), "nothing had to be moved");
        assert_eq!(Catalogue::restore(&bytes), Ok(catalogue));
    }
}
