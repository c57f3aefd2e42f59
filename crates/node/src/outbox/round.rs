//! How far one outbox has come with one target, shard by shard of it.
//!
//! ```text
//!   letters by number, with the shard of each    6b     7a       8b     9a       10a
//!   a answers, b is away                         waits  arrived  waits  arrived  is next
//! ```
//!
//! Letters leave the outbox from its front. One whose shard is away stays there, and so does all behind it that has arrived; it is
//! known here, and not sent again. In a round a shard that has failed is passed over, until all letters were looked at; the next
//! round begins at the front, where the first letter waits that could not be moved.
//!
//! Invariant: of a shard that has not failed in this round, all letters up to the place have arrived. So each shard is sent its letters
//! in ascending order with none left out, which it needs: it takes a number for the last of all before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasehold_catalogue::PartitionId;
use leasehold_partition::MessageKey;
use tokio::time::Instant;

/// How long after a failure all is looked at from the front again.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// A letter of an outbox, by its key and its number.
pub type Place = (MessageKey, u64);

#[derive(Default)]
pub struct Round {
    /// Up to which number each shard of the target has answered. True for ever: numbers are never given out again.
    through: BTreeMap<PartitionId, u64>,
    /// The shards that have failed in this round.
    failed: BTreeSet<PartitionId>,
    /// When the first of them did, and a pause.
    next_at: Option<Instant>,
    /// The last letter that was looked at; none at the front.
    place: Option<Place>,
    is_over: bool,
}

impl Round {
    /// Begins the next round when it is time.
    pub fn begin_if_due(&mut self, now: Instant) {
        if self.is_over && self.next_at.is_none_or(|at| at <= now) {
            let through = std::mem::take(&mut self.through);
            *self = Self { through, ..Self::default() };
        }
    }

