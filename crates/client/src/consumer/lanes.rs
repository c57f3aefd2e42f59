//! The Pull streams of a consumer, and the credit that it gives on each.
//!
//! One stream to each node that leads shards of the queue saves a hop. Where the leaders are not all known, or one of them
//! cannot be reached, a single stream to any node serves all shards.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold_proto::v1::pull_request::Kind;
use leasehold_proto::v1::{Credit, Outcome, PullRequest, PullResponse, PullSettle, PullStart, Reason};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::Options;
use super::pace::Pace;
use crate::backoff::Backoff;
use crate::call::ATTEMPT_TIME_MAX;
use crate::client::messages;
use crate::message::millis;
use crate::routes::Leaders;
use crate::{Client, Error};

/// How long a stream that was closed may still bring what was pushed before.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// A node by its address, or any node.
type Target = Option<String>;

pub(super) struct Lanes {
    client: Client,
    options: Options,
    events: UnboundedSender<(u64, LaneEvent)>,
    lanes: BTreeMap<u64, Lane>,
    targets: Vec<Target>,
    /// What streams ask for from now on; the queue's own when absent.
    lease: Option<Duration>,
    next_id: u64,
    retry_at: Instant,
    backoff: Backoff,
}

struct Lane {
    target: Target,
    /// `None` once it is closed and only drained.
    requests: Option<UnboundedSender<PullRequest>>,
    /// Credit that the node has not used.
    granted: u64,
    drain_until: Option<Instant>,
    task: AbortHandle,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) enum LaneEvent {
    /// With when the leases in it began.
    Response(PullResponse, Instant),
    Lost(Error),
}

impl Lanes {
    pub(super) fn new(client: Client, options: Options, events: UnboundedSender<(u64, LaneEvent)>) -> Self {
        Self {
            lease: None,
            client,
            options,
            events,
            lanes: BTreeMap::new(),
            targets: Vec::new(),
            next_id: 1,
            retry_at: Instant::now(),
            backoff: Backoff::default(),
        }
    }

    /// How long leases last on streams that are opened from now on.
    pub(super) fn set_lease(&mut self, lease: Option<Duration>) {
        self.lease = lease;
    }

    /// Aims at the leaders, or at any node.
    pub(super) fn aim(&mut self, leaders: &Leaders) {
        let few = leaders.addresses.len() as u64 <= self.options.concurrency;
        let trusted = leaders.addresses.iter().all(|address| self.client.channels().is_trusted(address));
        let targets = if leaders.is_complete && few && trusted {
            leaders.addresses.iter().cloned().map(Some).collect()
        } else {
            vec![None]
        };
        self.aim_at(targets);
    }

    /// Closes every stream that brings messages; one without credit remains while something is to be settled.
    pub(super) fn stop(&mut self) {
        self.aim_at(Vec::new());
    }

    pub(super) fn aim_at_any(&mut self) {
        self.aim_at(vec![None]);
    }

    fn aim_at(&mut self, targets: Vec<Target>) {
        for lane in self.lanes.values_mut() {
            if lane.requests.is_some() && !targets.contains(&lane.target) {
                lane.requests = None;
                lane.drain_until = Some(Instant::now() + DRAIN_TIME_MAX);
            }
        }
        self.targets = targets;
    }

