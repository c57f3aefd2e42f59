//! Acks, extensions, releases and rejections on their way: gathered into batches that travel on the Pull streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leasehold_proto::v1::{ExtendItem, PullSettle, PullSettled, RejectItem, ReleaseItem, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::delivery::Settle;
use crate::client::Settings;
use crate::message::millis;
use crate::messages::settled;
use crate::session::{Sessions, WINDOW_MAX};
use crate::unanswered::{Finished, Unanswered};
use crate::{Error, ItemResults};

/// Items that close a batch.
const BATCH_ITEMS_MAX: usize = 1_024;
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
        while self.may_start(now) {
            let Some(request) = self.sessions.try_begin() else { return };
            let items = self.next_batch();
            let home = items.first().map_or(0, |item| item.home);
            let wire = Homed { home, settle: wire(self.next_tag, request.id(), &items) };
            self.unanswered.add(self.next_tag, request, wire, items, settings.call_timeout);
            self.next_tag += 1;
        }
    }

    fn may_start(&self, now: Instant) -> bool {
        let Some(first) = self.gathering.front() else { return false };
        let is_wanted = self.unanswered.is_empty()
            || self.gathering.len() >= BATCH_ITEMS_MAX
            || first.asked + LINGER <= now;
        is_wanted && self.unanswered.len() < BATCHES_IN_FLIGHT_MAX
    }

    /// Items of one home, in the order in which a request carries them.
    fn next_batch(&mut self) -> Vec<SettleItem> {
        let home = self.gathering.front().map(|item| item.home);
        let mut batch = Vec::new();
        let mut rest = VecDeque::new();
        for item in self.gathering.drain(..) {
            if Some(item.home) == home && batch.len() < BATCH_ITEMS_MAX {
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
        let has_place = self.unanswered.len() < BATCHES_IN_FLIGHT_MAX;
        let linger = self.gathering.front().filter(|_| has_place).map(|first| first.asked + LINGER);
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
        Settle::Release(_) | Settle::GiveBack => 2,
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
            Settle::GiveBack => {
                settle.releases.push(ReleaseItem { receipt, delay_ms: 0, untouched: true });
            }
            Settle::Reject(why, _) => settle.rejects.push(RejectItem { receipt, why: why.clone() }),
        }
    }
    settle
}
