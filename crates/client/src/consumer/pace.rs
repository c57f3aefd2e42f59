//! When a lease on a stream began, whatever the time that its message was on the way.
//!
//! The node counts from when it took the stream up. The client does not know when that was, but each message says: no later than
//! its arrival, less what the node had counted. The earliest of these moments is wrong by the fastest way of any message at most.
//! It may move on a little with time, as it must when the node's clock is the slower one.

use std::time::Duration;

use leasehold_proto::v1::PullResponse;
use leasehold_proto::v1::pull_response::Kind;
use tokio::time::Instant;

/// How much slower than this clock the node's may be, in millionths: more than any two quartz clocks differ.
const DRIFT_PPM: u32 = 200;

pub(super) struct Pace {
    /// When the node began to count, or earlier.
    began: Instant,
    seen: Instant,
}

impl Pace {
    /// The node cannot take the stream up before it was opened.
    pub(super) fn from(opened: Instant) -> Self {
        Self { began: opened, seen: opened }
    }

    /// When the leases of a response began, or earlier.
    pub(super) fn leased(&mut self, response: &PullResponse, arrived: Instant) -> Instant {
        let counted_ms = match &response.kind {
            Some(Kind::Deliveries(deliveries)) => deliveries.leased_ms,
            _ => None,
        };
        let Some(counted) = counted_ms.map(Duration::from_millis) else { return arrived };
        let drift = (arrived - self.seen) * DRIFT_PPM / 1_000_000;
        let by_this = arrived.checked_sub(counted).unwrap_or(self.began);
        self.began = by_this.min(self.began + drift);
        self.seen = arrived;
        self.began + counted
    }
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1::Deliveries;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn response(leased_ms: u64) -> PullResponse {
        let deliveries = Deliveries { leased_ms: Some(leased_ms), ..Deliveries::default() };
        PullResponse { kind: Some(Kind::Deliveries(deliveries)) }
    }

    #[test]
    fn a_message_that_was_held_up_has_no_longer_lease() {
        let opened = Instant::now();
        let mut pace = Pace::from(opened);
        let on_time = pace.leased(&response(100), opened + ms(101));
        assert!(on_time >= opened + ms(100) && on_time < opened + ms(101), "{:?}", on_time - opened);
        let held_up = pace.leased(&response(200), opened + ms(5_200));
        assert!(held_up >= opened + ms(200) && held_up < opened + ms(204), "{:?}", held_up - opened);
    }

    #[test]
    fn a_slower_clock_is_followed_and_a_faster_one_at_once() {
        let opened = Instant::now();
        let (mut slower, mut faster) = (Pace::from(opened), Pace::from(opened));
        for second in 1..=100_000 {
            let arrived = opened + ms(second * 1_000);
            let of_slower = slower.leased(&response(second * 1_000 - second / 10), arrived);
            assert!(arrived - of_slower < ms(2), "{:?} after {second} s", arrived - of_slower);
            let of_faster = faster.leased(&response(second * 1_000 + second / 10), arrived);
            assert!(of_faster <= arrived, "after {second} s");
        }
    }

    #[test]
    fn what_says_nothing_of_leases_is_as_late_as_it_comes() {
        let opened = Instant::now();
        assert_eq!(Pace::from(opened).leased(&PullResponse::default(), opened + ms(7)), opened + ms(7));
    }
}
