//! Bodies of messages, each with its number and when it was due, so that what arrives tells what it is.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

/// What a body begins with.
const STAMP_BYTES: usize = 16;

/// What a body says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub number: u64,
    /// Since the epoch of the run.
    pub due: Duration,
}

impl Stamp {
    /// `None` when it is too short to be one of ours.
    pub fn of(body: &[u8]) -> Option<Self> {
        let (number, rest) = body.split_first_chunk()?;
        let (due_us, _) = rest.split_first_chunk()?;
        let due = Duration::from_micros(u64::from_le_bytes(*due_us));
        Some(Self { number: u64::from_le_bytes(*number), due })
    }

    /// How long after it was due an instant is.
    pub fn latency(self, epoch: Instant, now: Instant) -> Duration {
        now.saturating_duration_since(epoch + self.due)
    }
}

/// A body for each stamp, of so many bytes, all in one allocation.
pub fn stamped(stamps: impl ExactSizeIterator<Item = Stamp>, bytes: usize) -> Vec<Bytes> {
    let bytes = bytes.max(STAMP_BYTES);
    let mut buffer = BytesMut::with_capacity(stamps.len() * bytes);
    let mut count = 0;
    for stamp in stamps {
        buffer.put_u64_le(stamp.number);
        buffer.put_u64_le(stamp.due.as_micros() as u64);
        buffer.put_bytes(b'x', bytes - STAMP_BYTES);
        count += 1;
    }
    let mut all = buffer.freeze();
    (0..count).map(|_| all.split_to(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_come_back() {
        let stamps = (7..10).map(|number| Stamp { number, due: Duration::from_micros(number * 3) });
        let bodies = stamped(stamps.clone().collect::<Vec<_>>().into_iter(), 128);
        assert!(bodies.iter().all(|body| body.len() == 128));
        assert_eq!(
            bodies.iter().filter_map(|body| Stamp::of(body)).collect::<Vec<_>>(),
            stamps.collect::<Vec<_>>()
        );
        assert_eq!(Stamp::of(b"short"), None);
    }

    #[test]
    fn a_message_that_came_before_it_was_due_has_no_latency() {
        let epoch = Instant::now();
        let stamp = Stamp { number: 0, due: Duration::from_secs(5) };
        assert_eq!(stamp.latency(epoch, epoch), Duration::ZERO);
        assert_eq!(stamp.latency(epoch, epoch + Duration::from_secs(6)), Duration::from_secs(1));
    }
}
