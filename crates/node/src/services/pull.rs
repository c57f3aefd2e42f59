//! Streaming delivery: the server leases messages against the credit that the consumer gave and pushes them; settlements travel
//! on the same stream.
//!
//! ```text
//!   credit ─▶ permits ─▶ one pump a shard: wait until it is ready, take permits, receive, push
//!   settle ─▶ a task each ─▶ answer
//! ```
//!
//! A consumer that ends its half of the stream in good order gets no more leases, and the answers to what it has asked. Invariant: what
//! a pump has in hand is delivered or given back, and what waits for the network too (`pushed.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leasehold_catalogue::PartitionId;
use leasehold_partition::{Command, Isolation};
use leasehold_proto::peer;
use leasehold_proto::v1::{Delivery, PullRequest, PullSettle, PullSettled, PullStart, pull_request};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tonic::{Status, Streaming};

use super::pushed::{Pushed, Unseen};
use super::settle::{Settle, settle};
use super::{lookup, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{LEADER_WAIT_MS_MAX, RECEIVE_MESSAGES_MAX, RECEIVE_WAIT_MS_MAX};
use crate::queue_info::QueueInfo;
use crate::router::Repeat;

const BATCH_MAX: u32 = 256;
/// More credit than this is of no use.
const CREDIT_MAX: usize = 100_000;
/// Settlements of one stream that are under way; the stream is not read further until one is done.
const SETTLES_MAX: usize = 64;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked which shards this node leads, and whether the queue is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the answers to settlements may take when the consumer asks for nothing more. They look for a leader for half of it.
const END_PATIENCE: Duration = Duration::from_millis(2 * LEADER_WAIT_MS_MAX);
/// How long a pump that is to stop waits for what it has asked for: leases may be on their way to it already. Those that are granted
/// after it is gone are given back by the leader.
const LAST_BATCH_PATIENCE: Duration = Duration::from_millis(50);

type Answers = mpsc::Sender<Result<Pushed, Status>>;

/// Serves a stream until the client ends it.
pub async fn serve(core: Arc<Core>, mut requests: Streaming<PullRequest>, answers: Answers) {
    if let Err(failure) = run(core, &mut requests, &answers).await {
        // A client that has hung up needs no reason.
        let _ = answers.send(Err(failure.into())).await;
    }
}

async fn run(
    core: Arc<Core>,
    requests: &mut Streaming<PullRequest>,
    answers: &Answers,
) -> Result<(), Failure> {
    let first = requests.message().await.ok().flatten().and_then(|first| first.kind);
    let Some(pull_request::Kind::Start(start)) = first else {
        return Err(validate::invalid("a pull begins with `start`"));
    };
    let pull = Arc::new(Pull::new(core, start, answers.clone()).await?);
    let ended = serve_requests(&pull, requests, answers).await;
    pull.tell_lost();
    ended
}

async fn serve_requests(
    pull: &Arc<Pull>,
    requests: &mut Streaming<PullRequest>,
    answers: &Answers,
) -> Result<(), Failure> {
    let under_way = Arc::new(Semaphore::new(SETTLES_MAX));
    // Pumps and settlements end with the stream.
    let mut tasks = JoinSet::new();
    let (run, stop) = watch::channel(());
    tasks.spawn(run_pumps(pull.clone(), Stop(stop)));
    let mut gone = std::pin::pin!(pull.clone().gone());
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = answers.closed() => return Ok(()),
            () = &mut gone => return Ok(()),
        };
        let Ok(request) = request else { return Ok(()) };
        let Some(request) = request else { break };
        match request.kind {
            Some(pull_request::Kind::Credit(credit)) => pull.give(credit.messages),
            Some(pull_request::Kind::Settle(settle)) => {
                let permit = tokio::select! {
                    permit = under_way.clone().acquire_owned() => permit,
                    () = answers.closed() => return Ok(()),
                };
                let settling = pull.clone().settle(settle);
                tasks.spawn(async move {
                    settling.await;
                    drop(permit);
                });
            }
            Some(pull_request::Kind::Start(_)) => return Err(validate::invalid("a pull has one `start`")),
            None => {
                return Err(validate::invalid(
                    "an empty request on a pull: is this node older than its client?",
                ));
            }
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(run);
    let all = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        _in_time = timeout(END_PATIENCE, all) => {}
        () = answers.closed() => {}
    }
    Ok(())
}

