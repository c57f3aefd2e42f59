//! Makes batches of messages as they come.
//!
//! Of a message group within which order holds, messages may be together in a batch, in order, and no other batch has any of it
//! meanwhile: those that come behind wait for its end. When one of the batch comes again, so do they.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// What can be in a batch.
pub(crate) trait Piece {
    /// Within which order holds.
    fn group(&self) -> Option<&str>;
    fn size_bytes(&self) -> usize;
    /// When it was taken.
    fn since(&self) -> Instant;
}

/// Of each message of a batch, whether another of its group is behind it.
pub(crate) fn followed<T: Piece>(batch: &[T]) -> Vec<bool> {
    let mut behind = HashSet::new();
    let from_behind =
        batch.iter().rev().map(|piece| piece.group().is_some_and(|group| !behind.insert(group)));
    let mut followed = from_behind.collect::<Vec<_>>();
    followed.reverse();
    followed
}

/// How large a batch can be, and how long it waits to be so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) window: Duration,
}

#[derive(Debug)]
pub(crate) struct Gathering<T> {
    limits: Limits,
    ready: VecDeque<T>,
    ready_bytes: usize,
    /// When the first of those that are ready was.
    since: Option<Instant>,
    /// Of each group in a batch that is under way: those behind.
    behind: HashMap<String, VecDeque<T>>,
}

