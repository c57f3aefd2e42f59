//! Receipts as clients hold them: the receipt of a lease, and proof that this cluster made it.
//!
//! ```text
//!   version  partition  queue  slot  sequence  grant  MAC
//!   1 byte   4          8      4     8         8      8      little-endian, 41 bytes
//! ```
//!
//! The MAC is SipHash-2-4 over all bytes before it ("SipHash: a fast short-input PRF", Aumasson and Bernstein 2012), under a
//! key that every node of the cluster derives from the cluster's secret. It keeps a client from settling messages that it was
//! never given. A receipt is not secret by itself and hides nothing; whether its lease still holds is the partition's to say.

use std::fmt;
use std::hash::Hasher;
use std::hint::black_box;

use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hasher128, SipHasher24 as SipHasher24x128};

const VERSION: u8 = 1;
const MAC_LEN: usize = 8;
const SIGNED_LEN: usize = 1 + 4 + 8 + 4 + 8 + 8;
/// Bytes of a sealed receipt.
pub const RECEIPT_LEN: usize = SIGNED_LEN + MAC_LEN;

/// Separates this use of the cluster's secret from every other.
const KEY_PURPOSE: &[u8] = b"leasehold receipt 1";

/// What a receipt says: one grant of one message of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptToken {
    pub partition: u32,
    pub queue: u64,
    pub slot: u32,
    pub sequence: u64,
    pub grant: u64,
}

/// The key of a cluster's receipts. Equal on all its nodes.
#[derive(Clone)]
pub struct ReceiptKey([u8; 16]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    #[error("a receipt is {RECEIPT_LEN} bytes, as a receive returned them; this has {len}")]
    Malformed { len: usize },
    #[error("the receipt was not made by this cluster")]
    Forged,
    #[error("the receipt has version {found}, and this node understands {VERSION}")]
    Version { found: u8 },
}

impl ReceiptKey {
    /// Derives the key from the cluster's secret, which must be random.
    pub fn derive(cluster_secret: &[u8; 16]) -> Self {
        let mut hasher = SipHasher24x128::new_with_key(cluster_secret);
        hasher.write(KEY_PURPOSE);
        Self(hasher.finish128().as_bytes())
    }
}

impl fmt::Debug for ReceiptKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ReceiptKey(..)")
    }
}

/// Makes the receipt that a client is given.
pub fn seal(key: &ReceiptKey, token: &ReceiptToken) -> [u8; RECEIPT_LEN] {
    let mut bytes = [0; RECEIPT_LEN];
    let fields: [&[u8]; 6] = [
        &[VERSION],
        &token.partition.to_le_bytes(),
        &token.queue.to_le_bytes(),
        &token.slot.to_le_bytes(),
        &token.sequence.to_le_bytes(),
        &token.grant.to_le_bytes(),
    ];
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    assert_eq!(at, SIGNED_LEN);
    let mac = mac(key, &bytes[..SIGNED_LEN]);
    bytes[SIGNED_LEN..].copy_from_slice(&mac);
    bytes
}

/// Reads what a client sent as a receipt.
pub fn open(key: &ReceiptKey, bytes: &[u8]) -> Result<ReceiptToken, ReceiptError> {
    let malformed = ReceiptError::Malformed { len: bytes.len() };
    // The version first: another one may have another length.
    match bytes.first() {
        None => return Err(malformed),
        Some(&VERSION) => {}
        Some(&found) => return Err(ReceiptError::Version { found }),
    }
    let bytes: &[u8; RECEIPT_LEN] = bytes.try_into().map_err(|_| malformed)?;
    let (signed, given) = bytes.split_at(SIGNED_LEN);
    if !equal_in_constant_time(&mac(key, signed), given) {
        return Err(ReceiptError::Forged);
    }
    Ok(ReceiptToken {
        partition: u32::from_le_bytes(field(signed, 1)),
        queue: u64::from_le_bytes(field(signed, 5)),
        slot: u32::from_le_bytes(field(signed, 13)),
        sequence: u64::from_le_bytes(field(signed, 17)),
        grant: u64::from_le_bytes(field(signed, 25)),
    })
}

fn mac(key: &ReceiptKey, signed: &[u8]) -> [u8; MAC_LEN] {
    let mut hasher = SipHasher24::new_with_key(&key.0);
    hasher.write(signed);
    hasher.finish().to_le_bytes()
}

/// Looks at every byte whatever the first ones are, so that the time tells a forger nothing.
fn equal_in_constant_time(left: &[u8; MAC_LEN], right: &[u8]) -> bool {
    assert_eq!(right.len(), MAC_LEN);
    let difference =
        left.iter().zip(right).fold(0, |difference, (left, right)| black_box(difference | (left ^ right)));
    difference == 0
}

fn field<const LEN: usize>(signed: &[u8], at: usize) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes.copy_from_slice(&signed[at..at + LEN]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: ReceiptToken = ReceiptToken {
        partition: 0x0102_0304,
        queue: 0x1112_1314_1516_1718,
        slot: 0x2122_2324,
        sequence: 0x3132_3334_3536_3738,
        grant: 0x4142_4344_4546_4748,
    };

    fn key() -> ReceiptKey {
        ReceiptKey::derive(b"secret of sixtee")
    }

    #[test]
    fn what_is_sealed_is_opened() {
        let extremes = ReceiptToken { partition: u32::MAX, queue: 0, slot: 0, sequence: u64::MAX, grant: 1 };
        for token in [TOKEN, extremes] {
            assert_eq!(open(&key(), &seal(&key(), &token)), Ok(token));
        }
    }

    /// Receipts outlive an upgrade: these bytes must open for ever.
    #[test]
    fn the_format_is_fixed() {
        let hex: String = seal(&key(), &TOKEN).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0104030201181716151413121124232221383736353433323148474645444342415dd6d9e7eca5333f");
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let sealed = seal(&key(), &TOKEN);
        for bit in 0..RECEIPT_LEN * 8 {
            let mut bytes = sealed;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = open(&key(), &bytes).unwrap_err();
            let expected =
                if bit < 8 { ReceiptError::Version { found: bytes[0] } } else { ReceiptError::Forged };
            assert_eq!(error, expected, "bit {bit}");
        }
    }

    #[test]
    fn other_lengths_and_other_keys_are_refused() {
        let sealed = seal(&key(), &TOKEN);
        for len in 0..RECEIPT_LEN {
            assert_eq!(open(&key(), &sealed[..len]), Err(ReceiptError::Malformed { len }));
        }
        let long = [sealed.as_slice(), &[0]].concat();
        assert_eq!(open(&key(), &long), Err(ReceiptError::Malformed { len: RECEIPT_LEN + 1 }));
        assert_eq!(open(&ReceiptKey::derive(&[0; 16]), &sealed), Err(ReceiptError::Forged));
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..100_000 {
            let mut bytes: Vec<u8> = (0..random() % 64).map(|_| random() as u8).collect();
            if round % 2 == 0 {
                // The right version and length, so that it is the MAC that refuses.
                bytes.resize(RECEIPT_LEN, 0xa5);
                bytes[0] = VERSION;
            }
            assert!(open(&key(), &bytes).is_err());
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", key()), "ReceiptKey(..)");
    }
}
