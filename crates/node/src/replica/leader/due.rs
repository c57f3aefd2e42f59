//! When a batch becomes an entry: at once when nothing is on its way, else when it asks as much as all that is.
//!
//! An entry costs three nodes the same whatever is in it, so entries grow with what is asked at a time. One client alone never waits
//! for it; sixteen that ask one after the other end up in entries of eight, two in turn.

use crate::limits::ENTRIES_IN_FLIGHT_MAX;

/// How many commands a batch has, and whether it takes no more.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    pub commands: usize,
    pub is_full: bool,
}

/// Whether a batch is to be proposed, beside entries of so many commands that are on their way.
pub fn is_due(batch: Filled, in_flight: impl ExactSizeIterator<Item = usize>) -> bool {
    batch.commands > 0
        && in_flight.len() < ENTRIES_IN_FLIGHT_MAX
        && (batch.is_full || batch.commands >= in_flight.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(commands: usize, in_flight: &[usize]) -> bool {
        is_due(Filled { commands, is_full: false }, in_flight.iter().copied())
    }

    #[test]
    fn nothing_waits_for_nothing() {
        assert!(due(1, &[]));
        assert!(!due(0, &[]));
    }

    #[test]
    fn entries_grow_with_what_is_asked_at_a_time() {
        assert!(due(1, &[1]));
        assert!(!due(1, &[1, 1]));
        assert!(due(2, &[1, 1]));
        assert!(!due(7, &[8]));
        assert!(due(8, &[8]));
    }

    #[test]
    fn a_full_batch_goes_unless_too_many_are_on_their_way() {
        let full = Filled { commands: 3, is_full: true };
        assert!(is_due(full, [4_000, 4_000].into_iter()));
        assert!(!is_due(full, [1; ENTRIES_IN_FLIGHT_MAX].into_iter()));
        assert!(!due(4, &[1; ENTRIES_IN_FLIGHT_MAX]));
    }

    /// Sixteen clients that each ask again when they are answered.
    #[test]
    fn clients_that_wait_for_their_answers_gather() {
        let (mut waiting, mut in_flight, mut entries, mut answered) = (16, Vec::new(), 0, 0);
        while answered < 16_000 {
            if due(waiting, &in_flight) {
                in_flight.push(std::mem::take(&mut waiting));
                entries += 1;
            } else {
                let commands = in_flight.remove(0);
                answered += commands;
                // They come back one by one, as scattered as they can be.
                for _ in 0..commands {
                    waiting += 1;
                    if due(waiting, &in_flight) {
                        in_flight.push(std::mem::take(&mut waiting));
                        entries += 1;
                    }
                }
            }
        }
        assert!(answered / entries >= 4, "{entries} entries for {answered} commands");
    }
}
