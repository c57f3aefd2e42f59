//! What travels on a lane, and its bytes.
//!
//! ```text
//! batch:  length of the frames u32 | crc32c of the frames u32 | frames
//! frame:  length of the body u32 | kind u8 | group u32 | call u64 | target u64 | body
//! ```
//!
//! Little-endian. The checksum is for what networks get wrong: a damaged batch breaks the lane, and nothing of it is taken.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};

use crate::limits::{FRAME_BATCH_BYTES_MAX, FRAME_BATCH_FRAMES_MAX, PEER_MESSAGE_BYTES_MAX};

/// Bytes before the frames of a batch.
pub const BATCH_HEAD_BYTES: usize = 8;
const FRAME_HEAD_BYTES: usize = 25;
/// The largest body of a frame: its batch is taken whatever else is in it. A larger one would break the lane, and all that is on it.
pub const BODY_BYTES_MAX: usize =
    PEER_MESSAGE_BYTES_MAX - FRAME_BATCH_BYTES_MAX - FRAME_BATCH_FRAMES_MAX * FRAME_HEAD_BYTES;
/// Bodies up to this size are copied behind their heads; larger ones go to the socket from where they are.
const COPIED_BYTES_MAX: usize = 1024;
/// Received bodies up to this size get memory of their own: a view holds all that was read with it for as long as it lives, and a
/// receive may wait, and an entry be cached, for long.
const OWNED_BYTES_MAX: usize = 16 * 1024;

/// A call, or the answer to one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Chosen by the caller; the answer carries the same one.
    pub call: u64,
    /// A [`FrameKind`]; that of a newer peer may be unknown here.
    pub kind: u8,
    pub group: u32,
    /// Replica for which a Raft message is meant.
    pub target: u64,
    pub body: Bytes,
}

/// What a frame is for. The numbers are what travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Liveness = 0,
    Append = 1,
    Vote = 2,
    PreVote = 3,
    TransferLeader = 4,
    /// A partition command for its leader.
    Command = 5,
    /// A question to the leader that changes nothing.
    Query = 6,
    /// A command for the catalogue's leader.
    Catalogue = 7,
    Answer = 8,
    Failure = 9,
    /// The caller no longer waits for the answer.
    Cancel = 10,
}

impl FrameKind {
    const ALL: [Self; 11] = [
        Self::Liveness,
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::Command,
        Self::Query,
        Self::Catalogue,
        Self::Answer,
        Self::Failure,
        Self::Cancel,
    ];
}

impl Frame {
    /// What the frame is for, if this node knows it.
    pub fn kind(&self) -> Option<FrameKind> {
        FrameKind::ALL.get(usize::from(self.kind)).copied()
    }

    fn head(&self) -> [u8; FRAME_HEAD_BYTES] {
        let mut head = [0; FRAME_HEAD_BYTES];
        let mut rest = &mut head[..];
        rest.put_u32_le(self.body.len() as u32);
        rest.put_u8(self.kind);
        rest.put_u32_le(self.group);
        rest.put_u64_le(self.call);
        rest.put_u64_le(self.target);
        head
    }
}

/// Why received bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a batch of {0} bytes: at most {PEER_MESSAGE_BYTES_MAX} are taken")]
    TooLong(usize),
    #[error("a batch was damaged on its way")]
    Damaged,
    #[error("a frame is longer than its batch")]
    Torn,
}

/// What stands before the frames of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchHead {
    pub length_bytes: usize,
    crc32c: u32,
}

impl BatchHead {
    /// # Errors
    /// When the batch is longer than any node sends.
    pub fn decode(bytes: [u8; BATCH_HEAD_BYTES]) -> Result<Self, Malformed> {
        let mut rest = &bytes[..];
        let (length_bytes, crc32c) = (rest.get_u32_le() as usize, rest.get_u32_le());
        if length_bytes > PEER_MESSAGE_BYTES_MAX {
            return Err(Malformed::TooLong(length_bytes));
        }
        Ok(Self { length_bytes, crc32c })
    }

    /// The frames of the batch; large bodies are views into `bytes`.
    ///
    /// # Errors
    /// When they are not what was sent.
    pub fn frames(self, mut bytes: Bytes) -> Result<Vec<Frame>, Malformed> {
        if crc32c::crc32c(&bytes) != self.crc32c {
            return Err(Malformed::Damaged);
        }
        let mut frames = Vec::new();
        while bytes.has_remaining() {
            if bytes.len() < FRAME_HEAD_BYTES {
                return Err(Malformed::Torn);
            }
            let length = bytes.get_u32_le() as usize;
            let (kind, group) = (bytes.get_u8(), bytes.get_u32_le());
            let (call, target) = (bytes.get_u64_le(), bytes.get_u64_le());
            if bytes.len() < length {
                return Err(Malformed::Torn);
            }
            let view = bytes.split_to(length);
            let body = if length <= OWNED_BYTES_MAX { Bytes::copy_from_slice(&view) } else { view };
            frames.push(Frame { call, kind, group, target, body });
        }
        Ok(frames)
    }
}

/// The bytes of a batch, in pieces that are written together.
#[derive(Debug)]
pub struct Encoded {
    pieces: VecDeque<Bytes>,
    remaining_bytes: usize,
}

