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
/// How long a stream may be without credit while another has more than its share: credit cannot be taken back, but a stream can be
/// opened again.
const DRY_TIME_MAX: Duration = Duration::from_secs(1);

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
    /// When the credit is to be dealt anew, unless it flows again before.
    deal_at: Option<Instant>,
    backoff: Backoff,
}

struct Lane {
    target: Target,
    /// Once it is known.
    address: Option<String>,
    /// `None` once it is closed and only drained.
    requests: Option<UnboundedSender<PullRequest>>,
    /// Credit that the node has not used.
    granted: u64,
    /// Since when it has none.
    dry_since: Option<Instant>,
    drain_until: Option<Instant>,
    task: AbortHandle,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) enum LaneEvent {
    /// It is carried by the node with this address.
    Opened(String),
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
            deal_at: None,
            backoff: Backoff::default(),
        }
    }

    /// How long leases last on streams that are opened from now on.
    pub(super) fn set_lease(&mut self, lease: Option<Duration>) {
        self.lease = lease;
    }

    /// Aims at the leaders, or at any node, where they are more than the messages that are handled at a time.
    pub(super) fn aim(&mut self, leaders: &Leaders, concurrency: u64) {
        let few = leaders.addresses.len() as u64 <= concurrency;
        let is_trusted = |address: &String| self.client.channels().is_trusted(address);
        let are_reached = leaders.is_complete && leaders.addresses.iter().all(is_trusted);
        let targets = if are_reached && few {
            leaders.addresses.iter().cloned().map(Some).collect()
        } else {
            vec![None]
        };
        // A node that was cut off from the leaders opens streams all the same.
        if are_reached {
            let is_elsewhere = |address: &String| !leaders.addresses.contains(address);
            let elsewhere = |lane: &&mut Lane| {
                lane.is_live() && lane.target.is_none() && lane.address.as_ref().is_some_and(is_elsewhere)
            };
            self.lanes.values_mut().filter(elsewhere).for_each(Lane::close);
        }
        self.aim_at(targets);
    }

    /// A stream was opened, at this node.
    pub(super) fn opened(&mut self, id: u64, address: String) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.address = Some(address);
        }
    }

    /// Closes every stream that brings messages; one without credit remains while something is to be settled.
    pub(super) fn stop(&mut self) {
        self.deal_at = None;
        self.aim_at(Vec::new());
    }

    pub(super) fn aim_at_any(&mut self) {
        self.aim_at(vec![None]);
    }

    fn aim_at(&mut self, targets: Vec<Target>) {
        for lane in self.lanes.values_mut() {
            if lane.is_live() && !targets.contains(&lane.target) {
                lane.close();
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
        drains.chain(is_missing.then_some(self.retry_at)).chain(self.deal_at).min()
    }

    /// Whether a closed stream may still bring messages.
    pub(super) fn is_draining(&self) -> bool {
        self.lanes.values().any(|lane| !lane.is_live() && lane.granted > 0)
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
        if !lane.is_live() {
            return false;
        }
        let pause = self.backoff.next(error.retry_after, &self.client.settings().budget);
        self.retry_at = self.retry_at.max(now + pause);
        tracing::debug!(queue = self.options.queue, %error, "a pull stream was lost");
        true
    }

    /// Gives the credit that is left over, beside the messages held, to the lanes that have used theirs.
    pub(super) fn top_up(&mut self, now: Instant, held_max: u64, held: usize) {
        let lanes = self.live().count() as u64;
        let granted: u64 = self.lanes.values().map(|lane| lane.granted).sum();
        let mut spare = held_max.saturating_sub(held as u64 + granted);
        let share = (held_max / lanes.max(1)).max(1);
        let mut thirsty: Vec<_> = self.lanes.values_mut().filter(|lane| lane.is_live()).collect();
        thirsty.sort_by_key(|lane| lane.granted);
        for lane in thirsty {
            let wanted = share.saturating_sub(lane.granted).min(spare);
            let is_worth_it = lane.granted == 0 || wanted >= (share / 4).max(1);
            if wanted > 0 && is_worth_it {
                lane.granted += wanted;
                spare -= wanted;
                lane.send(Kind::Credit(Credit { messages: wanted }));
            }
            lane.dry_since = (lane.granted == 0).then(|| lane.dry_since.unwrap_or(now));
        }
        self.deal_anew(now, share);
    }

    /// A node that came back, or leads again, finds all credit given to the others, where no message may come for long: the stream
    /// that has most of it is opened again, and what it gives up is shared.
    fn deal_anew(&mut self, now: Instant, share: u64) {
        self.deal_at = None;
        if self.lanes.values().any(|lane| !lane.is_live()) {
            return;
        }
        let dry_since = self.lanes.values().filter_map(|lane| lane.dry_since).min();
        let richest = self.lanes.values_mut().max_by_key(|lane| lane.granted);
        let (Some(dry_since), Some(richest)) = (dry_since, richest.filter(|lane| lane.granted > share))
        else {
            return;
        };
        if dry_since + DRY_TIME_MAX <= now {
            richest.close();
        } else {
            self.deal_at = Some(dry_since + DRY_TIME_MAX);
        }
    }

    fn live(&self) -> impl Iterator<Item = (u64, &Lane)> {
        self.lanes.iter().filter(|(_, lane)| lane.is_live()).map(|(id, lane)| (*id, lane))
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
        let lane = Lane {
            target,
            address: None,
            requests: Some(requests),
            granted: 0,
            dry_since: None,
            drain_until: None,
            task,
        };
        lane.send(Kind::Start(start));
        self.lanes.insert(id, lane);
    }
}

impl Lane {
    fn is_live(&self) -> bool {
        self.requests.is_some()
    }

    /// It may still bring what was pushed before.
    fn close(&mut self) {
        self.requests = None;
        self.drain_until = Some(Instant::now() + DRAIN_TIME_MAX);
    }

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
            Err(error) => self.client.note_error(&address, Some(&self.queue), error),
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
        self.client.channels().note_success(address);
        let _ = self.events.send((self.id, LaneEvent::Opened(address.to_owned())));
        let mut responses = answer.into_inner();
        while let Some(response) = responses.message().await? {
            let leased = pace.leased(&response, Instant::now());
            let _ = self.events.send((self.id, LaneEvent::Response(response, leased)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANES: [&str; 3] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
    const HELD_MAX: u64 = 32;

    fn lanes() -> Lanes {
        let client = Client::connect(LANES).unwrap();
        Lanes::new(client, Options::new("q".to_owned()), unbounded_channel().0)
    }

    fn leaders(addresses: &[&str]) -> Leaders {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>();
        Leaders { addresses: addresses.into(), is_complete: true, facts: None }
    }

    /// What the hub does at each of its turns.
    fn turn(lanes: &mut Lanes, now: Instant) {
        lanes.turn(now);
        lanes.top_up(now, HELD_MAX, 0);
    }

    fn granted(lanes: &Lanes) -> Vec<u64> {
        let of = |address: &&str| {
            let mut live = lanes.live().filter(|(_, lane)| lane.target.as_deref() == Some(*address));
            live.next().map_or(0, |(_, lane)| lane.granted)
        };
        LANES.iter().map(of).collect()
    }

    #[tokio::test]
    async fn a_node_that_comes_back_gets_its_share_of_the_credit() {
        let mut lanes = lanes();
        let mut now = Instant::now();
        lanes.aim(&leaders(&LANES[..2]), HELD_MAX);
        turn(&mut lanes, now);
        assert_eq!(granted(&lanes), [16, 16, 0]);
        lanes.aim(&leaders(&LANES), HELD_MAX);
        turn(&mut lanes, now);
        assert_eq!(granted(&lanes), [16, 16, 0], "no message came, so no credit is left");
        for _ in 0..2 {
            now = lanes.next_deadline().expect("it is looked at again");
            turn(&mut lanes, now);
            turn(&mut lanes, now);
        }
        let dealt = granted(&lanes);
        assert!(dealt.iter().all(|granted| *granted > 0), "{dealt:?}");
        assert_eq!(dealt.iter().sum::<u64>(), HELD_MAX);
        assert_eq!(lanes.deal_at, None, "it is not dealt again and again");
    }

    #[tokio::test]
    async fn who_stops_deals_no_more() {
        let mut lanes = lanes();
        let now = Instant::now();
        lanes.aim(&leaders(&LANES[..2]), HELD_MAX);
        turn(&mut lanes, now);
        lanes.aim(&leaders(&LANES), HELD_MAX);
        turn(&mut lanes, now);
        assert!(lanes.deal_at.is_some());
        lanes.stop();
        let drained = lanes.next_deadline().expect("what was pushed may still come");
        assert_eq!(lanes.turn(drained + DRAIN_TIME_MAX).len(), LANES.len());
        assert_eq!(lanes.next_deadline(), None);
    }

    #[tokio::test]
    async fn a_stream_to_any_node_leaves_one_that_leads_nothing() {
        let mut lanes = lanes();
        lanes.aim(&leaders(&LANES), 1);
        let now = Instant::now();
        turn(&mut lanes, now);
        let at = |lanes: &Lanes| lanes.live().map(|(id, lane)| (id, lane.target.clone())).collect::<Vec<_>>();
        let [(id, None)] = at(&lanes)[..] else { panic!("{:?}", at(&lanes)) };
        lanes.opened(id, LANES[0].to_owned());
        lanes.aim(&leaders(&LANES), 1);
        assert_eq!(at(&lanes).len(), 1);
        lanes.aim(&leaders(&LANES[1..]), 1);
        assert!(at(&lanes).is_empty(), "it is closed");
        turn(&mut lanes, now);
        assert_ne!(at(&lanes)[0].0, id, "and opened again");
    }
}
