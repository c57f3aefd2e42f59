//! The id of a redrive, which says when it was started: milliseconds of wall time above bits that tell two of the same millisecond
//! apart.

const LOW_BITS: u32 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedriveId(pub u64);

impl RedriveId {
    /// `salt` is another one for each redrive of this node.
    pub fn new(wall_ms: u64, salt: u64) -> Self {
        let low = salt & ((1 << LOW_BITS) - 1);
        Self((wall_ms << LOW_BITS) | low)
    }

    pub fn started_wall_ms(self) -> u64 {
        self.0 >> LOW_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_when_it_was_made() {
        let wall_ms = 1_795_000_000_123;
        let (one, other) = (RedriveId::new(wall_ms, 7), RedriveId::new(wall_ms, u64::MAX));
        assert_ne!(one, other);
        assert_eq!((one.started_wall_ms(), other.started_wall_ms()), (wall_ms, wall_ms));
    }
}
