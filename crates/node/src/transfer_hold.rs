//! Whether messages may move between queues: a backup has every partition copied at another moment, and a message on its way would be
//! in both copies, or in neither.
//!
//! While the hold lasts this node starts no transfer, and none is under way. It ends by itself, so a backup that was broken off holds
//! up nobody; and its number changes when it had ended in between, so a backup knows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

/// How long a hold lasts that nobody asks for again.
pub const HOLD_LASTS: Duration = Duration::from_secs(30);

/// The hold of one node.
#[derive(Default)]
pub struct TransferHold {
    state: Mutex<State>,
    /// Read while something moves.
    moving: RwLock<()>,
}

#[derive(Default)]
struct State {
    number: u64,
    until: Option<Instant>,
}

impl State {
    fn is_in_force(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

impl TransferHold {
    /// Begins a hold, or makes the one in force last longer, and waits until nothing moves any more. Returns its number.
    pub async fn hold(&self) -> u64 {
        let number = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.is_in_force() {
                state.number += 1;
            }
            state.until = Some(Instant::now() + HOLD_LASTS);
            state.number
        };
        drop(self.moving.write().await);
        number
    }

    /// Whether a hold has been in force since it got this number.
    pub fn lasts(&self, number: u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.number == number && state.is_in_force()
    }

    /// Taken for as long as something moves; `None` while nothing may.
    pub async fn start_moving(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let moving = self.moving.read().await;
        let is_held = self.state.lock().unwrap_or_else(PoisonError::into_inner).is_in_force();
        (!is_held).then_some(moving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hold_ends_by_itself_and_the_next_has_another_number() {
        let hold = TransferHold::default();
        assert!(hold.start_moving().await.is_some());
        let first = hold.hold().await;
        assert!(hold.start_moving().await.is_none());
        tokio::time::advance(HOLD_LASTS / 2).await;
        assert_eq!(hold.hold().await, first);
        tokio::time::advance(HOLD_LASTS / 2).await;
        assert!(hold.lasts(first));
        tokio::time::advance(HOLD_LASTS).await;
        assert!(!hold.lasts(first));
        assert!(hold.start_moving().await.is_some());
        assert_ne!(hold.hold().await, first);
        assert!(!hold.lasts(first));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_waits_for_what_moves() {
        let hold = TransferHold::default();
        let moving = hold.start_moving().await;
        assert!(tokio::time::timeout(Duration::from_secs(1), hold.hold()).await.is_err());
        assert!(moving.is_some());
        drop(moving);
        assert!(tokio::time::timeout(Duration::from_secs(1), hold.hold()).await.is_ok());
    }
}
