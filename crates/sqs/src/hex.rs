//! Bytes as text.

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Bytes of a UUID before which its text has a hyphen (RFC 9562, 4).
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let pair = pair(*byte);
        text.extend(pair.map(char::from));
    }
    text
}

/// As UUIDs are written. Every answer has one, and so has every message in it: they are not formatted number by number.
pub fn uuid(bits: u128) -> String {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (nth, byte) in bits.to_be_bytes().into_iter().enumerate() {
        at += usize::from(HYPHENS.contains(&nth));
        text[at..at + 2].copy_from_slice(&pair(byte));
        at += 2;
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn pair(byte: u8) -> [u8; 2] {
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_uuids_are_written_as_formatting_writes_them() {
        assert_eq!(text(&[0, 0x9a, 0xff]), "009aff");
        for bits in [0, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210] {
            let hex = format!("{bits:032x}");
            assert_eq!(text(&bits.to_be_bytes()), hex);
            let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
            assert_eq!(uuid(bits), parts.join("-"));
        }
    }
}
