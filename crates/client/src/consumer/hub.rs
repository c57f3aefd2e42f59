//! The task of a consumer: between the streams, the deliveries in hand, and their leases.
//!
//! ```text
//!            Lanes ──▶ deliveries ──▶ Leases hold them ──▶ Consumer ──▶ handler
//!              ▲                            │ when due                     │
//!              └── Settles ◀── extensions ──┘◀── begin, ack, release, … ───┘
//! ```

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use leasehold_proto::v1::pull_response::Kind;
use leasehold_proto::v1::{self, Outcome, PullResponse, Reason};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::delivery::{Command, Delivery, Settle};
use super::groups::GroupGrants;
use super::lanes::{LaneEvent, Lanes};
use super::leases::{AskedBy, Extension, Leases, Reaches, WAITING_LEASE_MAX};
use super::settles::{SettleItem, Settles};
use crate::routes::Leaders;
use crate::unanswered::Finished;
use crate::{Client, Error, Message};

/// How often to look where the queue is led: a leader that moved away says nothing on a stream for its own shards.
const AIM_INTERVAL: Duration = Duration::from_secs(1);
/// The same while some shard has no known leader, or a stream was lost.
const AIM_AGAIN: Duration = Duration::from_millis(200);
/// How soon a message that waits is to be begun.
const WAITING_TIME: Duration = Duration::from_secs(1);
/// Commands and events taken before what is due is done.
const TAKEN_MAX: usize = 1_024;

