//! Bytes as text of a length that is known, which needs no memory of its own: every message of an answer has several of them.

use std::fmt;
use std::ops::Deref;

use serde::{Serialize, Serializer};

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Bytes of a UUID before which its text has a hyphen (RFC 9562, 4).
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

/// Hexadecimal digits, and hyphens between those of a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digits<const CHARACTERS: usize>([u8; CHARACTERS]);

/// Of a digest of 16 bytes.
pub fn of_16(bytes: [u8; 16]) -> Digits<32> {
    pairs(bytes)
}

/// Of a digest of 32 bytes.
pub fn of_32(bytes: [u8; 32]) -> Digits<64> {
    pairs(bytes)
}

/// As UUIDs are written.
pub fn uuid(bits: u128) -> Digits<36> {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (nth, byte) in bits.to_be_bytes().into_iter().enumerate() {
        at += usize::from(HYPHENS.contains(&nth));
        text[at..at + 2].copy_from_slice(&pair(byte));
        at += 2;
    }
    Digits(text)
}

fn pairs<const BYTES: usize, const CHARACTERS: usize>(bytes: [u8; BYTES]) -> Digits<CHARACTERS> {
    const { assert!(CHARACTERS == 2 * BYTES) };
    let mut text = [0; CHARACTERS];
    for (text, byte) in text.chunks_exact_mut(2).zip(bytes) {
        text.copy_from_slice(&pair(byte));
    }
    Digits(text)
}

fn pair(byte: u8) -> [u8; 2] {
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

impl<const CHARACTERS: usize> Deref for Digits<CHARACTERS> {
    type Target = str;

    fn deref(&self) -> &str {
        // It is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl<const CHARACTERS: usize> fmt::Display for Digits<CHARACTERS> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self)
    }
}

impl<const CHARACTERS: usize> fmt::Debug for Digits<CHARACTERS> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self)
    }
}

impl<const CHARACTERS: usize> Serialize for Digits<CHARACTERS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_uuids_are_written_as_formatting_writes_them() {
        for bits in [0, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210] {
            let hex = format!("{bits:032x}");
            assert_eq!(&*of_16(bits.to_be_bytes()), hex);
            let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
            assert_eq!(&*uuid(bits), parts.join("-"));
        }
        let bytes: [u8; 32] = std::array::from_fn(|at| 8 * at as u8);
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(&*of_32(bytes), hex);
    }
}