/// Tells a pump to stop, when its other half is dropped.
struct Stop(watch::Receiver<()>);

impl Stop {
    fn is_told(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Completes when it is time to stop. Cancel safe.
    async fn told(&mut self) {
        while self.0.changed().await.is_ok() {}
    }

    /// Completes so long after it is time to stop. Cancel safe.
    async fn told_for(&mut self, patience: Duration) {
        self.told().await;
        sleep(patience).await;
    }
}

struct Pull {
    core: Arc<Core>,
    queue: QueueInfo,
    lease_ms: Option<u32>,
    consumer: Vec<u8>,
    batch_max: u32,
    local_shards_only: bool,
    credit: Semaphore,
    answers: Answers,
    /// When the stream was taken up.
    began: Instant,
}

impl Pull {
    async fn new(core: Arc<Core>, start: PullStart, answers: Answers) -> Result<Self, Failure> {
        let queue = lookup::queue(&core, &start.queue).await?;
        validate::consumer(&start.consumer)?;
        let pull = Self {
            core,
            queue,
            lease_ms: start.lease_ms.map(validate::lease).transpose()?,
            consumer: start.consumer.into_bytes(),
            batch_max: if start.batch_max == 0 {
                BATCH_MAX
            } else {
                start.batch_max.min(RECEIVE_MESSAGES_MAX)
            },
            local_shards_only: start.local_shards_only,
            credit: Semaphore::new(0),
            answers,
            began: Instant::now(),
        };
        pull.give(start.credit.unwrap_or_default().messages);
        Ok(pull)
    }

    fn give(&self, messages: u64) {
        let room = CREDIT_MAX.saturating_sub(self.credit.available_permits());
        self.credit.add_permits(room.min(usize::try_from(messages).unwrap_or(usize::MAX)));
    }

    /// The shards to deliver from at this moment.
    fn shards(&self) -> Vec<PartitionId> {
        let here = self.core.view.here();
        let is_ours =
            |shard: &PartitionId| !self.local_shards_only || self.core.router.leader_of(*shard) == Some(here);
        self.queue.shards().filter(is_ours).collect()
    }

    /// Waits until the queue is deleted, even if another has its name then: the client asks by the name again, and learns what is there.
    async fn gone(self: Arc<Self>) {
        let mut look = interval(LOOK_INTERVAL);
        while self.core.view.queue_by_id(self.queue.id()).is_some() {
            look.tick().await;
        }
    }

    async fn settle(self: Arc<Self>, request: PullSettle) {
        let PullSettle { tag, acks, extends, releases, request, rejects } = request;
        let parts = [
            Settle::Ack(&acks),
            Settle::Extend(&extends),
            Settle::Release(&releases),
            Settle::Reject(&rejects),
        ];
        let counts = parts.each_ref().map(Settle::len);
        let mut outcomes = Vec::with_capacity(counts.iter().sum());
        let mut error = None;
        for (part, count) in parts.into_iter().zip(counts) {
            if count == 0 || error.is_some() {
                continue;
            }
            // Each kind is a command of its own: they must not share a name.
            let name = request.as_ref().filter(|_| counts.iter().filter(|count| **count > 0).count() == 1);
            match settle(&self.core, self.queue.name(), part, name).await {
                Ok(settled) => outcomes.extend(settled),
                Err(failure) => error = Some(failure.to_call_error()),
            }
        }
        let settled = PullSettled { tag, outcomes, error };
        // A client that has hung up asks again elsewhere.
        let _ = self.answers.send(Ok(Pushed::Settled(settled))).await;
    }

