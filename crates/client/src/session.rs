//! Names for requests, so that a retry is recognised and answered as the first time.
//!
//! A partition remembers a bounded number of replies of a session. The requests of one session that may still be tried again
//! therefore lie within a window of sequences; when the window is full, because one request takes long, another session goes on.
//! A session without room has a request under way, so there are never more of them than requests may be.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use leasehold_proto::v1::{Outcome, Reason, RequestId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::Error;

/// Sequences between the oldest unanswered request of a session and its newest: what a partition remembers.
pub(crate) const WINDOW_MAX: u64 = 128;
/// Requests of one pool that are under way; beyond it new ones wait.
pub(crate) const REQUESTS_MAX: usize = 4_096;

/// Sessions that share the requests of one client.
#[derive(Debug)]
pub(crate) struct Sessions {
    window: u64,
    open: Mutex<Vec<Session>>,
    /// One for each request that may be under way. Who waits longest has the next: nobody who asks later overtakes.
    places: Arc<Semaphore>,
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
    /// Free again once the sequence is answered.
    _place: OwnedSemaphorePermit,
}

impl Sessions {
    /// `window` is at most [`WINDOW_MAX`]; 1 for requests that take long by design. `requests_max` may be under way.
    pub(crate) fn new(window: u64, requests_max: usize) -> Arc<Self> {
        assert!((1..=WINDOW_MAX).contains(&window));
        Arc::new(Self { window, open: Mutex::default(), places: Arc::new(Semaphore::new(requests_max)) })
    }

    /// Names a request. While too many are under way it waits, behind those that wait already.
    ///
    /// # Errors
    /// `NotDone` when there is no place for it before the deadline.
    pub(crate) async fn begin(self: &Arc<Self>, deadline: Instant) -> Result<Request, Error> {
        match timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await {
            Ok(place) => Ok(self.name(place.expect("the semaphore is never closed"))),
            Err(_) => {
                let detail = "too many requests of this client are under way: nothing was sent";
                Err(Error::transport(Outcome::NotDone, Reason::TimedOut, detail))
            }
        }
    }

    /// Names a request if it may be under way now.
    pub(crate) fn try_begin(self: &Arc<Self>) -> Option<Request> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(|place| self.name(place))
    }

    fn name(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Request {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let position = match open.iter().position(|session| session.has_room(self.window)) {
            Some(position) => position,
            None => {
                open.push(Session { id: random_u64(), next: 1, unanswered: BTreeSet::new() });
                open.len() - 1
            }
        };
        Request { id: open[position].begin(), sessions: Arc::clone(self), _place: place }
    }

    fn end(&self, id: RequestId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = open.iter_mut().find(|session| session.id == id.session) {
            session.unanswered.remove(&id.sequence);
        }
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
    use std::time::Duration;

    use tokio::task::{JoinSet, yield_now};

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_slow_request_does_not_stretch_the_window() {
        let sessions = Sessions::new(4, 32);
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
        let sessions = Sessions::new(WINDOW_MAX, 3);
        let first = sessions.try_begin().unwrap();
        let second = sessions.try_begin().unwrap();
        drop(first);
        assert_eq!(sessions.try_begin().unwrap().id().completed_below, second.id().sequence);
    }

    #[tokio::test]
    async fn requests_wait_while_too_many_are_under_way() {
        let sessions = Sessions::new(1, 256);
        let mut held: Vec<_> = (0..256).map(|_| sessions.try_begin().unwrap()).collect();
        assert!(sessions.try_begin().is_none());
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.begin(later()).await.unwrap().id() }
        });
        yield_now().await;
        let freed = held.pop().unwrap().id().session;
        assert_eq!(waiting.await.unwrap().session, freed);
    }

    #[tokio::test]
    async fn who_waits_has_its_turn_among_those_that_ask_again_and_again() {
        const PLACES: usize = 256;
        let sessions = Sessions::new(1, PLACES);
        let mut loopers = JoinSet::new();
        for _ in 0..PLACES {
            let sessions = Arc::clone(&sessions);
            loopers.spawn(async move {
                while let Ok(request) = sessions.begin(later()).await {
                    yield_now().await;
                    drop(request);
                }
            });
        }
        while sessions.try_begin().is_some() {
            yield_now().await;
        }
        assert!(sessions.begin(later()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_too_long_has_done_nothing() {
        let sessions = Sessions::new(1, 1);
        let _held = sessions.try_begin().unwrap();
        let error = sessions.begin(later()).await.unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::TimedOut));
    }
}