impl Encoded {
    pub fn new(frames: &[Frame]) -> Self {
        let is_copied = |frame: &&Frame| frame.body.len() <= COPIED_BYTES_MAX;
        let copied_bytes = frames.iter().filter(is_copied).map(|frame| frame.body.len()).sum::<usize>();
        let mut piece =
            BytesMut::with_capacity(BATCH_HEAD_BYTES + frames.len() * FRAME_HEAD_BYTES + copied_bytes);
        let length_bytes = frames.iter().map(|frame| FRAME_HEAD_BYTES + frame.body.len()).sum::<usize>();
        piece.put_u32_le(length_bytes as u32);
        piece.put_u32_le(crc32c_of(frames));
        let mut pieces = VecDeque::new();
        for frame in frames {
            piece.put_slice(&frame.head());
            if is_copied(&frame) {
                piece.put_slice(&frame.body);
            } else {
                pieces.extend([piece.split().freeze(), frame.body.clone()]);
            }
        }
        if !piece.is_empty() {
            pieces.push_back(piece.freeze());
        }
        Self { pieces, remaining_bytes: BATCH_HEAD_BYTES + length_bytes }
    }
}

fn crc32c_of(frames: &[Frame]) -> u32 {
    let append =
        |crc, frame: &Frame| crc32c::crc32c_append(crc32c::crc32c_append(crc, &frame.head()), &frame.body);
    frames.iter().fold(0, append)
}

impl Buf for Encoded {
    fn remaining(&self) -> usize {
        self.remaining_bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining_bytes -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(call: u64, kind: FrameKind, body_bytes: usize) -> Frame {
        let body = (0..body_bytes).map(|at| (at as u64 * call) as u8).collect::<Vec<_>>();
        Frame { call, kind: kind as u8, group: 7, target: u64::MAX - call, body: body.into() }
    }

    fn decode(mut bytes: Bytes) -> Result<Vec<Frame>, Malformed> {
        let head = BatchHead::decode(bytes.split_to(BATCH_HEAD_BYTES)[..].try_into().unwrap())?;
        assert_eq!(head.length_bytes, bytes.len());
        head.frames(bytes)
    }

    fn batch() -> Vec<Frame> {
        vec![
            frame(1, FrameKind::Append, COPIED_BYTES_MAX + 1),
            frame(2, FrameKind::Cancel, 0),
            frame(3, FrameKind::Answer, COPIED_BYTES_MAX),
            frame(4, FrameKind::Append, 300_000),
        ]
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut encoded = Encoded::new(&batch());
        let length = encoded.remaining();
        let bytes = encoded.copy_to_bytes(length);
        assert_eq!(decode(bytes).unwrap(), batch());
        assert!(Encoded::new(&[]).remaining() == BATCH_HEAD_BYTES);
    }

    #[test]
    fn a_batch_can_be_written_in_any_pieces() {
        for step in [1, 7, 8, 33, 1024, 100_000] {
            let mut encoded = Encoded::new(&batch());
            let mut written = Vec::new();
            while encoded.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = encoded.chunks_vectored(&mut slices);
                let offered = slices[..filled].iter().flat_map(|slice| slice.iter().copied());
                let taken = offered.take(step).collect::<Vec<_>>();
                encoded.advance(taken.len());
                written.extend(taken);
            }
            assert_eq!(decode(written.into()).unwrap(), batch(), "{step} bytes at a time");
        }
    }

    #[test]
    fn a_small_body_does_not_hold_what_was_read_with_it() {
        let sent = [frame(1, FrameKind::Query, 100), frame(2, FrameKind::Append, OWNED_BYTES_MAX + 1)];
        let mut encoded = Encoded::new(&sent);
        let length = encoded.remaining();
        let bytes = encoded.copy_to_bytes(length);
        let read = bytes.as_ptr_range();
        let frames = decode(bytes.clone()).unwrap();
        assert!(!read.contains(&frames[0].body.as_ptr()));
        assert!(read.contains(&frames[1].body.as_ptr()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut encoded = Encoded::new(&[frame(5, FrameKind::Vote, 20), frame(6, FrameKind::Liveness, 0)]);
        let length = encoded.remaining();
        let bytes = encoded.copy_to_bytes(length);
        for bit in BATCH_HEAD_BYTES * 8..length * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(damaged.into()), Err(Malformed::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let mut head = [0; BATCH_HEAD_BYTES];
        head[..4].copy_from_slice(&(PEER_MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(BatchHead::decode(head).unwrap_err(), Malformed::TooLong(PEER_MESSAGE_BYTES_MAX + 1));
        let whole = frame(1, FrameKind::Query, 10);
        for cut in [1, FRAME_HEAD_BYTES - 1, FRAME_HEAD_BYTES, FRAME_HEAD_BYTES + 9] {
            let bytes = [&whole.head()[..], &whole.body].concat()[..cut].to_vec();
            let head = BatchHead { length_bytes: cut, crc32c: crc32c::crc32c(&bytes) };
            assert_eq!(head.frames(bytes.into()), Err(Malformed::Torn), "cut after {cut} bytes");
        }
    }

    #[test]
    fn kinds_are_known_by_their_numbers() {
        for (number, kind) in FrameKind::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(kind as u8), number);
        }
        assert_eq!(Frame { kind: 11, ..Frame::default() }.kind(), None);
    }
}
