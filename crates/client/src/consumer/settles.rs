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
use crate::session::{Sessions, WINDOW_MAX};
use crate::unanswered::{Finished, Unanswered};
use crate::{Error, ItemResults};

/// Items that close a batch.
const BATCH_ITEMS_MAX: usize = 1_024;
/// For the messages of one lane: a partition without a leader does not hold up those of the others.
const BATCHES_IN_FLIGHT_MAX: usize = 8;
/// How long a batch waits for more while another is under way.
const LINGER: Duration = Duration::from_millis(1);

/// What is to be settled, and what is settled without an answer yet.
pub(super) struct Settles {
    sessions: Arc<Sessions>,
    gathering: VecDeque<SettleItem>,
    unanswered: Unanswered<Homed, SettleItem>,
    next_tag: u64,
}

/// A request, and the lane that its messages came on.
#[derive(Debug)]
struct Homed {
    home: u64,
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

impl Settles {
    pub(super) fn new() -> Self {
        Self {
            sessions: Sessions::new(WINDOW_MAX),
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
        while let Some(home) = self.next_home(now) {
            let Some(request) = self.sessions.try_begin() else { return };
            let items = self.next_batch(home);
            let wire = Homed { home, settle: wire(self.next_tag, request.id(), &items) };
            self.unanswered.add(self.next_tag, request, wire, items, settings.call_timeout);
            self.next_tag += 1;
        }
    }

    /// Of what a batch is to be made now.
    fn next_home(&self, now: Instant) -> Option<u64> {
        let first = self.first_with_place()?;
        let is_wanted = self.unanswered.is_empty()
            || self.gathering.len() >= BATCH_ITEMS_MAX
            || first.asked + LINGER <= now;
        is_wanted.then_some(first.home)
    }

    /// The first item of a home that may have another batch under way.
    fn first_with_place(&self) -> Option<&SettleItem> {
        let mut full = Vec::new();
        self.gathering.iter().find(|item| {
            if full.contains(&item.home) {
                return false;
            }
            let has_place = self.unanswered.count(|wire| wire.home == item.home) < BATCHES_IN_FLIGHT_MAX;
            if !has_place {
                full.push(item.home);
            }
            has_place
        })
    }

    /// Items of one home, in the order in which a request carries them. Extensions go by themselves: a request of one kind has a name
    /// at every partition, so that no extension is done a second time, after a longer one.
    fn next_batch(&mut self, home: u64) -> Vec<SettleItem> {
        let mut batch: Vec<SettleItem> = Vec::new();
        let mut rest = VecDeque::new();
        let is_extension = |item: &SettleItem| matches!(item.how, Settle::Extend(_));
        for item in self.gathering.drain(..) {
            let is_alike = batch.first().is_none_or(|first| is_extension(first) == is_extension(&item));
            if item.home == home && is_alike && batch.len() < BATCH_ITEMS_MAX {
                batch.push(item);
            } else {
                rest.push_back(item);
            }
        }
        self.gathering = rest;
        batch.sort_by_key(|item| place_of(&item.how));
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
        let due = self.unanswered.send_due(now, move |wire| choose(wire.home));
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

fn place_of(how: &Settle) -> u8 {
    match how {
        Settle::Ack => 0,
        Settle::Extend(_) => 1,
        Settle::Release(_) | Settle::Postpone(_) | Settle::GiveBack => 2,
        Settle::Reject(..) => 3,
    }
}

fn wire(tag: u64, id: RequestId, items: &[SettleItem]) -> PullSettle {
    let mut settle = PullSettle { tag, request: Some(id), ..Default::default() };
    for item in items {
        let receipt = item.receipt.clone();
        match &item.how {
            Settle::Ack => settle.acks.push(receipt),
            Settle::Extend(lease) => settle.extends.push(ExtendItem { receipt, lease_ms: millis(*lease) }),
            Settle::Release(delay) => {
                let delay_ms = millis(*delay);
                settle.releases.push(ReleaseItem { receipt, delay_ms, untouched: false });
            }
            Settle::Postpone(delay) => {
                let delay_ms = millis(*delay);
                settle.releases.push(ReleaseItem { receipt, delay_ms, untouched: true });
            }
            Settle::GiveBack => {
                settle.releases.push(ReleaseItem { receipt, delay_ms: 0, untouched: true });
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

    #[tokio::test]
    async fn extensions_share_no_request_with_anything_else() {
        let mut settles = Settles::new();
        for how in [Settle::Ack, Settle::Extend(Duration::from_secs(5)), Settle::Ack] {
            settles.push(item(1, how));
        }
        let kinds = sent(&mut settles, Instant::now() + SOON)
            .iter()
            .map(|(_, settle)| (settle.acks.len(), settle.extends.len()))
            .collect::<Vec<_>>();
        assert_eq!(kinds, [(2, 0), (0, 1)]);
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
