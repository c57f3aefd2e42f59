//! Names for the gateway's own requests, so that a send whose leader was lost half-way can be repeated without happening twice.
//!
//! A session has one request under way at a time, so each new one says that all before it were answered: a partition remembers one
//! reply a session, and there are as many sessions as there were requests at once.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use leasehold_proto::v1::RequestId;

#[derive(Default)]
pub struct Sessions {
    free: Mutex<Vec<Session>>,
}

struct Session {
    id: u64,
    sequence: u64,
}

/// A session in use; it is free again when this is dropped.
pub struct Lent<'a> {
    sessions: &'a Sessions,
    session: Option<Session>,
}

impl Sessions {
    pub fn take(&self) -> Lent<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = free.unwrap_or_else(|| Session { id: random(), sequence: 0 });
        session.sequence += 1;
        Lent { sessions: self, session: Some(session) }
    }
}

impl Lent<'_> {
    /// The name of the one request that is made under it.
    pub fn request(&self) -> Option<RequestId> {
        let session = self.session.as_ref()?;
        let Session { id, sequence } = *session;
        Some(RequestId { session: id, sequence, completed_below: sequence })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut free = self.sessions.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.session.take());
    }
}

/// From the seed that the standard library draws for hash maps.
pub fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_used_twice_and_sessions_are_used_again() {
        let sessions = Sessions::default();
        let (one, other) = (sessions.take(), sessions.take());
        let (first, second) = (one.request().unwrap(), other.request().unwrap());
        assert_ne!(first.session, second.session);
        drop(one);
        let third = sessions.take().request().unwrap();
        assert_eq!((third.session, third.sequence, third.completed_below), (first.session, 2, 2));
    }
}
