//! A message as its sender gave it. It is encoded inside the entry that sent it and stays there.
//!
//! ```text
//! entry payload  [ .. | Send [ .. | message [delay expiry | content] | message [delay expiry | content] ] | .. ]
//!                                                           ^^^^^^^ ContentRef { offset, len }
//! ```

use crate::ids::Origin;
use crate::limits::{ATTRIBUTES_BYTES_MAX, BODY_BYTES_MAX, DELAY_MS_MAX, EXPIRY_MS_MAX, NAME_BYTES_MAX};
use crate::wire::{DecodeError, Reader, Span, Wire, wire_struct};

/// What a sender wrote, borrowed from the bytes that hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content<'a> {
    /// The message group, 1 to 128 bytes. A FIFO queue needs one.
    pub group: Option<&'a [u8]>,
    /// The deduplication id, 1 to 128 bytes.
    pub dedup_id: Option<&'a [u8]>,
    /// User attributes, opaque here.
    pub attributes: &'a [u8],
    pub body: &'a [u8],
    /// Set on messages that came through a transfer.
    pub origin: Option<Origin>,
}

impl<'a> Content<'a> {
    /// A content with only a body.
    pub fn of_body(body: &'a [u8]) -> Self {
        Self { body, ..Self::default() }
    }

    /// Reads the bytes that a `ContentRef` names.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let content = Self::take_fields(&mut reader)?;
        reader.finish()?;
        Ok(content)
    }

    fn take_fields(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            group: Wire::take(reader)?,
            dedup_id: Wire::take(reader)?,
            attributes: Wire::take(reader)?,
            body: Wire::take(reader)?,
            origin: Wire::take(reader)?,
        })
    }

    /// Writes the bytes that `decode` reads.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        self.put(out);
    }

    pub(crate) fn len_bytes_about(&self) -> usize {
        const FIELDS_BYTES: usize = 32;
        let names = self.group.map_or(0, <[u8]>::len) + self.dedup_id.map_or(0, <[u8]>::len);
        FIELDS_BYTES + names + self.attributes.len() + self.body.len()
    }

    fn validate(&self) -> Result<(), DecodeError> {
        name_in_range(self.group, "group")?;
        name_in_range(self.dedup_id, "dedup_id")?;
        if self.attributes.len() > ATTRIBUTES_BYTES_MAX {
            return Err(DecodeError::OutOfRange("attributes"));
        }
        if self.body.len() > BODY_BYTES_MAX {
            return Err(DecodeError::OutOfRange("body"));
        }
        Ok(())
    }
}

impl<'a> Wire<'a> for Content<'a> {
    fn put(&self, out: &mut Vec<u8>) {
        self.group.put(out);
        self.dedup_id.put(out);
        self.attributes.put(out);
        self.body.put(out);
        self.origin.put(out);
    }

    fn take(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let start = reader.at();
        let content = Self::take_fields(reader)?;
        let offset = u32::try_from(start).map_err(|_| DecodeError::OutOfRange("offset"))?;
        let len = u32::try_from(reader.at() - start).map_err(|_| DecodeError::OutOfRange("content"))?;
        reader.spans.push(Span { offset, len });
        Ok(content)
    }
}

/// One message of a send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewMessage<'a> {
    /// The queue's delay when absent. Refused by FIFO queues when present and above zero.
    pub delay_ms: Option<u32>,
    /// Time to live from now, in wall time.
    pub expiry_ms: Option<u64>,
    pub content: Content<'a>,
}
wire_struct!('a NewMessage { delay_ms, expiry_ms, content });

impl NewMessage<'_> {
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        if self.delay_ms.is_some_and(|delay_ms| delay_ms > DELAY_MS_MAX) {
            return Err(DecodeError::OutOfRange("delay_ms"));
        }
        if self.expiry_ms.is_some_and(|expiry_ms| expiry_ms > EXPIRY_MS_MAX) {
            return Err(DecodeError::OutOfRange("expiry_ms"));
        }
        self.content.validate()
    }
}

/// One message of a transfer, under its number in the source's outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferMessage<'a> {
    pub number: u64,
    pub message: NewMessage<'a>,
}
wire_struct!('a TransferMessage { number, message });

pub(crate) fn name_in_range(name: Option<&[u8]>, field: &'static str) -> Result<(), DecodeError> {
    match name {
        Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX => Err(DecodeError::OutOfRange(field)),
        _ => Ok(()),
    }
}
