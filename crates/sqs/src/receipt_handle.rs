//! Receipt handles: the node's sealed receipt in base64. The node checks that the cluster made it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::error::{Error, Kind};

pub fn text(receipt: &[u8]) -> String {
    STANDARD.encode(receipt)
}

/// # Errors
/// `ReceiptHandleIsInvalid`.
pub fn read(handle: &str) -> Result<Bytes, Error> {
    STANDARD.decode(handle).map(Bytes::from).map_err(|_| invalid(handle))
}

pub fn invalid(handle: &str) -> Error {
    const SHOWN_MAX: usize = 128;
    let shown = handle.chars().take(SHOWN_MAX).collect::<String>();
    let message = format!("The input receipt handle \"{shown}\" is not a valid receipt handle.");
    Error::new(Kind::ReceiptHandleIsInvalid, message)
}
