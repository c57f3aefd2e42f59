//! When a collection of things that end by themselves is looked through for those that have ended.
//!
//! A look costs as much as there is, so the next one waits until there is twice of what the last one left: an addition costs the same
//! however many there are.

/// Below this nothing is looked through.
const SWEPT_AT_MIN: usize = 256;

/// How large a collection may become until it is swept.
#[derive(Debug)]
pub struct Sweep {
    at: usize,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { at: SWEPT_AT_MIN }
    }
}

impl Sweep {
    /// Whether a collection of so many is to be swept before one more comes.
    pub fn is_due(&self, len: usize) -> bool {
        len >= self.at
    }

    /// A sweep left so many.
    pub fn left(&mut self, len: usize) {
        self.at = SWEPT_AT_MIN.max(2 * len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_on_is_not_looked_at_again_and_again() {
        let (mut sweep, mut looked_at) = (Sweep::default(), 0);
        for len in 0..100_000 {
            if sweep.is_due(len) {
                looked_at += len;
                sweep.left(len);
            }
        }
        assert!((1..200_000).contains(&looked_at), "{looked_at}");
        sweep.left(0);
        assert!(!sweep.is_due(SWEPT_AT_MIN - 1) && sweep.is_due(SWEPT_AT_MIN));
    }
}