    /// Opens what is aimed at and not there, and ends what was drained long enough; returns what ended.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<u64> {
        if self.retry_at <= now {
            let has = |target: &Target| self.live().any(|(_, lane)| lane.target == *target);
            let missing: Vec<_> = self.targets.iter().filter(|target| !has(target)).cloned().collect();
            for target in missing {
                self.open(target);
            }
        }
        let is_over = |lane: &Lane| lane.drain_until.is_some_and(|until| until <= now);
        let over: Vec<u64> = self.lanes.iter().filter(|(_, lane)| is_over(lane)).map(|(id, _)| *id).collect();
        for id in &over {
            self.lanes.remove(id);
        }
        over
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let is_missing = self.live().count() < self.targets.len();
        let drains = self.lanes.values().filter_map(|lane| lane.drain_until);
        drains.chain(is_missing.then_some(self.retry_at)).min()
    }

    /// Whether a closed stream may still bring messages.
    pub(super) fn is_draining(&self) -> bool {
        self.lanes.values().any(|lane| lane.requests.is_none() && lane.granted > 0)
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.lanes.keys().copied().collect()
    }

    /// The lane to settle on: that of the message, or another.
    pub(super) fn settle_lane(&self, home: u64) -> Option<u64> {
        let mut live = self.live().map(|(id, _)| id);
        let first = live.next()?;
        Some(if first == home || live.any(|id| id == home) { home } else { first })
    }

    pub(super) fn send(&self, lane: u64, settle: PullSettle) {
        if let Some(lane) = self.lanes.get(&lane) {
            lane.send(Kind::Settle(settle));
        }
    }

    /// Messages came: their credit is used.
    pub(super) fn used(&mut self, lane: u64, messages: usize) {
        self.backoff.reset();
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.granted = lane.granted.saturating_sub(messages as u64);
        }
    }

    /// A lane ended; whether that matters, since it was not closed by this side.
    pub(super) fn lost(&mut self, id: u64, error: &Error, now: Instant) -> bool {
        let Some(lane) = self.lanes.remove(&id) else { return false };
        if lane.requests.is_none() {
            return false;
        }
        let pause = self.backoff.next(error.retry_after, &self.client.settings().budget);
        self.retry_at = self.retry_at.max(now + pause);
        tracing::debug!(queue = self.options.queue, %error, "a pull stream was lost");
        true
    }

    /// Gives the credit that is left over, beside the messages held, to the lanes that have used theirs.
    pub(super) fn top_up(&mut self, held_max: u64, held: usize) {
        let lanes = self.live().count() as u64;
        let granted: u64 = self.lanes.values().map(|lane| lane.granted).sum();
        let mut spare = held_max.saturating_sub(held as u64 + granted);
        let share = (held_max / lanes.max(1)).max(1);
        let mut thirsty: Vec<_> = self.lanes.values_mut().filter(|lane| lane.requests.is_some()).collect();
        thirsty.sort_by_key(|lane| lane.granted);
        for lane in thirsty {
            let wanted = share.saturating_sub(lane.granted).min(spare);
            let is_worth_it = lane.granted == 0 || wanted >= (share / 4).max(1);
            if wanted > 0 && is_worth_it {
                lane.granted += wanted;
                spare -= wanted;
                lane.send(Kind::Credit(Credit { messages: wanted }));
            }
        }
    }

    fn live(&self) -> impl Iterator<Item = (u64, &Lane)> {
        self.lanes.iter().filter(|(_, lane)| lane.requests.is_some()).map(|(id, lane)| (*id, lane))
    }

    fn open(&mut self, target: Target) {
        let id = self.next_id;
        self.next_id += 1;
        let (requests, outgoing) = unbounded_channel();
        let start = PullStart {
            queue: self.options.queue.clone(),
            lease_ms: self.lease.map(millis),
            consumer: self.options.name.clone(),
            batch_max: self.options.batch_max,
            credit: None,
            local_shards_only: target.is_some(),
        };
        let carrier = Carrier {
            id,
            client: self.client.clone(),
            queue: self.options.queue.clone(),
            target: target.clone(),
            events: self.events.clone(),
        };
        let task = tokio::spawn(carrier.run(outgoing)).abort_handle();
        let lane = Lane { target, requests: Some(requests), granted: 0, drain_until: None, task };
        lane.send(Kind::Start(start));
        self.lanes.insert(id, lane);
    }
}

impl Lane {
    fn send(&self, kind: Kind) {
        if let Some(requests) = &self.requests {
            let _ = requests.send(PullRequest { kind: Some(kind) });
        }
    }
}

/// Carries one stream between the network and the hub.
struct Carrier {
    id: u64,
    client: Client,
    queue: String,
    target: Target,
    events: UnboundedSender<(u64, LaneEvent)>,
}

impl Carrier {
    async fn run(self, outgoing: UnboundedReceiver<PullRequest>) {
        let address = match &self.target {
            Some(address) => address.clone(),
            None => self.client.address_for(Some(&self.queue)).await,
        };
        let error = match self.carry(&address, outgoing).await {
            // As a node does when this side closed the stream.
            Ok(()) => Error::transport(Outcome::Unknown, Reason::None, "the node ended the stream"),
            Err(error) => {
                self.client.note_result(&address, Some(&self.queue), Some(&error));
                error
            }
        };
        let _ = self.events.send((self.id, LaneEvent::Lost(error)));
    }

    async fn carry(&self, address: &str, outgoing: UnboundedReceiver<PullRequest>) -> Result<(), Error> {
        let mut messages = messages(self.client.channels().channel(address)?);
        let mut pace = Pace::from(Instant::now());
        let opening = messages.pull(UnboundedReceiverStream::new(outgoing));
        let answer = match timeout(ATTEMPT_TIME_MAX, opening).await {
            Ok(answer) => answer?,
            Err(_) => return Err(Error::timed_out(format!("{address} did not open a stream in time"))),
        };
        self.client.note_result(address, Some(&self.queue), None);
        let mut responses = answer.into_inner();
        while let Some(response) = responses.message().await? {
            let leased = pace.leased(&response, Instant::now());
            let _ = self.events.send((self.id, LaneEvent::Response(response, leased)));
        }
        Ok(())
    }
}
