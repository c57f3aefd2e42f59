//! What the catalogue answers.

use prost::Message as _;

/// Why a command changed nothing. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Refusal {
    Unspecified = 0,
    AlreadyFounded = 1,
    NotFounded = 2,
    InvalidArgument = 3,
    QueueExists = 4,
    UnknownQueue = 5,
    QueueInUse = 6,
    UnknownNode = 7,
    NodeExists = 8,
    NodeInUse = 9,
    LastNode = 10,
    UnknownPartition = 11,
    NotSettled = 12,
    /// The pause since the deletion or purge before is not over.
    TooSoon = 13,
    /// The queue has changed since it was read.
    Changed = 14,
    /// A later request of the client was made when it knew how this one ended, or had given it up.
    RequestOver = 15,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done,
    Node {
        id: u64,
        catalogue_replica: u64,
    },
    /// `created` is false when an equal queue was there.
    Queue {
        id: u64,
        created: bool,
    },
    Refused {
        refusal: Refusal,
        detail: String,
    },
}

impl Reply {
    pub(crate) fn refused(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self::Refused { refusal, detail: detail.into() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let wire = match self {
            Self::Done => Wire::default(),
            Self::Node { id, catalogue_replica } => {
                Wire { kind: NODE, id: *id, catalogue_replica: *catalogue_replica, ..Wire::default() }
            }
            Self::Queue { id, created } => {
                Wire { kind: QUEUE, id: *id, created: *created, ..Wire::default() }
            }
            Self::Refused { refusal, detail } => {
                Wire { kind: REFUSED, refusal: *refusal as i32, detail: detail.clone(), ..Wire::default() }
            }
        };
        wire.encode_to_vec()
    }

    /// # Errors
    /// When the bytes are no reply.
    pub fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        let wire = Wire::decode(bytes)?;
        Ok(match wire.kind {
            NODE => Self::Node { id: wire.id, catalogue_replica: wire.catalogue_replica },
            QUEUE => Self::Queue { id: wire.id, created: wire.created },
            REFUSED => Self::Refused { refusal: wire.refusal(), detail: wire.detail },
            _ => Self::Done,
        })
    }
}

const NODE: u32 = 1;
const QUEUE: u32 = 2;
const REFUSED: u32 = 3;

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(enumeration = "Refusal", tag = "4")]
    refusal: i32,
    #[prost(string, tag = "5")]
    detail: String,
    #[prost(uint64, tag = "6")]
    catalogue_replica: u64,
}