pub(super) async fn run(
    client: Client,
    options: Options,
    commands: WeakUnboundedSender<Command>,
    mut inbox: UnboundedReceiver<Command>,
    outbox: UnboundedSender<Outgoing>,
    lost: CancellationToken,
) {
    let (tell, mut events) = unbounded_channel();
    let mut hub = Hub {
        lanes: Lanes::new(client.clone(), options.clone(), tell),
        leases: Leases::new(options.keep_for, lost),
        settles: Settles::new(),
        aiming: Aiming::new(client.clone(), options.queue.clone()),
        queue: options.queue.as_str().into(),
        is_fifo: true,
        lost_at: None,
        options,
        client,
        commands,
        outbox: Some(outbox),
        closes: Vec::new(),
    };
    hub.set_reaches(None);
    let mut is_let_go = false;
    loop {
        hub.turn();
        if is_let_go && hub.is_done() {
            break;
        }
        let wake = hub.next_deadline();
        tokio::select! {
            command = inbox.recv(), if !is_let_go => match command {
                Some(command) => hub.take_commands(command, &mut inbox),
                None => {
                    is_let_go = true;
                    hub.stop();
                }
            },
            Some(event) = events.recv() => hub.take_events(event, &mut events),
            leaders = hub.aiming.next() => hub.on_leaders(&leaders),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

/// What a consumer gets: what came together, or why nothing more comes.
pub(super) type Outgoing = Result<Vec<Delivery>, Error>;

struct Hub {
    client: Client,
    options: Options,
    queue: Arc<str>,
    /// True until it is known, also after a stream was lost: the queue may have been made again, as another kind.
    is_fifo: bool,
    /// When a stream was lost last. What was asked before may be of another queue.
    lost_at: Option<std::time::Instant>,
    lanes: Lanes,
    leases: Leases,
    settles: Settles,
    aiming: Aiming,
    /// For new deliveries; weak, so that the hub ends with the last of them.
    commands: WeakUnboundedSender<Command>,
    /// `None` when stopped.
    outbox: Option<UnboundedSender<Outgoing>>,
    closes: Vec<oneshot::Sender<()>>,
}

impl Hub {
    /// Does what is due.
    fn turn(&mut self) {
        let now = Instant::now();
        let over = self.settles.expire(now);
        self.finish(over);
        self.lose_stuck_lanes(now);
        for due in self.leases.take_due(now) {
            self.settle(due.key, Settle::Extend(due.reach), None);
        }
        for key in self.leases.take_unwanted() {
            self.give_back(key);
        }
        self.settles.start_batches(now, self.client.settings());
        if self.outbox.is_none() && !(self.settles.is_empty() && self.leases.len() == 0) {
            self.lanes.aim_at_any();
        }
        let silent = Error::timed_out("the stream was closed before an answer came");
        for lane in self.lanes.turn(now) {
            let lost = self.settles.lose(lane, &silent, self.client.settings());
            self.finish(lost);
        }
        self.send_settles(now);
        if self.outbox.is_some() {
            let waiting_max = waiting_max(&self.options, self.leases.timings().median());
            self.lanes.top_up(now, self.options.concurrency + waiting_max, self.leases.len());
        } else if self.is_done() {
            for done in self.closes.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn lose_stuck_lanes(&mut self, now: Instant) {
        for lane in self.lanes.ids() {
            if self.settles.is_stuck(lane, now) {
                self.on_lost(lane, Error::timed_out("the node does not answer"));
            }
        }
    }

    fn send_settles(&mut self, now: Instant) {
        if !self.settles.has_due(now) || self.lanes.settle_lane(0).is_none() {
            return;
        }
        let lanes = &self.lanes;
        for (lane, settle) in self.settles.send_due(now, |home| lanes.settle_lane(home).unwrap_or(home)) {
            lanes.send(lane, settle);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        // Without a lane, requests that are due wait for one.
        let may_settle = self.lanes.settle_lane(0).is_some();
        let settles = self.settles.next_deadline().filter(|_| may_settle);
        let deadlines =
            [self.leases.next_deadline(), settles, self.lanes.next_deadline(), self.overdue(may_settle)];
        deadlines.into_iter().flatten().min()
    }

    /// A look from time to time at requests that wait without a lane.
    fn overdue(&self, may_settle: bool) -> Option<Instant> {
        (!may_settle && !self.settles.is_empty()).then(|| Instant::now() + AIM_AGAIN)
    }

    /// Everything is settled and answered, and nothing more comes.
    fn is_done(&self) -> bool {
        self.leases.len() == 0 && self.settles.is_empty() && !self.lanes.is_draining()
    }

    fn take_commands(&mut self, first: Command, inbox: &mut UnboundedReceiver<Command>) {
        let mut next = Some(first);
        for left in (0..TAKEN_MAX).rev() {
            let Some(command) = next.take() else { break };
            match command {
                Command::Begin(key) => self.begin(key),
                Command::Settle { key, how, reply } => self.settle(key, how, reply),
                Command::Concurrency(messages) => self.options.concurrency = messages,
                Command::Stop => self.stop(),
                Command::Close(done) => self.closes.push(done),
            }
            // What is taken has to be done: nothing is taken by the last turn.
            next = (left > 0).then(|| inbox.try_recv().ok()).flatten();
        }
    }

    fn settle(&mut self, key: u64, how: Settle, reply: Option<oneshot::Sender<Result<(), Error>>>) {
        if self.leases.is_given_back(key) {
            return self.settle_given_back(key, &how, reply);
        }
        let Some((receipt, home, group_grant)) = self.leases.receipt(key) else { return };
        match how {
            Settle::Extend(reach) if reply.is_some() => self.leases.holder_asks(key, reach),
            Settle::Extend(_) => {}
            _ => self.leases.forget(key),
        }
        let asked = Instant::now();
        self.settles.push(SettleItem { key, receipt, how, reply, home, group_grant, asked });
    }

    /// Nobody began on it. Its delivery is in this process still, and counts until it is dropped.
    fn give_back(&mut self, key: u64) {
        let Some((receipt, home, group_grant)) = self.leases.receipt(key) else { return };
        let (how, asked) = (Settle::GiveBack, Instant::now());
        self.settles.push(SettleItem { key, receipt, how, reply: None, home, group_grant, asked });
    }

    /// The delivery is settled, or dropped, of what went back before.
    fn settle_given_back(
        &mut self,
        key: u64,
        how: &Settle,
        reply: Option<oneshot::Sender<Result<(), Error>>>,
    ) {
        if !matches!(how, Settle::Extend(_)) {
            self.leases.forget(key);
        }
        if let Some(reply) = reply {
            let stale = Error::not_done(Reason::ReceiptStale, "it went back before anybody began on it");
            drop(reply.send(Err(stale)));
        }
    }

    fn begin(&mut self, key: u64) {
        if let Some(due) = self.leases.begin(key, Instant::now()) {
            self.settle(due.key, Settle::Extend(due.reach), None);
        }
    }

    fn stop(&mut self) {
        if self.outbox.take().is_some() {
            self.aiming.stop();
            self.lanes.stop();
        }
    }

    fn take_events(&mut self, first: (u64, LaneEvent), events: &mut UnboundedReceiver<(u64, LaneEvent)>) {
        let mut next = Some(first);
        for left in (0..TAKEN_MAX).rev() {
            let Some((lane, event)) = next.take() else { break };
            match event {
                LaneEvent::Opened(address) => self.lanes.opened(lane, address),
                LaneEvent::Response(response, leased) => self.on_response(lane, response, leased),
                LaneEvent::Lost(error) => self.on_lost(lane, error),
            }
            next = (left > 0).then(|| events.try_recv().ok()).flatten();
        }
    }

    fn on_response(&mut self, lane: u64, response: PullResponse, leased: Instant) {
        match response.kind {
            Some(Kind::Deliveries(batch)) => {
                self.lanes.used(lane, batch.deliveries.len());
                self.deliver(lane, batch.deliveries, leased);
            }
            Some(Kind::Settled(settled)) => {
                self.lanes.used(lane, 0);
                let finished = self.settles.answer(settled, self.client.settings());
                self.finish(finished);
            }
            None => {}
        }
    }

    /// Hands messages out; when nobody takes them, they are dropped at once and so released.
    fn deliver(&mut self, lane: u64, batch: Vec<v1::Delivery>, leased: Instant) {
        let messages = batch.into_iter().map(|wire| Message::from_wire(wire, leased));
        let (Some(outbox), Some(hub)) = (&self.outbox, self.commands.upgrade()) else {
            for message in messages {
                let (receipt, how) = (message.receipt, Settle::GiveBack);
                self.settles.push(SettleItem {
                    key: 0,
                    receipt,
                    how,
                    reply: None,
                    home: lane,
                    group_grant: None,
                    asked: Instant::now(),
                });
            }
            return;
        };
        let mut group_grants = GroupGrants::default();
        let held = messages.map(|message| {
            let group_grant = self.is_fifo.then(|| group_grants.of(&message)).flatten();
            let (key, lease) = self.leases.hold(&message, lane, group_grant);
            Delivery::new(message, key, Arc::clone(&self.queue), self.is_fifo, lease, hub.clone())
        });
        let _ = outbox.send(Ok(held.collect()));
    }

    fn on_lost(&mut self, lane: u64, error: Error) {
        let unknown = Error { outcome: Outcome::Unknown, ..error.clone() };
        let lost = self.settles.lose(lane, &unknown, self.client.settings());
        self.finish(lost);
        if !self.lanes.lost(lane, &error, Instant::now()) {
            return;
        }
        (self.is_fifo, self.lost_at) = (true, Some(std::time::Instant::now()));
        self.client.spoil_routes(&self.queue);
        self.aiming.soon();
        if !error.is_transient()
            && let Some(outbox) = &self.outbox
        {
            let _ = outbox.send(Err(error));
            self.stop();
        }
    }

    fn set_reaches(&mut self, of_queue: Option<Duration>) {
        let reaches = reaches(&self.options, of_queue);
        self.leases.set_reaches(reaches);
        self.lanes.set_lease(reaches.waiting);
    }

    fn on_leaders(&mut self, leaders: &Leaders) {
        if let Some(facts) = leaders.facts {
            self.set_reaches(facts.lease);
            if self.lost_at.is_none_or(|lost_at| facts.asked > lost_at) {
                self.is_fifo = facts.is_fifo;
            } else {
                self.aiming.soon();
            }
        }
        if self.outbox.is_some() {
            self.lanes.aim(leaders, self.options.concurrency);
        }
    }

    fn finish(&mut self, finished: Finished<SettleItem, ()>) {
        for (item, result) in finished {
            // It may come again.
            if let (Settle::Ack | Settle::Reject(..), Err(_), Some(group_grant)) =
                (&item.how, &result, &item.group_grant)
            {
                group_grant.give_up();
            }
            match (&item.how, &result) {
                (Settle::Extend(reach), _) => {
                    let by = if item.reply.is_some() { AskedBy::Holder } else { AskedBy::Hub };
                    let asked = Extension { by, at: item.asked, reach: *reach };
                    self.leases.extended(item.key, asked, &result);
                }
                (Settle::Reject(_, delay), Err(error)) if error.reason == Reason::NoDeadLetterQueue => {
                    let (receipt, how) = (item.receipt, Settle::Release(*delay));
                    self.settles.push(SettleItem {
                        key: 0,
                        receipt,
                        how,
                        reply: None,
                        home: item.home,
                        group_grant: None,
                        asked: Instant::now(),
                    });
                }
                _ => {}
            }
            match item.reply {
                Some(reply) => drop(reply.send(result)),
                None => {
                    if let Err(error) = result {
                        tracing::debug!(queue = &*self.queue, how = ?item.how, %error, "a lease was not settled");
                    }
                }
            }
        }
    }
}

/// How far extensions reach on a queue with that lease. Leases that are never extended begin as long as they are to be.
fn reaches(options: &Options, of_queue: Option<Duration>) -> Reaches {
    let processing = options.lease.or(of_queue);
    if options.keep_for.is_zero() {
        return Reaches { waiting: options.lease, processing };
    }
    let waiting = processing.map_or(WAITING_LEASE_MAX, |lease| lease.min(WAITING_LEASE_MAX));
    Reaches { waiting: Some(waiting), processing }
}

/// How many messages may wait: what can begin within a second or so, so that none waits here while others have nothing to do.
fn waiting_max(options: &Options, median: Option<Duration>) -> u64 {
    let soon = |median: Duration| {
        (WAITING_TIME.as_secs_f64() / median.as_secs_f64() * options.concurrency as f64) as u64
    };
    median.map_or(options.buffer(), |median| soon(median).clamp(1, options.buffer()))
}

/// Looks for the leaders now and then.
struct Aiming {
    client: Client,
    queue: String,
    /// The time of the next look; `None` when stopped.
    next: Option<Instant>,
    look: Option<BoxFuture<'static, Leaders>>,
}

impl Aiming {
    fn new(client: Client, queue: String) -> Self {
        Self { client, queue, next: Some(Instant::now()), look: None }
    }

    fn soon(&mut self) {
        let soon = Instant::now() + AIM_AGAIN;
        self.next = self.next.map(|next| next.min(soon));
    }

    fn stop(&mut self) {
        (self.next, self.look) = (None, None);
    }

    /// The leaders, each time they were looked for. Cancel safe.
    async fn next(&mut self) -> Leaders {
        let Some(next) = self.next else { return pending().await };
        if self.look.is_none() {
            sleep_until(next).await;
        }
        let (client, queue) = (&self.client, &self.queue);
        let look = self.look.get_or_insert_with(|| {
            let (client, queue) = (client.clone(), queue.clone());
            Box::pin(async move { client.leaders(&queue, AIM_INTERVAL).await })
        });
        let leaders = look.await;
        self.look = None;
        let is_settled = leaders.is_complete || leaders.addresses.is_empty();
        let pause = if is_settled { AIM_INTERVAL } else { AIM_AGAIN };
        self.next = Some(Instant::now() + pause);
        leaders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_of_messages_that_wait_are_short_unless_they_are_never_extended() {
        let seconds = Duration::from_secs;
        let mut options = Options::new("q".to_owned());
        let both = |waiting, processing| Reaches { waiting, processing };
        assert_eq!(reaches(&options, Some(seconds(30))), both(Some(seconds(5)), Some(seconds(30))));
        assert_eq!(reaches(&options, Some(seconds(2))), both(Some(seconds(2)), Some(seconds(2))));
        assert_eq!(reaches(&options, None), both(Some(seconds(5)), None));
        options.lease = Some(seconds(60));
        assert_eq!(reaches(&options, Some(seconds(30))), both(Some(seconds(5)), Some(seconds(60))));
        options.keep_for = Duration::ZERO;
        assert_eq!(reaches(&options, Some(seconds(30))), both(Some(seconds(60)), Some(seconds(60))));
    }

    #[test]
    fn the_longer_handling_takes_the_fewer_messages_wait() {
        let options = Options { concurrency: 64, ..Options::new("q".to_owned()) };
        assert_eq!(waiting_max(&options, None), 64);
        assert_eq!(waiting_max(&options, Some(Duration::from_millis(1))), 64);
        assert_eq!(waiting_max(&options, Some(Duration::from_secs(4))), 16);
        assert_eq!(waiting_max(&options, Some(Duration::from_secs(3_600))), 1);
    }
}
