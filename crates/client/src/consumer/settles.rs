//! Acks, extensions, releases and rejections on their way: gathered into batches that travel on the Pull streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leasehold_proto::v1::{ExtendItem, PullSettle, PullSettled, RejectItem, ReleaseItem, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::delivery::Settle;
use super::groups::GroupGrant;
use crate::client::Settings;
use crate::message::millis;
use crate::messages::settled;
use crate::session::{REQUESTS_MAX, Sessions, WINDOW_MAX};
use crate::unanswered::{Finished, Unanswered};
use crate::{Error, ItemResults};

/// Items that close a batch.
const BATCH_ITEMS_MAX: usize = 1_024;
/// Of one sort: a partition without a leader does not hold up the messages of others, nor acks the extensions. A node takes 64 of a
/// stream at a time.
const BATCHES_IN_FLIGHT_MAX: usize = 8;
/// How long a batch waits for more while another is under way.
const LINGER: Duration = Duration::from_millis(1);

/// What is to be settled, and what is settled without an answer yet.
pub(super) struct Settles {
    sessions: Arc<Sessions>,
    gathering: VecDeque<SettleItem>,
    unanswered: Unanswered<Sorted, SettleItem>,
    next_tag: u64,
}

/// What a node makes of an item: each kind is a command of its own. A request of one kind has a name at every partition. So a repeat is
/// answered as the first time, and no extension is done a second time, after a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ack,
    Extend,
    Release,
    Postpone,
    GiveBack,
    Reject,
}

impl Kind {
    fn of(how: &Settle) -> Self {
        match how {
            Settle::Ack => Self::Ack,
            Settle::Extend(_) => Self::Extend,
            Settle::Release(_) => Self::Release,
            // For no time it is given back: a node counts in milliseconds.
            Settle::Postpone(delay) if millis(*delay) > 0 => Self::Postpone,
            Settle::Postpone(_) | Settle::GiveBack => Self::GiveBack,
            Settle::Reject(..) => Self::Reject,
        }
    }
}

/// Items that may share a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sort {
    /// The lane that the messages came on.
    home: u64,
    kind: Kind,
}

/// A request with items of one sort.
#[derive(Debug)]
struct Sorted {
    sort: Sort,
    settle: PullSettle,
}

/// One receipt and what shall become of it.
#[derive(Debug)]
pub(super) struct SettleItem {
    pub(super) key: u64,
    pub(super) receipt: Bytes,
    pub(super) how: Settle,
    pub(super) reply: Option<oneshot::Sender<Result<(), Error>>>,
    /// The lane that the message came on.
    pub(super) home: u64,
    pub(super) group_grant: Option<Arc<GroupGrant>>,
    pub(super) asked: Instant,
}

impl SettleItem {
    fn sort(&self) -> Sort {
        Sort { home: self.home, kind: Kind::of(&self.how) }
    }
}

impl Settles {
    pub(super) fn new() -> Self {
        Self {
            sessions: Sessions::new(WINDOW_MAX, REQUESTS_MAX),
            gathering: VecDeque::new(),
            unanswered: Unanswered::new(),
            next_tag: 1,
        }
    }

