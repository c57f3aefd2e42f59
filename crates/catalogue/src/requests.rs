//! Which requests of a client are over: one that was tried again, and whose first try comes late, must not undo what was asked since.
//!
//! Every command may be repeated, so nothing is remembered of what was answered; only from which request on a client may still be
//! heard. A client that was not heard for long is forgotten when others need the room.

use std::collections::BTreeMap;

use crate::command::RequestName;

/// Clients that are remembered.
pub const SESSIONS_MAX: usize = 4_096;

/// What is known of a client's requests.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Session {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Requests below this one are over.
    #[prost(uint64, tag = "2")]
    pub floor: u64,
    /// Index of the last entry that was asked for in it.
    #[prost(uint64, tag = "3")]
    pub used: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Requests {
    sessions: BTreeMap<u64, Session>,
    by_use: BTreeMap<u64, u64>,
}

impl Requests {
    /// Whether a request may still be executed, by the entry at `log_index`.
    pub fn admit(&mut self, log_index: u64, name: &RequestName) -> bool {
        let known = self.sessions.get(&name.session).copied();
        let floor = known.map_or(0, |session| session.floor);
        if name.sequence < floor {
            return false;
        }
        if let Some(session) = known {
            self.by_use.remove(&session.used);
        }
        // No client is done with the request that it makes.
        let floor = floor.max(name.completed_below.min(name.sequence));
        self.insert(Session { id: name.session, floor, used: log_index });
        if self.sessions.len() > SESSIONS_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.sessions.remove(&oldest);
        }
        true
    }

    fn insert(&mut self, session: Session) {
        self.by_use.insert(session.used, session.id);
        self.sessions.insert(session.id, session);
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = Session> + '_ {
        self.sessions.values().copied()
    }
}

impl FromIterator<Session> for Requests {
    fn from_iter<T: IntoIterator<Item = Session>>(sessions: T) -> Self {
        let mut requests = Self::default();
        sessions.into_iter().for_each(|session| requests.insert(session));
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(session: u64, sequence: u64, completed_below: u64) -> RequestName {
        RequestName { session, sequence, completed_below }
    }

    #[test]
    fn a_request_is_over_when_a_later_one_says_so() {
        let mut requests = Requests::default();
        assert!(requests.admit(1, &name(7, 1, 0)));
        assert!(requests.admit(2, &name(7, 1, 0)));
        assert!(requests.admit(3, &name(7, 3, 1)));
        assert!(requests.admit(4, &name(7, 1, 0)));
        assert!(requests.admit(5, &name(7, 4, 3)));
        assert!(!requests.admit(6, &name(7, 1, 0)));
        assert!(requests.admit(7, &name(7, 3, 1)));
        assert!(requests.admit(8, &name(8, 1, 0)));
    }

    #[test]
    fn who_was_not_heard_for_longest_is_forgotten() {
        let mut requests = Requests::default();
        for session in 0..SESSIONS_MAX as u64 {
            assert!(requests.admit(session + 1, &name(session, 5, 5)));
        }
        assert!(requests.admit(10_000, &name(0, 6, 6)));
        assert!(requests.admit(10_001, &name(99_999, 1, 1)));
        assert_eq!(requests.len(), SESSIONS_MAX);
        assert!(!requests.admit(10_002, &name(0, 5, 0)));
        assert!(requests.admit(10_003, &name(1, 1, 0)));
    }
}
