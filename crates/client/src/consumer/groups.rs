//! In which order messages begin: any of different groups, one after the other of a group of a FIFO queue.
//!
//! A node grants several messages of a group at once, in order, and no more of it before all of these are settled. When one is
//! given back, those behind it have to go back too: it will come again, and they after it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Message;

/// What one grant brought of a message group. Once one of it comes again, what is behind it is not for this consumer any more.
#[derive(Debug, Default)]
pub(super) struct GroupGrant {
    comes_again: AtomicBool,
}

impl GroupGrant {
    pub(super) fn give_up(&self) {
        self.comes_again.store(true, Ordering::Release);
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.comes_again.load(Ordering::Acquire)
    }
}

/// The grants that one response of a node brings, one for each group.
#[derive(Debug, Default)]
pub(super) struct GroupGrants(HashMap<String, Arc<GroupGrant>>);

impl GroupGrants {
    pub(super) fn of(&mut self, message: &Message) -> Option<Arc<GroupGrant>> {
        let group = message.group.as_ref()?;
        Some(Arc::clone(self.0.entry(group.clone()).or_default()))
    }
}

/// What waits to be begun. `T` is a message, `K` names its group.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    ready: VecDeque<(Option<String>, T)>,
    /// Of each group with a message that is ready or at work: those behind it.
    behind: HashMap<String, VecDeque<T>>,
}

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Self { ready: VecDeque::new(), behind: HashMap::new() }
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a message, of a group when order holds in it.
    pub(super) fn add(&mut self, group: Option<&str>, message: T) {
        match group.map(|group| (group, self.behind.get_mut(group))) {
            Some((_, Some(behind))) => behind.push_back(message),
            Some((group, None)) => {
                self.behind.insert(group.to_owned(), VecDeque::new());
                self.ready.push_back((Some(group.to_owned()), message));
            }
            None => self.ready.push_back((None, message)),
        }
    }

    /// The next message to begin, with its group.
    pub(super) fn next(&mut self) -> Option<(Option<String>, T)> {
        self.ready.pop_front()
    }

    /// The message of a group that was at work is done with: the next of it may begin.
    pub(super) fn done(&mut self, group: String) {
        match self.behind.get_mut(&group).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back((Some(group), next)),
            None => drop(self.behind.remove(&group)),
        }
    }

    /// The message of a group that was at work is given back: so are those behind it.
    pub(super) fn returned(&mut self, group: &str) -> VecDeque<T> {
        self.behind.remove(group).unwrap_or_default()
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let ready = self.ready.drain(..).map(|(_, message)| message);
        let behind = self.behind.drain().flat_map(|(_, behind)| behind);
        ready.chain(behind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_take_turns_and_keep_their_order() {
        let mut waiting = Waiting::new();
        for (group, number) in [(Some("a"), 1), (Some("a"), 2), (Some("b"), 3), (None, 4), (Some("a"), 5)] {
            waiting.add(group, number);
        }
        let (group, first) = waiting.next().unwrap();
        assert_eq!(first, 1);
        assert_eq!(waiting.next().unwrap(), (Some("b".to_owned()), 3));
        assert_eq!(waiting.next().unwrap(), (None, 4));
        assert!(waiting.next().is_none() && !waiting.is_ready());
        waiting.done(group.unwrap());
        assert_eq!(waiting.next().unwrap(), (Some("a".to_owned()), 2));
        assert_eq!(waiting.returned("a"), [5]);
        waiting.add(Some("a"), 2);
        assert_eq!(waiting.next().unwrap(), (Some("a".to_owned()), 2));
        waiting.done("a".to_owned());
        waiting.done("b".to_owned());
        assert!(waiting.behind.is_empty(), "a group without messages costs nothing");
    }

    #[test]
    fn everything_can_be_given_back() {
        let mut waiting = Waiting::new();
        for number in 0..6 {
            waiting.add(if number < 4 { Some("a") } else { None }, number);
        }
        let mut all = waiting.drain();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    }
}
