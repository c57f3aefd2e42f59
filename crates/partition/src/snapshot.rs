//! A partition as bytes, and back. Slots and the order of every list are kept, so receipts stay valid and the tail of the
//! log has the same effect on the copy as on the original.
//!
//! ```text
//! [version u8 | state | hash u64 of everything before]
//! ```

use crate::limits::MACHINE_VERSION_MAX;
use crate::partition::Partition;
use crate::wire::{DecodeError, Reader, Wire};

/// What is written. Version 2 added the tenants of standard queues, and the headroom; version 3 the retry budget; version 4 messages in
/// short.
const SNAPSHOT_VERSION: u8 = 4;
/// The oldest that is read.
const SNAPSHOT_VERSION_MIN: u8 = 1;
const HASH_BYTES: usize = 8;
/// What a shard that is hardly used takes, with its place in an index.
const SHARD_BYTES: usize = 400;

/// Why a snapshot was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// The hash does not match: bytes are missing or changed.
    Damaged,
    /// It was written by a version this code does not know.
    Decode(DecodeError),
    /// Its partition goes on as this machine version.
    UnsupportedVersion(u32),
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged => write!(f, "the snapshot is damaged"),
            Self::Decode(error) => write!(f, "the snapshot cannot be read: {error}"),
            Self::UnsupportedVersion(version) => {
                write!(
                    f,
                    "the snapshot has version {version}, and this build knows up to {MACHINE_VERSION_MAX}"
                )
            }
        }
    }
}

impl std::error::Error for SnapshotError {}

impl Partition {
    /// The whole state as bytes: 68 for each message, 3 to 11 for those within a batch that waits untouched in neighbouring slots; 108
    /// more (132 with an origin) for each that was granted, delayed or transferred, 68 for each log entry with live contents.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes_about());
        bytes.push(SNAPSHOT_VERSION);
        self.put(&mut bytes);
        hash(&bytes).put(&mut bytes);
        bytes
    }

    /// What a snapshot of this state and so many bytes weighs: the bytes that it would have with a record for each message. The time that
    /// it takes is in proportion to that, and not to its bytes.
    pub fn weight_bytes(&self, len_bytes: usize) -> u64 {
        const SAVED_BYTES: usize = 64;
        (len_bytes + self.store.messages.followers_about() * SAVED_BYTES) as u64
    }

    /// About how many bytes a snapshot has, and seldom fewer.
    pub fn len_bytes_about(&self) -> usize {
        self.store.len_bytes_about() + self.shards.len() * SHARD_BYTES
    }

    /// The partition that wrote `bytes`.
    pub fn restore(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let body_len = bytes.len().checked_sub(HASH_BYTES).ok_or(SnapshotError::Damaged)?;
        let (body, stored) = bytes.split_at(body_len);
        if stored != hash(body).to_le_bytes() {
            return Err(SnapshotError::Damaged);
        }
        let partition = Self::decode(body).map_err(SnapshotError::Decode)?;
        match partition.machine_version {
            ..=MACHINE_VERSION_MAX => Ok(partition),
            version => Err(SnapshotError::UnsupportedVersion(version)),
        }
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.snapshot_version = match u8::take(&mut reader)? {
            version @ SNAPSHOT_VERSION_MIN..=SNAPSHOT_VERSION => version,
            version => return Err(DecodeError::UnknownVersion(version)),
        };
        let partition = Self::take(&mut reader)?;
        reader.finish()?;
        Ok(partition)
    }

    /// A hash of the whole state: equal on every replica at the same applied index. O(state).
    pub fn state_hash(&self) -> u64 {
        let mut bytes = Vec::with_capacity(self.len_bytes_about());
        self.put(&mut bytes);
        hash(&bytes)
    }
}

/// A stable 64-bit hash, eight bytes at a time: each step multiplies by an odd constant and folds the high half down. It
/// finds damage and divergence, not malice.
fn hash(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, word: u64| {
        let product = (state ^ word).wrapping_mul(FACTOR);
        (product ^ (product >> 32)).rotate_left(23)
    };
    let mut words = bytes.chunks_exact(8);
    let mut state = mix(FACTOR, bytes.len() as u64);
    for word in &mut words {
        let mut buffer = [0; 8];
        buffer.copy_from_slice(word);
        state = mix(state, u64::from_le_bytes(buffer));
    }
    let mut buffer = [0; 8];
    buffer[..words.remainder().len()].copy_from_slice(words.remainder());
    mix(mix(state, u64::from_le_bytes(buffer)), FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_for_ever() {
        // These values lie in snapshots on disks.
        assert_eq!(hash(b""), 235_082_428_099_698_607);
        assert_eq!(hash(b"lease"), 15_403_094_502_645_042_823);
    }

    #[test]
    fn a_version_that_is_not_known_is_refused() {
        let newer = SNAPSHOT_VERSION + 1;
        let mut bytes = Partition::new().snapshot();
        bytes.truncate(bytes.len() - HASH_BYTES);
        bytes[0] = newer;
        hash(&bytes).put(&mut bytes);
        let refused = SnapshotError::Decode(DecodeError::UnknownVersion(newer));
        assert_eq!(Partition::restore(&bytes).map(|_| ()), Err(refused));
    }

    #[test]
    fn a_partition_that_went_on_is_refused() {
        let mut partition = Partition::new();
        partition.machine_version = MACHINE_VERSION_MAX;
        assert!(Partition::restore(&partition.snapshot()).is_ok());
        partition.machine_version += 1;
        let refused = SnapshotError::UnsupportedVersion(MACHINE_VERSION_MAX + 1);
        assert_eq!(Partition::restore(&partition.snapshot()).map(|_| ()), Err(refused));
    }

    #[test]
    fn every_single_flipped_bit_is_found() {
        let bytes = Partition::new().snapshot();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Partition::restore(&damaged).map(|_| ()), Err(SnapshotError::Damaged), "bit {bit}");
        }
    }
}