    /// Behind which letter to go on.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    pub fn has_arrived(&self, shard: PartitionId, number: u64) -> bool {
        self.through.get(&shard).is_some_and(|through| *through >= number)
    }

    /// Whether a letter is to be sent in this round.
    pub fn is_wanted(&self, shard: PartitionId, number: u64) -> bool {
        !self.failed.contains(&shard) && !self.has_arrived(shard, number)
    }

    /// Notes that a shard has everything up to a number; true when that is news.
    pub fn answered(&mut self, shard: PartitionId, through_number: u64) -> bool {
        let through = self.through.entry(shard).or_default();
        let is_news = through_number > *through;
        *through = through_number.max(*through);
        is_news
    }

    pub fn failed(&mut self, shard: PartitionId, now: Instant) {
        self.failed.insert(shard);
        self.next_at.get_or_insert(now + ROUND_PAUSE);
    }

    /// Whether nobody is left to send to in this round.
    pub fn is_hopeless(&self, shards: usize) -> bool {
        self.failed.len() >= shards
    }

    /// How many of the letters that were looked at from the place on can be removed: they are the first, and have arrived.
    pub fn removable(&self, looked: impl IntoIterator<Item = (PartitionId, u64)>) -> usize {
        if self.place.is_some() {
            return 0;
        }
        looked.into_iter().take_while(|(shard, number)| self.has_arrived(*shard, *number)).count()
    }

    /// Goes on behind a letter, or at the front when all that was looked at has been removed.
    pub fn go_on(&mut self, place: Option<Place>, is_over: bool) {
        self.place = place;
        self.is_over = is_over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u64 = 3;
    const BATCH: usize = 4;

    /// A source with an outbox, and a target that takes what is above the last number it has, as the partition does.
    #[derive(Default)]
    struct World {
        outbox: Vec<u64>,
        round: Round,
        known: BTreeMap<PartitionId, u64>,
        away: BTreeSet<PartitionId>,
        arrived: Vec<u64>,
        /// Letters that were sent to a shard which answered, and had them.
        repeated: usize,
    }

    fn shard_of(number: u64) -> PartitionId {
        PartitionId((number % SHARDS) as u32)
    }

    impl World {
        /// One step of the outbox's task; returns whether there is more to do at once.
        fn step(&mut self, now: Instant) -> bool {
            self.round.begin_if_due(now);
            let from = self.round.place().map_or(0, |(_, number)| number);
            let mut looked = Vec::new();
            let mut wanted = BTreeMap::<PartitionId, Vec<u64>>::new();
            let mut is_end = true;
            for number in self.outbox.iter().copied().filter(|number| *number > from) {
                if wanted.values().map(Vec::len).sum::<usize>() == BATCH {
                    is_end = false;
                    break;
                }
                looked.push((shard_of(number), number));
                if self.round.is_wanted(shard_of(number), number) {
                    wanted.entry(shard_of(number)).or_default().push(number);
                }
            }
            let mut has_moved = false;
            for (shard, numbers) in wanted {
                if self.away.contains(&shard) {
                    self.round.failed(shard, now);
                    continue;
                }
                let known = self.known.entry(shard).or_default();
                self.repeated += numbers.iter().filter(|number| **number <= *known).count();
                self.arrived.extend(numbers.iter().filter(|number| **number > *known));
                *known = numbers.iter().copied().chain([*known]).max().unwrap();
                has_moved |= self.round.answered(shard, *known);
            }
            let removable = self.round.removable(looked.iter().copied());
            self.outbox.drain(..removable);
            let place = looked.last().map(|(_, number)| (MessageKey { slot: 0, sequence: *number }, *number));
            let place = if removable == looked.len() { self.round.place() } else { place };
            let is_over = is_end || self.round.is_hopeless(SHARDS as usize);
            self.round.go_on(place, is_over);
            has_moved || removable > 0 || !is_over
        }

        fn run(&mut self, now: Instant) {
            while self.step(now) {}
        }
    }

    #[test]
    fn a_shard_that_is_away_holds_back_its_own_letters_and_no_others() {
        let now = Instant::now();
        let away = PartitionId(1);
        let mut world = World { outbox: (1..=300).collect(), away: [away].into(), ..World::default() };
        world.run(now);
        assert_eq!(world.arrived.len(), 200, "all for the two others");
        assert_eq!(world.outbox[0], 1, "the first waits for its shard");
        // What comes meanwhile finds its way too, and rounds that fail send nobody anything twice.
        for turn in 1..5 {
            world.outbox.extend(300 + 3 * turn - 2..=300 + 3 * turn);
            world.run(now + 2 * ROUND_PAUSE * turn as u32);
            assert_eq!(world.arrived.len() as u64, 200 + 2 * turn);
        }
        assert_eq!(world.repeated, 0);
        world.away.clear();
        world.run(now + 20 * ROUND_PAUSE);
        world.arrived.sort_unstable();
        assert_eq!(world.arrived, (1..=312).collect::<Vec<_>>(), "each once");
        assert_eq!((world.outbox.len(), world.repeated), (0, 0));
    }

    #[test]
    fn shards_that_come_and_go_lose_nothing() {
        let start = Instant::now();
        for first in 0..8_u32 {
            let mut world = World::default();
            for turn in 0..40_u32 {
                // Which are away follows from the turn, another way for each `first`.
                let pattern = (turn / 3 + first).wrapping_mul(0x9e37_79b9) >> 29;
                world.away = (0..3).filter(|shard| pattern >> shard & 1 == 1).map(PartitionId).collect();
                world.outbox.extend(u64::from(turn) * 10 + 1..=u64::from(turn) * 10 + 10);
                world.run(start + turn * ROUND_PAUSE / 2);
            }
            world.away.clear();
            world.run(start + 100 * ROUND_PAUSE);
            world.arrived.sort_unstable();
            assert_eq!(world.arrived, (1..=400).collect::<Vec<_>>(), "{first}");
            assert_eq!((world.outbox.len(), world.repeated), (0, 0), "{first}");
        }
    }

    #[test]
    fn a_target_that_is_away_as_a_whole_is_not_looked_at_again_before_its_time() {
        let now = Instant::now();
        let away = (0..3).map(PartitionId).collect();
        let mut world = World { outbox: (1..=300).collect(), away, ..World::default() };
        world.run(now);
        world.away.clear();
        world.run(now);
        assert_eq!(world.arrived.len(), 0);
        world.run(now + ROUND_PAUSE);
        assert_eq!((world.arrived.len(), world.outbox.len()), (300, 0));
    }
}
