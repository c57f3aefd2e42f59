//! Bodies of answers: they go out in pieces, and a long one takes room and has a deadline until its last piece has gone.
//!
//! ```text
//!   text ─▶ AnswerRoom::admit ─▶ Answer ─▶ piece, piece, ... ─▶ hyper, h2 ─▶ connection
//!                                  └──────────┴─ room and deadline, until all of these are dropped
//! ```
//!
//! Over HTTP/2 a client opens a window for what it wants to have: one that opens none, and asks for more and more, would have its
//! answers pile up. Short ones are not counted, and cost no more than their bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::deadlines::{Deadline, Deadlines};
use crate::error::{Error, Kind};
use crate::limits::{ANSWERS_BYTES_MAX, PIECE_BYTES_MAX, ROOM_MS_MAX, SMALL_BYTES_MAX};

/// The room for long answers.
pub struct AnswerRoom {
    /// A permit for each byte.
    free: Arc<Semaphore>,
}

/// The body of an answer: what has not gone out of it yet.
pub struct Answer {
    rest: Bytes,
    held: Option<Arc<Held>>,
}

/// Goes to the connection at once.
pub struct Piece {
    bytes: Bytes,
    _held: Option<Arc<Held>>,
}

/// What a long answer has until all of its pieces have gone.
struct Held {
    _room: OwnedSemaphorePermit,
    _deadline: Deadline,
}

impl AnswerRoom {
    pub fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(ANSWERS_BYTES_MAX)) }
    }

    /// Waits while others wait for room: what is received and cannot be told holds leases for nothing.
    ///
    /// # Errors
    /// `RequestThrottled` when that takes too long.
    pub async fn open(&self) -> Result<(), Error> {
        // Who waits takes what is free in advance.
        if self.free.available_permits() > 0 {
            return Ok(());
        }
        // Apart, since requests that do not wait should not carry what this takes.
        Box::pin(self.take(1)).await.map(drop)
    }

    /// Makes an answer of a text, for a connection with these deadlines.
    ///
    /// # Errors
    /// `RequestThrottled` when there is no room for a long one for too long.
    pub async fn admit(&self, text: Bytes, deadlines: &Arc<Deadlines>) -> Result<Answer, Error> {
        if text.len() <= SMALL_BYTES_MAX {
            return Ok(Answer::from(text));
        }
        let room = Box::pin(self.take(text.len())).await?;
        let held = Held { _room: room, _deadline: Deadlines::add(deadlines, text.len()) };
        Ok(Answer { rest: text, held: Some(Arc::new(held)) })
    }

    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        // What is longer than all of the room takes all of it.
        let wanted = bytes.min(ANSWERS_BYTES_MAX) as u32;
        let taking = Arc::clone(&self.free).acquire_many_owned(wanted);
        let Ok(Ok(taken)) = timeout(Duration::from_millis(ROOM_MS_MAX), taking).await else {
            let message = "The node has no room for an answer of this size at this moment: try again.";
            return Err(Error::new(Kind::RequestThrottled, message));
        };
        Ok(taken)
    }
}

/// An answer that is short.
impl From<Bytes> for Answer {
    fn from(text: Bytes) -> Self {
        Self { rest: text, held: None }
    }
}

impl Body for Answer {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(PIECE_BYTES_MAX);
        let piece = Piece { bytes: self.rest.split_to(len), _held: self.held.clone() };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::sleep;

    use super::*;

    fn text(bytes: usize) -> Bytes {
        (0..bytes).map(|at| (at / 7) as u8).collect::<Vec<_>>().into()
    }

    async fn pieces(mut answer: Answer) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(frame) = answer.frame().await {
            let Ok(piece) = frame.unwrap().into_data() else { panic!("an answer has no trailers") };
            pieces.push(piece);
        }
        pieces
    }

    #[tokio::test]
    async fn an_answer_goes_out_whole_and_in_pieces() {
        let (room, deadlines) = (AnswerRoom::new(), Arc::new(Deadlines::default()));
        for bytes in [0, 1, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 1024 * 1024 + 5] {
            let answer = room.admit(text(bytes), &deadlines).await.unwrap();
            assert_eq!(
                (answer.size_hint().exact(), answer.is_end_stream()),
                (Some(bytes as u64), bytes == 0)
            );
            let pieces = pieces(answer).await;
            assert_eq!(pieces.len(), bytes.div_ceil(PIECE_BYTES_MAX));
            assert!(pieces.iter().all(|piece| piece.remaining() <= PIECE_BYTES_MAX));
            let whole = pieces.iter().flat_map(|piece| piece.chunk().to_vec()).collect::<Vec<_>>();
            assert_eq!(whole, text(bytes));
        }
    }

    #[tokio::test]
    async fn a_long_answer_has_room_until_its_last_piece_has_gone() {
        let (room, deadlines) = (AnswerRoom::new(), Arc::new(Deadlines::default()));
        let bytes = 3 * PIECE_BYTES_MAX;
        let answer = room.admit(text(bytes), &deadlines).await.unwrap();
        let mut pieces = pieces(answer).await;
        while let Some(piece) = pieces.pop() {
            assert_eq!(room.free.available_permits(), ANSWERS_BYTES_MAX - bytes);
            drop(piece);
        }
        assert_eq!(room.free.available_permits(), ANSWERS_BYTES_MAX);
        let _short = room.admit(text(SMALL_BYTES_MAX), &deadlines).await.unwrap();
        assert_eq!(room.free.available_permits(), ANSWERS_BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn without_room_an_answer_is_refused_and_nothing_is_received() {
        let (room, deadlines) = (AnswerRoom::new(), Arc::new(Deadlines::default()));
        let taken = room.take(ANSWERS_BYTES_MAX - 1).await.unwrap();
        assert_eq!(room.open().await, Ok(()));
        let opening = async {
            sleep(Duration::from_millis(ROOM_MS_MAX / 2)).await;
            room.open().await
        };
        let (answer, open) = tokio::join!(room.admit(text(SMALL_BYTES_MAX + 1), &deadlines), opening);
        assert_eq!(answer.err().map(|error| error.kind), Some(Kind::RequestThrottled));
        // It waited behind the other, and had what that had taken in advance.
        assert_eq!(open, Ok(()));
        let all = room.take(1).await.unwrap();
        assert_eq!(room.open().await.map_err(|error| error.kind), Err(Kind::RequestThrottled));
        assert!(room.admit(text(SMALL_BYTES_MAX), &deadlines).await.is_ok());
        drop((taken, all));
        assert_eq!(room.open().await, Ok(()));
    }
}