    pub(super) fn push(&mut self, item: SettleItem) {
        self.gathering.push_back(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gathering.is_empty() && self.unanswered.is_empty()
    }

    /// Makes requests of what was gathered, as far as may be under way.
    pub(super) fn start_batches(&mut self, now: Instant, settings: &Settings) {
        while let Some(sort) = self.next_sort(now) {
            let Some(request) = self.sessions.try_begin() else { return };
            let items = self.next_batch(sort);
            let wire = Sorted { sort, settle: wire(self.next_tag, request.id(), &items) };
            self.unanswered.add(self.next_tag, request, wire, items, settings.call_timeout);
            self.next_tag += 1;
        }
    }

    /// Of what a batch is to be made now.
    fn next_sort(&self, now: Instant) -> Option<Sort> {
        let first = self.first_with_place()?;
        let is_wanted = self.unanswered.is_empty()
            || self.gathering.len() >= BATCH_ITEMS_MAX
            || first.asked + LINGER <= now;
        is_wanted.then(|| first.sort())
    }

    /// The first item of a sort that may have another batch under way: every sort has its turn.
    fn first_with_place(&self) -> Option<&SettleItem> {
        let mut full = Vec::new();
        self.gathering.iter().find(|item| {
            let sort = item.sort();
            if full.contains(&sort) {
                return false;
            }
            let has_place = self.unanswered.count(|wire| wire.sort == sort) < BATCHES_IN_FLIGHT_MAX;
            if !has_place {
                full.push(sort);
            }
            has_place
        })
    }

    /// Items of one sort, in the order in which they came.
    fn next_batch(&mut self, sort: Sort) -> Vec<SettleItem> {
        let mut batch = Vec::new();
        let mut rest = VecDeque::new();
        for item in self.gathering.drain(..) {
            if item.sort() == sort && batch.len() < BATCH_ITEMS_MAX {
                batch.push(item);
            } else {
                rest.push_back(item);
            }
        }
        self.gathering = rest;
        batch
    }

    pub(super) fn has_due(&self, now: Instant) -> bool {
        self.unanswered.has_due(now)
    }

    /// What is to be sent now, each on the lane that `choose` names for its home.
    pub(super) fn send_due(
        &mut self,
        now: Instant,
        choose: impl Fn(u64) -> u64,
    ) -> impl Iterator<Item = (u64, PullSettle)> {
        let due = self.unanswered.send_due(now, move |wire| choose(wire.sort.home));
        due.map(|(_, lane, wire)| (lane, wire.settle.clone()))
    }

    pub(super) fn is_stuck(&self, lane: u64, now: Instant) -> bool {
        self.unanswered.is_stuck(lane, now)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let linger = self.first_with_place().map(|first| first.asked + LINGER);
        linger.into_iter().chain(self.unanswered.next_deadline()).min()
    }

    pub(super) fn answer(&mut self, response: PullSettled, settings: &Settings) -> Finished<SettleItem, ()> {
        let answer: Result<ItemResults<()>, Error> = match response.error {
            Some(error) => Err(error.into()),
            None => Ok(response.outcomes.iter().map(settled).collect()),
        };
        self.unanswered.answer(response.tag, answer, settings)
    }

    pub(super) fn lose(&mut self, lane: u64, error: &Error, settings: &Settings) -> Finished<SettleItem, ()> {
        self.unanswered.lose(lane, error, settings)
    }

    pub(super) fn expire(&mut self, now: Instant) -> Finished<SettleItem, ()> {
        self.unanswered.expire(now)
    }
}

fn release(receipt: Bytes, delay: Duration) -> ReleaseItem {
    ReleaseItem { receipt, delay_ms: millis(delay), ..ReleaseItem::default() }
}

fn wire(tag: u64, id: RequestId, items: &[SettleItem]) -> PullSettle {
    let mut settle = PullSettle { tag, request: Some(id), ..Default::default() };
    for item in items {
        let receipt = item.receipt.clone();
        match &item.how {
            Settle::Ack => settle.acks.push(receipt),
            Settle::Extend(lease) => settle.extends.push(ExtendItem { receipt, lease_ms: millis(*lease) }),
            Settle::Release(delay) => settle.releases.push(release(receipt, *delay)),
            Settle::Postpone(delay) => {
                settle.releases.push(ReleaseItem { put_off: true, ..release(receipt, *delay) });
            }
            Settle::GiveBack => {
                settle.releases.push(ReleaseItem { untouched: true, ..release(receipt, Duration::ZERO) });
            }
            Settle::Reject(why, _) => settle.rejects.push(RejectItem { receipt, why: why.clone() }),
        }
    }
    settle
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    /// When everything lingered long enough, however slow the test is.
    const SOON: Duration = Duration::from_secs(1);

    fn item(home: u64, how: Settle) -> SettleItem {
        SettleItem {
            key: 0,
            receipt: Bytes::new(),
            how,
            reply: None,
            home,
            group_grant: None,
            asked: Instant::now(),
        }
    }

    fn sent(settles: &mut Settles, now: Instant) -> Vec<(u64, PullSettle)> {
        let client = Client::connect(["127.0.0.1:1"]).unwrap();
        settles.start_batches(now, client.settings());
        settles.send_due(now, |home| home).collect()
    }

    /// How many of each part of a request, and how many releases are untouched or put off, and have a delay.
    fn counts(settle: &PullSettle) -> [usize; 6] {
        let untouched = settle.releases.iter().filter(|item| item.untouched || item.put_off).count();
        let delayed = settle.releases.iter().filter(|item| item.delay_ms > 0).count();
        let (acks, extends, rejects) = (settle.acks.len(), settle.extends.len(), settle.rejects.len());
        [acks, extends, settle.releases.len(), rejects, untouched, delayed]
    }

    /// As the node tells kinds apart: a request of several has no name there.
    #[tokio::test]
    async fn a_request_is_of_one_kind() {
        let seconds = Duration::from_secs(5);
        let mut settles = Settles::new();
        for how in [
            Settle::Ack,
            Settle::Extend(seconds),
            Settle::Release(Duration::ZERO),
            Settle::Reject("no".to_owned(), seconds),
            Settle::Postpone(seconds),
            Settle::Postpone(Duration::ZERO),
            Settle::Ack,
            Settle::Release(seconds),
            Settle::GiveBack,
            Settle::Postpone(Duration::from_micros(900)),
        ] {
            settles.push(item(1, how));
        }
        let now = Instant::now() + SOON;
        let kinds = sent(&mut settles, now).iter().map(|(_, settle)| counts(settle)).collect::<Vec<_>>();
        let [acks, extends, releases] = [[2, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 1]];
        let [rejects, postponed, given_back] = [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1], [0, 0, 3, 0, 3, 0]];
        assert_eq!(kinds, [acks, extends, releases, rejects, postponed, given_back]);
    }

    #[tokio::test]
    async fn acks_without_answers_do_not_hold_up_an_extension() {
        let mut settles = Settles::new();
        let now = Instant::now() + SOON;
        for _ in 0..BATCHES_IN_FLIGHT_MAX {
            settles.push(item(1, Settle::Ack));
            assert_eq!(sent(&mut settles, now).len(), 1);
        }
        settles.push(item(1, Settle::Ack));
        settles.push(item(1, Settle::Extend(SOON)));
        let kinds = sent(&mut settles, now).iter().map(|(_, settle)| counts(settle)).collect::<Vec<_>>();
        assert_eq!(kinds, [[0, 1, 0, 0, 0, 0]]);
    }

    #[tokio::test]
    async fn a_lane_without_answers_does_not_hold_up_the_others() {
        let mut settles = Settles::new();
        let now = Instant::now() + SOON;
        for _ in 0..BATCHES_IN_FLIGHT_MAX {
            settles.push(item(1, Settle::Ack));
            assert_eq!(sent(&mut settles, now).len(), 1);
        }
        settles.push(item(1, Settle::Ack));
        assert!(sent(&mut settles, now).is_empty());
        settles.push(item(2, Settle::Ack));
        let homes = sent(&mut settles, now).iter().map(|(lane, _)| *lane).collect::<Vec<_>>();
        assert_eq!(homes, [2]);
    }
}
