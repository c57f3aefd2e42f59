//! Receipt handles: the node's sealed receipt in base64. The node checks that the cluster made it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use crate::error::{Error, Kind};

/// Bytes and characters that no handle has more of; a receipt has 41 bytes.
const BYTES_MAX: usize = 96;
const CHARACTERS_MAX: usize = BYTES_MAX / 3 * 4;

/// A receipt that is written as its handle.
#[derive(Debug)]
pub struct Handle(pub Bytes);

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0; CHARACTERS_MAX];
        let len = STANDARD.encode_slice(&self.0, &mut text).map_err(S::Error::custom)?;
        serializer.serialize_str(std::str::from_utf8(&text[..len]).map_err(S::Error::custom)?)
    }
}

/// # Errors
/// `ReceiptHandleIsInvalid`.
pub fn read(handle: &str) -> Result<Bytes, Error> {
    let mut receipt = [0; BYTES_MAX];
    let len = STANDARD.decode_slice(handle, &mut receipt).map_err(|_| invalid(handle))?;
    Ok(Bytes::copy_from_slice(&receipt[..len]))
}

pub fn invalid(handle: &str) -> Error {
    const SHOWN_MAX: usize = 128;
    let shown = handle.chars().take(SHOWN_MAX).collect::<String>();
    let message = format!("The input receipt handle \"{shown}\" is not a valid receipt handle.");
    Error::new(Kind::ReceiptHandleIsInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again_and_nothing_else_is_read() {
        for len in [0, 1, 41, BYTES_MAX] {
            let receipt = Bytes::from((0..len as u8).collect::<Vec<_>>());
            let handle = serde_json::to_string(&Handle(receipt.clone())).unwrap();
            assert_eq!(handle, format!("\"{}\"", STANDARD.encode(&receipt)));
            assert_eq!(read(handle.trim_matches('"')).unwrap(), receipt);
        }
        for wrong in ["?", "A", "ü", &"A".repeat(CHARACTERS_MAX + 4)] {
            assert_eq!(read(wrong).unwrap_err().kind, Kind::ReceiptHandleIsInvalid, "{wrong}");
        }
    }
}
