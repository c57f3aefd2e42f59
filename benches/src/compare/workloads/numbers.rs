//! A set of message numbers, a bit each: workloads of minutes have millions.

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Numbers {
    words: Vec<u64>,
    count: u64,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl Numbers {
    /// False when it was there.
    pub fn insert(&mut self, number: u64) -> bool {
        let (at, bit) = ((number / WORD_BITS) as usize, 1 << (number % WORD_BITS));
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let is_new = self.words[at] & bit == 0;
        self.words[at] |= bit;
        self.count += u64::from(is_new);
        is_new
    }

    pub fn has(&self, number: u64) -> bool {
        let word = self.words.get((number / WORD_BITS) as usize).copied().unwrap_or_default();
        word & 1 << (number % WORD_BITS) != 0
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Those of `all` that are not here.
    pub fn missing_of<'a>(&'a self, all: &'a Self) -> impl Iterator<Item = u64> + 'a {
        all.words.iter().enumerate().flat_map(|(at, word)| {
            let missing = word & !self.words.get(at).copied().unwrap_or_default();
            (0..WORD_BITS)
                .filter(move |bit| missing & (1 << bit) != 0)
                .map(move |bit| at as u64 * WORD_BITS + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_once_and_missed() {
        let (mut all, mut some) = (Numbers::default(), Numbers::default());
        for number in [0, 63, 64, 500] {
            assert!(all.insert(number));
            assert!(!all.insert(number));
        }
        assert!(some.insert(64));
        assert_eq!((all.count(), some.count()), (4, 1));
        assert_eq!(some.missing_of(&all).collect::<Vec<_>>(), [0, 63, 500]);
        assert_eq!(all.missing_of(&some).count(), 0);
        assert!(all.has(500) && !all.has(499) && !some.has(500));
    }
}
