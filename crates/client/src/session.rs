//! Names for requests, so that a retry is recognised and answered as the first time.
//!
//! A partition remembers a bounded number of replies of a session. The requests of one session that may still be tried again
//! therefore lie within a window of sequences; when the window is full, because one request takes long, another session goes on.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use leasehold_proto::v1::RequestId;
use tokio::sync::Notify;

/// Sequences between the oldest unanswered request of a session and its newest: what a partition remembers.
pub(crate) const WINDOW_MAX: u64 = 128;
/// Sessions of one pool; beyond it new requests wait.
const SESSIONS_MAX: usize = 256;

/// Sessions that share the requests of one client.
#[derive(Debug)]
pub(crate) struct Sessions {
    window: u64,
    open: Mutex<Vec<Session>>,
    room: Notify,
}

#[derive(Debug)]
struct Session {
    id: u64,
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// A request under way; answered when dropped.
#[derive(Debug)]
pub(crate) struct Request {
    id: RequestId,
    sessions: Arc<Sessions>,
}

impl Sessions {
    /// `window` is at most [`WINDOW_MAX`]; 1 for requests that take long by design.
    pub(crate) fn new(window: u64) -> Arc<Self> {
        assert!((1..=WINDOW_MAX).contains(&window));
        Arc::new(Self { window, open: Mutex::default(), room: Notify::new() })
    }

    /// Names a request, waiting while too many are under way.
    pub(crate) async fn begin(self: &Arc<Self>) -> Request {
        loop {
            let room = self.room.notified();
            if let Some(request) = self.try_begin() {
                return request;
            }
            room.await;
        }
    }

    pub(crate) fn try_begin(self: &Arc<Self>) -> Option<Request> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let position = match open.iter().position(|session| session.has_room(self.window)) {
            Some(position) => position,
            None if open.len() < SESSIONS_MAX => {
                open.push(Session { id: random_u64(), next: 1, unanswered: BTreeSet::new() });
                open.len() - 1
            }
            None => return None,
        };
        Some(Request { id: open[position].begin(), sessions: Arc::clone(self) })
    }

    fn end(&self, id: RequestId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = open.iter_mut().find(|session| session.id == id.session) {
            session.unanswered.remove(&id.sequence);
        }
        drop(open);
        self.room.notify_waiters();
    }
}

impl Session {
    fn has_room(&self, window: u64) -> bool {
        self.next - self.completed_below() < window
    }

    fn completed_below(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }

    fn begin(&mut self) -> RequestId {
        let sequence = self.next;
        self.next += 1;
        self.unanswered.insert(sequence);
        RequestId { session: self.id, sequence, completed_below: self.completed_below() }
    }
}

impl Request {
    /// The same at every attempt.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.sessions.end(self.id);
    }
}

/// Each `RandomState` is keyed from the system's randomness.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_request_does_not_stretch_the_window() {
        let sessions = Sessions::new(4);
        let slow = sessions.try_begin().unwrap();
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.push(sessions.try_begin().unwrap().id());
        }
        let of_slow = seen.iter().filter(|id| id.session == slow.id().session);
        assert!(of_slow.clone().all(|id| id.completed_below == slow.id().sequence));
        assert_eq!(of_slow.count(), 3);
    }

    #[test]
    fn answered_requests_are_forgotten() {
        let sessions = Sessions::new(WINDOW_MAX);
        let first = sessions.try_begin().unwrap();
        let second = sessions.try_begin().unwrap();
        drop(first);
        assert_eq!(sessions.try_begin().unwrap().id().completed_below, second.id().sequence);
    }

    #[tokio::test]
    async fn requests_wait_when_every_session_is_full() {
        let sessions = Sessions::new(1);
        let mut held: Vec<_> = (0..SESSIONS_MAX).map(|_| sessions.try_begin().unwrap()).collect();
        assert!(sessions.try_begin().is_none());
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.begin().await.id() }
        });
        tokio::task::yield_now().await;
        let freed = held.pop().unwrap().id().session;
        assert_eq!(waiting.await.unwrap().session, freed);
    }
}
