//! The id of a message in the form of a UUID, version 8 (RFC 9562): always the same for the same message.
//! Its bits are the partition (32), the sequence (16, 12 and 36, around version and variant) and a part of the cluster's id (26).

use leasehold_proto::v1::MessageId;

use crate::hex::{self, Digits};

/// The version and variant of a UUID that its maker lays out.
const VERSION_8: u128 = 8 << 76;
const VARIANT: u128 = 2 << 62;

/// As UUIDs are written. `cluster` tells messages of different clusters apart.
pub fn text(id: &MessageId, cluster: u32) -> Digits<36> {
    let (partition, sequence) = (u128::from(id.partition), u128::from(id.sequence));
    let high = sequence >> 48;
    let middle = (sequence >> 36) & 0xfff;
    let low = sequence & 0xf_ffff_ffff;
    let bits = (partition << 96)
        | (high << 80)
        | VERSION_8
        | (middle << 64)
        | VARIANT
        | (low << 26)
        | u128::from(cluster & 0x3ff_ffff);
    hex::uuid(bits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_uuids_and_different_ones_for_different_messages() {
        let mut seen = BTreeSet::new();
        for partition in [0, 1, 1_023, u32::MAX] {
            for sequence in [0, 1, 0xf_ffff_ffff, 0x10_0000_0000, 1 << 48, u64::MAX] {
                let id = text(&MessageId { partition, sequence }, 0x1234_5678);
                let parts = id.split('-').map(str::len).collect::<Vec<_>>();
                assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
                assert_eq!((&id[14..15], id.len()), ("8", 36), "{id}");
                assert!("89ab".contains(&id[19..20]), "{id}");
                assert!(seen.insert(id));
            }
        }
        let id = MessageId { partition: 1, sequence: 2 };
        assert_ne!(text(&id, 1), text(&id, 2));
        assert_eq!(&*text(&id, 1), "00000001-0000-8000-8000-000008000001");
    }
}