    /// Delivers from one shard until it is told to stop, which it does between two batches.
    async fn pump(self: Arc<Self>, shard: PartitionId, mut stop: Stop) {
        let mut is_drained = false;
        while !stop.is_told() {
            // With one shard nobody else needs the credit: the receive itself waits.
            if is_drained && self.queue.shards().len() > 1 {
                let ready = tokio::select! {
                    ready = self.ready(shard) => ready,
                    () = stop.told() => return,
                };
                if ready.is_err() {
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
            match self.deliver_some(shard, &mut stop).await {
                Ok((asked, given)) => is_drained = given < asked,
                Err(failure) => {
                    tracing::debug!(shard = shard.0, %failure, "a pull waits");
                    is_drained = true;
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Waits until there is credit, and something to deliver.
    async fn ready(&self, shard: PartitionId) -> Result<(), Failure> {
        let messages_max = self.credit_soon().await;
        let ready = peer::Ready { queue: self.queue.id().0, wait_ms: RECEIVE_WAIT_MS_MAX, messages_max };
        self.core.router.ask(shard, ready).await
    }

    /// Waits until there is credit; returns how many messages a batch may have with it.
    async fn credit_soon(&self) -> u32 {
        // It is never closed.
        drop(self.credit.acquire().await);
        (self.credit.available_permits() as u32).clamp(1, self.batch_max)
    }

    /// Delivers one batch; returns how much credit it had and how many messages it found.
    async fn deliver_some(&self, shard: PartitionId, stop: &mut Stop) -> Result<(usize, usize), Failure> {
        let first = tokio::select! {
            first = self.credit.acquire() => first,
            () = stop.told() => return Ok((1, 0)),
        };
        let Ok(first) = first else { return Ok((1, 0)) };
        let wanted = self.credit.available_permits().min(self.batch_max as usize - 1);
        let more = self.credit.try_acquire_many(wanted as u32).ok();
        let asked = 1 + more.as_ref().map_or(0, |_| wanted);
        let receive = peer::Receive {
            queue: self.queue.id().0,
            messages_max: asked as u32,
            lease_ms: self.lease_ms,
            consumer: self.consumer.clone().into(),
            wait_ms: if self.queue.shards().len() > 1 { 0 } else { RECEIVE_WAIT_MS_MAX },
            ..peer::Receive::default()
        };
        let asked_at = self.began.elapsed();
        let granted = tokio::select! {
            biased;
            granted = self.core.router.ask(shard, receive) => granted?,
            () = stop.told_for(LAST_BATCH_PATIENCE) => return Ok((asked, 0)),
        };
        let leased = asked_at + Duration::from_millis(granted.waited_ms);
        let deliveries = granted.deliveries;
        let given = deliveries.len();
        // What was not used is credit again.
        first.forget();
        more.into_iter().for_each(tokio::sync::SemaphorePermit::forget);
        self.credit.add_permits(asked.saturating_sub(given));
        if given > 0 {
            self.push(deliveries, leased).await;
        }
        Ok((asked, given))
    }

    /// Tells the shards that the consumer seems to be gone: the stream has ended. One that has only lost its connection is heard of
    /// again before its leases end.
    fn tell_lost(&self) {
        let isolates = self
            .core
            .view
            .queue_by_id(self.queue.id())
            .is_some_and(|queue| queue.isolation() == Isolation::On);
        if !isolates || self.consumer.is_empty() {
            return;
        }
        for shard in self.queue.shards() {
            let (core, queue, consumer) = (self.core.clone(), self.queue.id(), self.consumer.clone());
            tokio::spawn(async move {
                let call = lookup::call(queue, &Command::Lost { queue, consumer: &consumer }.into());
                if let Err(failure) = core.router.command(shard, call, Repeat::Safe).await {
                    tracing::debug!(%failure, "that a consumer is gone stays unknown: its leases will be called timed out");
                }
            });
        }
    }

    /// Puts a batch on its way to the consumer; it is given back when the stream ends before the network has taken it.
    async fn push(&self, deliveries: Vec<Delivery>, leased: Duration) {
        let unseen = Unseen::new(self.core.clone(), self.queue.clone(), deliveries);
        // When nobody takes it any more, it is in what the refusal holds.
        drop(self.answers.send(Ok(Pushed::Deliveries(unseen, leased))).await);
    }
}

/// Keeps a pump at work on every shard that this stream delivers from, until it is told to stop and they have.
async fn run_pumps(pull: Arc<Pull>, mut stop: Stop) {
    let mut pumps = JoinSet::new();
    let mut running: BTreeMap<PartitionId, watch::Sender<()>> = BTreeMap::new();
    let mut look = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.told() => break,
        }
        let shards = pull.shards();
        running.retain(|shard, _| shards.contains(shard));
        for shard in shards {
            running.entry(shard).or_insert_with(|| {
                let (run, stop) = watch::channel(());
                pumps.spawn(pull.clone().pump(shard, Stop(stop)));
                run
            });
        }
        while pumps.try_join_next().is_some() {}
    }
    drop(running);
    while pumps.join_next().await.is_some() {}
}