impl<T: Piece> Gathering<T> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ready: VecDeque::new(), ready_bytes: 0, since: None, behind: HashMap::new() }
    }

    pub(crate) fn add(&mut self, piece: T, now: Instant) {
        match piece.group().and_then(|group| self.behind.get_mut(group)) {
            Some(behind) => behind.push_back(piece),
            None => self.push(piece, now),
        }
    }

    fn push(&mut self, piece: T, now: Instant) {
        self.since.get_or_insert(now);
        self.ready_bytes += piece.size_bytes();
        self.ready.push_back(piece);
    }

    /// Whether what is ready fills a batch.
    pub(crate) fn is_full(&self) -> bool {
        self.ready.len() >= self.limits.messages || self.ready_bytes >= self.limits.bytes
    }

    /// When a batch is to start, even if it is not full; `None` while nothing is ready.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let since = self.since?;
        Some(if self.is_full() { since } else { since + self.limits.window })
    }

    /// The next batch: of what is ready as much as it can have, at least one.
    pub(crate) fn cut(&mut self, now: Instant) -> Vec<T> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.ready.front()
            && batch.len() < self.limits.messages
            && (batch.is_empty() || bytes + next.size_bytes() <= self.limits.bytes)
        {
            bytes += next.size_bytes();
            batch.extend(self.ready.pop_front());
        }
        for group in batch.iter().filter_map(T::group) {
            self.behind.entry(group.to_owned()).or_default();
        }
        let rest = std::mem::take(&mut self.ready);
        (self.ready_bytes, self.since) = (0, None);
        rest.into_iter().for_each(|piece| self.add(piece, now));
        batch
    }

    /// A group of a batch that ended is done: what is behind can be in the next.
    pub(crate) fn done(&mut self, group: &str, now: Instant) {
        for piece in self.behind.remove(group).unwrap_or_default() {
            self.push(piece, now);
        }
    }

    /// A message of a group comes again: those behind are given up.
    pub(crate) fn returned(&mut self, group: &str) -> VecDeque<T> {
        self.behind.remove(group).unwrap_or_default()
    }

    /// Everything that waits, when some of it was taken before a time. Those that come while a batch of their group is under way go on
    /// waiting for it.
    pub(crate) fn take_older(&mut self, than: Instant) -> Vec<T> {
        if !self.ready.iter().chain(self.behind.values().flatten()).any(|piece| piece.since() < than) {
            return Vec::new();
        }
        (self.ready_bytes, self.since) = (0, None);
        let behind = self.behind.values_mut().flat_map(|behind| behind.drain(..));
        self.ready.drain(..).chain(behind).collect()
    }

    /// Everything that waits.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        (self.ready_bytes, self.since) = (0, None);
        self.ready.drain(..).chain(self.behind.drain().flat_map(|(_, behind)| behind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = (&'static str, usize);

    impl Piece for Named {
        fn group(&self) -> Option<&str> {
            self.0.split_once('-').map(|(group, _)| group)
        }

        fn size_bytes(&self) -> usize {
            self.1
        }

        fn since(&self) -> Instant {
            Instant::now() - SECOND * u32::try_from(self.1).unwrap()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn gathering(messages: usize) -> Gathering<Named> {
        Gathering::new(Limits { messages, bytes: 100, window: SECOND })
    }

    fn names(pieces: impl IntoIterator<Item = Named>) -> Vec<&'static str> {
        pieces.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_batch_starts_when_it_is_full_or_its_first_message_has_waited() {
        let (mut gathering, now) = (gathering(2), Instant::now());
        assert_eq!(gathering.due_at(), None);
        gathering.add(("1", 1), now);
        assert_eq!((gathering.due_at(), gathering.is_full()), (Some(now + SECOND), false));
        gathering.add(("2", 1), now + SECOND / 2);
        assert_eq!((gathering.due_at(), gathering.is_full()), (Some(now), true));
        gathering.add(("3", 1), now + SECOND);
        assert_eq!(names(gathering.cut(now + SECOND)), ["1", "2"]);
        assert_eq!(gathering.due_at(), Some(now + SECOND * 2));
        assert_eq!(names(gathering.cut(now)), ["3"]);
        assert_eq!(gathering.due_at(), None);
    }

    #[test]
    fn a_batch_has_no_more_bytes_than_it_may_unless_one_message_has() {
        let (mut gathering, now) = (gathering(10), Instant::now());
        for piece in [("1", 60), ("2", 40), ("3", 1), ("4", 500), ("5", 1)] {
            gathering.add(piece, now);
        }
        assert!(gathering.is_full());
        assert_eq!(names(gathering.cut(now)), ["1", "2"]);
        assert_eq!(names(gathering.cut(now)), ["3"]);
        assert_eq!(names(gathering.cut(now)), ["4"]);
        assert!(!gathering.is_full());
        assert_eq!(names(gathering.cut(now)), ["5"]);
    }

    #[test]
    fn a_group_is_in_one_batch_at_a_time() {
        let (mut gathering, now) = (gathering(3), Instant::now());
        for name in ["a-1", "b-1", "a-2", "a-3", "c"] {
            gathering.add((name, 1), now);
        }
        assert_eq!(names(gathering.cut(now)), ["a-1", "b-1", "a-2"]);
        gathering.add(("b-2", 1), now);
        gathering.add(("d-1", 1), now);
        assert_eq!(names(gathering.cut(now)), ["c", "d-1"], "what is behind waits");
        assert!(gathering.cut(now).is_empty());
        gathering.done("a", now);
        assert_eq!(names(gathering.cut(now)), ["a-3"]);
        assert_eq!(names(gathering.returned("b")), ["b-2"]);
        gathering.add(("b-1", 1), now);
        assert_eq!(names(gathering.cut(now)), ["b-1"]);
    }

    #[test]
    fn only_what_is_followed_in_its_group_is_waited_for() {
        let batch = ["a-1", "b", "a-2", "c-1", "b", "a-3"].map(|name| (name, 1_usize));
        assert_eq!(followed(&batch), [true, false, true, false, false, false]);
        assert!(followed::<Named>(&[]).is_empty());
    }

    #[test]
    fn a_group_without_messages_costs_nothing() {
        let (mut gathering, now) = (gathering(1), Instant::now());
        gathering.add(("a-1", 1), now);
        gathering.cut(now);
        gathering.done("a", now);
        assert!(gathering.behind.is_empty());
    }

    #[test]
    fn nothing_waits_for_ever_and_no_group_gets_out_of_order() {
        let (mut gathering, now) = (gathering(1), Instant::now());
        for piece in [("a-1", 30), ("a-2", 20), ("b-1", 1)] {
            gathering.add(piece, now);
        }
        assert_eq!(names(gathering.cut(now)), ["a-1"]);
        assert!(gathering.take_older(now - SECOND * 25).is_empty(), "what is under way is not among them");
        let mut taken = names(gathering.take_older(now - SECOND * 15));
        taken.sort_unstable();
        assert_eq!(taken, ["a-2", "b-1"], "it may be behind another one");
        assert!(gathering.due_at().is_none());
        gathering.add(("a-2", 0), now);
        assert!(gathering.cut(now).is_empty(), "its group is under way");
        gathering.done("a", now);
        assert_eq!(names(gathering.cut(now)), ["a-2"]);
    }

    #[test]
    fn everything_that_waits_can_be_given_back() {
        let (mut gathering, now) = (gathering(1), Instant::now());
        for name in ["a-1", "a-2", "b-1", "c"] {
            gathering.add((name, 1), now);
        }
        assert_eq!(names(gathering.cut(now)), ["a-1"]);
        let mut waited = names(gathering.drain());
        waited.sort_unstable();
        assert_eq!(waited, ["a-2", "b-1", "c"]);
        assert!(gathering.due_at().is_none());
    }
}
