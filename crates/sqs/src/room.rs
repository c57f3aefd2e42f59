//! Bodies of requests: each is read into one piece of memory, within the room that all of them share.
//!
//! A body takes room as it comes, at most twice what has come of it, so that nobody holds any by a promise alone. Small ones are not
//! counted.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::limits::{BODY_MS_MAX, REQUEST_BYTES_MAX, REQUESTS_BYTES_MAX, ROOM_MS_MAX, SMALL_BYTES_MAX};

/// The room for large bodies.
pub struct Room {
    /// A permit for each byte.
    free: Arc<Semaphore>,
}

/// What a body takes of the room; it is free again when this is dropped.
#[derive(Default)]
pub struct Taken(Option<OwnedSemaphorePermit>);

impl Taken {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.0 {
            Some(taken) => taken.merge(more),
            None => self.0 = Some(more),
        }
    }

    /// Gives back what a body of so many bytes does not need.
    fn only(mut self, bytes: usize) -> Self {
        let excess = self.bytes().saturating_sub(bytes);
        drop(self.0.as_mut().and_then(|taken| taken.split(excess)));
        self
    }
}

/// How many bytes a body can have, as far as its head tells.
///
/// # Errors
/// `TooLarge` when it says that it has too many.
pub fn bytes_max(body: &impl Body) -> Result<usize, Error> {
    let hint = body.size_hint();
    if hint.lower() > REQUEST_BYTES_MAX as u64 {
        return Err(too_large());
    }
    Ok(hint.upper().map_or(REQUEST_BYTES_MAX, |bytes| bytes.min(REQUEST_BYTES_MAX as u64) as usize))
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, format!("A request can have {REQUEST_BYTES_MAX} bytes."))
}

impl Room {
    pub fn new() -> Self {
        Self { free: Arc::new(Semaphore::new(REQUESTS_BYTES_MAX)) }
    }

    /// Reads a body that can have `bytes_max`, and returns it with the room that it takes.
    ///
    /// # Errors
    /// `TooLarge`, `RequestThrottled` when there is no room for too long, `Malformed` when the body does not come.
    pub async fn read<B>(&self, body: B, bytes_max: usize) -> Result<(Bytes, Taken), Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        if body.is_end_stream() {
            return Ok((Bytes::new(), Taken::default()));
        }
        let late = |_| Error::new(Kind::Malformed, format!("the body did not come within {BODY_MS_MAX} ms"));
        // A body that is there already starts no timer.
        timeout(Duration::from_millis(BODY_MS_MAX), self.gather(body, bytes_max)).await.map_err(late)?
    }

    async fn gather<B>(&self, mut body: B, bytes_max: usize) -> Result<(Bytes, Taken), Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let broken =
            |error: B::Error| Error::new(Kind::Malformed, format!("the body could not be read: {error}"));
        let mut taken = Taken::default();
        let mut gathered = BytesMut::new();
        while let Some(frame) = body.frame().await {
            // What is no data are trailers, which say nothing here.
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            let bytes = gathered.len() + data.len();
            let room = self.make(&mut taken, bytes, bytes_max).await?;
            // Most bodies come in one piece, which is kept as it is.
            if gathered.is_empty() && body.is_end_stream() {
                return Ok((data, taken.only(bytes)));
            }
            gathered.reserve(room - gathered.len());
            gathered.extend_from_slice(&data);
        }
        let taken = taken.only(gathered.len());
        Ok((gathered.freeze(), taken))
    }

    /// Makes room for a body of which so many bytes have come, and returns how many it can have before it needs more.
    async fn make(&self, taken: &mut Taken, bytes: usize, bytes_max: usize) -> Result<usize, Error> {
        if bytes > REQUEST_BYTES_MAX {
            return Err(too_large());
        }
        if bytes <= SMALL_BYTES_MAX {
            return Ok(SMALL_BYTES_MAX.min(bytes_max).max(bytes));
        }
        if bytes > taken.bytes() {
            let wanted = bytes.next_power_of_two().min(bytes_max).max(bytes) - taken.bytes();
            let more = Arc::clone(&self.free).acquire_many_owned(wanted as u32);
            let Ok(Ok(more)) = timeout(Duration::from_millis(ROOM_MS_MAX), more).await else {
                let message = "The node has no room for a body of this size at this moment: try again.";
                return Err(Error::new(Kind::RequestThrottled, message));
            };
            taken.add(more);
        }
        Ok(taken.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    /// A body of unknown length in pieces.
    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn pieces(count: usize, bytes: usize) -> Pieces {
        Pieces((0..count).map(|number| Bytes::from(vec![number as u8; bytes])).collect())
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied() {
        let whole = Bytes::from(vec![7; 20_000]);
        let body = Full::new(whole.clone());
        let bytes_max = bytes_max(&body).unwrap();
        let (read, taken) = Room::new().read(body, bytes_max).await.unwrap();
        assert_eq!((read.as_ptr(), read.len(), taken.bytes()), (whole.as_ptr(), 20_000, 20_000));
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_gathered_and_takes_its_length() {
        let room = Room::new();
        for (count, bytes) in [(0, 1), (100, 1), (20_000, 1), (130, 8 * 1024)] {
            let expected = pieces(count, bytes).0.into_iter().flatten().collect::<Vec<_>>();
            let (read, taken) = room.read(pieces(count, bytes), REQUEST_BYTES_MAX).await.unwrap();
            assert_eq!(read, expected);
            let counted = if expected.len() > SMALL_BYTES_MAX { expected.len() } else { 0 };
            assert_eq!(taken.bytes(), counted);
            assert_eq!(room.free.available_permits(), REQUESTS_BYTES_MAX - counted);
        }
        assert_eq!(room.free.available_permits(), REQUESTS_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_and_leaves_its_room() {
        let room = Room::new();
        let read = room.read(pieces(9, 1024 * 1024), REQUEST_BYTES_MAX).await;
        assert_eq!(read.err().map(|error| error.kind), Some(Kind::TooLarge));
        assert_eq!(room.free.available_permits(), REQUESTS_BYTES_MAX);
        let declared = bytes_max(&Full::new(Bytes::from(vec![0; REQUEST_BYTES_MAX + 1])));
        assert_eq!(declared.err().map(|error| error.kind), Some(Kind::TooLarge));
    }
}
