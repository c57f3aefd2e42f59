//! The payload of one log entry: the leader's clocks and many requests.
//!
//! ```text
//! [version u8 | log_time_ms u64 | wall_time_ms u64 | (len u32 | request)*]
//! ```

use crate::command::{Command, Request, encode_request};
use crate::ids::RequestId;
use crate::limits::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX};
use crate::wire::{DecodeError, Reader, Span, Wire};

const WIRE_VERSION: u8 = 1;

/// Builds the payload of one entry. Only valid requests get in: an invalid one would halt the partition on every replica.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    prefix_bytes: usize,
    payload: Vec<u8>,
    commands: usize,
}

impl BatchBuilder {
    pub fn new(log_time_ms: u64, wall_time_ms: u64) -> Self {
        Self::after(&[], log_time_ms, wall_time_ms)
    }

    /// Builds in a buffer that begins with bytes of the caller, so that what is finished need not be copied behind them.
    /// Whoever does not know yet when the entry goes says so at its end, by [`Self::stamp`].
    pub fn after(prefix: &[u8], log_time_ms: u64, wall_time_ms: u64) -> Self {
        let mut payload = prefix.to_vec();
        payload.push(WIRE_VERSION);
        log_time_ms.put(&mut payload);
        wall_time_ms.put(&mut payload);
        Self { prefix_bytes: prefix.len(), payload, commands: 0 }
    }

    /// Sets the clocks anew: an entry is of the time at which it goes, not at which its first request came.
    pub fn stamp(&mut self, log_time_ms: u64, wall_time_ms: u64) {
        let clocks = [log_time_ms.to_le_bytes(), wall_time_ms.to_le_bytes()].concat();
        let start = self.prefix_bytes + 1;
        self.payload[start..start + clocks.len()].copy_from_slice(&clocks);
    }

    /// Adds a command without a request name.
    pub fn push(&mut self, command: &Command<'_>) -> Result<(), DecodeError> {
        self.push_parts(None, command)
    }

    pub fn push_request(&mut self, request: &Request<'_>) -> Result<(), DecodeError> {
        self.push_parts(request.id, &request.command)
    }

    /// Adds an encoded `Request` as it is, after checking it; returns how many messages it sends that are not delayed.
    pub fn push_encoded(&mut self, request: &[u8]) -> Result<usize, DecodeError> {
        let sent = Command::decode(request)?.sent();
        let start = self.payload.len();
        request.put(&mut self.payload);
        self.keep_or_undo(start)?;
        Ok(sent)
    }

    fn push_parts(&mut self, id: Option<RequestId>, command: &Command<'_>) -> Result<(), DecodeError> {
        command.validate()?;
        let start = self.payload.len();
        0u32.put(&mut self.payload);
        encode_request(id, command, &mut self.payload);
        let len =
            u32::try_from(self.payload.len() - start - 4).map_err(|_| DecodeError::OutOfRange("batch"))?;
        self.payload[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.keep_or_undo(start)
    }

    /// A request that would make the batch too large is taken out again: it belongs in the next one.
    fn keep_or_undo(&mut self, start: usize) -> Result<(), DecodeError> {
        if self.len_bytes() > BATCH_BYTES_MAX || self.commands == BATCH_COMMANDS_MAX {
            self.payload.truncate(start);
            return Err(DecodeError::OutOfRange("batch"));
        }
        self.commands += 1;
        Ok(())
    }

    pub fn len_bytes(&self) -> usize {
        self.payload.len() - self.prefix_bytes
    }

    /// Commands so far: `apply` answers each with one reply, in order.
    pub fn len(&self) -> usize {
        self.commands
    }

    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// The payload, behind the prefix if there is one.
    pub fn finish(self) -> Vec<u8> {
        self.payload
    }
}

/// A decoded payload. Spans are relative to the payload.
pub(crate) struct Batch<'a> {
    pub log_time_ms: u64,
    pub wall_time_ms: u64,
    pub requests: Vec<(Request<'a>, Vec<Span>)>,
}

impl<'a> Batch<'a> {
    pub fn decode(payload: &'a [u8]) -> Result<Self, DecodeError> {
        if payload.len() > BATCH_BYTES_MAX {
            return Err(DecodeError::OutOfRange("batch"));
        }
        let mut reader = Reader::new(payload);
        reader.version(WIRE_VERSION)?;
        let (log_time_ms, wall_time_ms) = Wire::take(&mut reader)?;
        let mut requests = Vec::new();
        while !reader.is_empty() {
            if requests.len() == BATCH_COMMANDS_MAX {
                return Err(DecodeError::OutOfRange("batch"));
            }
            let frame = <&[u8]>::take(&mut reader)?;
            let frame_offset = reader.at() - frame.len();
            let (request, mut spans) = Request::decode_with_spans(frame)?;
            for span in &mut spans {
                span.offset += u32::try_from(frame_offset).map_err(|_| DecodeError::OutOfRange("batch"))?;
            }
            requests.push((request, spans));
        }
        Ok(Self { log_time_ms, wall_time_ms, requests })
    }
}
