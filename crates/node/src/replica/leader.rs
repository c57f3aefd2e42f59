//! What a partition's leader does: batches requests into entries, stamps them, answers, wakes waiters, and ends leases.
//!
//! ```text
//!  requests ─▶ batch ─▶ propose when it is due (`due.rs`) ─▶ applied ─▶ answer each, wake waiters
//!                ▲                                                      │
//!                └──── expiry, marks ◀──── timers from next_deadline() ◀┘
//! ```
//!
//! Who waits does not wait for a send to be applied: the grant joins the entry of the send, or the next one (`waking.rs`).
//!
//! One task owns all of it, for one leadership: when the term ends, everything here is dropped and everybody is told. Invariant:
//! nothing in here is needed for correctness after a crash; the state machine knows every lease.

mod configuring;
mod due;
mod leases;
#[cfg(test)]
mod tests;
mod timers;
mod waking;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use leasehold_partition::{
    BatchBuilder, Command, Deadline, Effects, QueueId, Refusal, Reply, Request as PartitionRequest,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::failures::{invalid, propose_failure, receive_refused, stopping};
use super::grace::Grace;
use super::log_clock::{LogClock, wall_ms};
use super::request::{CommandCall, Receive, ReplySender, Request};
use super::waiters::Waiters;
use super::{Shared, refusal};
use crate::failure::Failure;
use crate::give_way::give_way;
use crate::headroom;
use crate::limits::{ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX};
use crate::raft::{Applied, Payload, Proposal, ProposeError, Role};
use configuring::Existence;
use due::{Filled, is_due};
use leasehold_proto::v1::Reason;
use leases::Promise;
use waking::{Coming, name_of};

/// Who waits for the reply of one command of an entry.
enum Pending {
    Command(ReplySender<Reply>),
    /// A command whose answer promises leases.
    Promise(ReplySender<Reply>, Promise),
    Receive(Box<Receive>),
    Expire,
    /// The leader's own: configures, marks, releases of undeliverable grants.
    Own,
}

/// An entry that is being put together. It is stamped when it goes: what comes while it waits must not be taken for older than it is.
struct Batch {
    builder: BatchBuilder,
    pending: Vec<Pending>,
    coming: Coming,
}

/// An entry on its way.
struct InFlight {
    proposal: Proposal,
    stamp_ms: u64,
    pending: Vec<Pending>,
    coming: Coming,
}

/// What is known while the commands of an applied entry are answered.
#[derive(Clone, Copy)]
struct Answering<'a> {
    lag_ms: u64,
    stamp_ms: u64,
    /// Who has no answer yet.
    rest: &'a [Pending],
}

/// One leadership of one partition.
pub struct Leadership {
    shared: Arc<Shared>,
    term: u64,
    clock: LogClock,
    grace: Grace,
    batch: Option<Batch>,
    in_flight: VecDeque<InFlight>,
    waiters: Waiters,
    /// Queues in which something may be deliverable, and somebody may wait for it.
    to_wake: BTreeSet<QueueId>,
    /// The receives and extensions on their way that have a request's name.
    named: HashSet<(u64, u64)>,
    /// The last grant that was answered. What earlier leaders have granted they may have answered, and attempts are told of it again.
    granted_through: u64,
    /// The last grant of which more than one answer may have told.
    reminded_through: u64,
    /// The last entry whose requests were answered.
    completed_index: u64,
    /// The catalogue revision under which each queue's shard is known to be configured.
    configured: HashMap<QueueId, u64>,
    /// The latest catalogue revision under which anybody's configuring of a queue's shard was proposed in this leadership.
    configuring: HashMap<QueueId, u64>,
    /// The version that the partition has, or will have with what is on its way.
    version: u32,
    deadline: Deadline,
    is_expiring: bool,
    stamped_at: Instant,
}

impl Leadership {
    /// Takes office: waits until everything earlier leaders committed is applied, and starts the clock from there. After a refused
    /// entry it does so again in the same term: the clock must not fall behind the stamps of what is still on its way.
    ///
    /// # Errors
    /// When leadership was lost meanwhile.
    pub async fn start(shared: Arc<Shared>, term: u64) -> Result<Self, String> {
        shared.group.catch_up().await?;
        shared.group.apply_appended().await?;
        Ok(Self::from_applied(shared, term))
    }

    /// Begins where what is applied ends.
    fn from_applied(shared: Arc<Shared>, term: u64) -> Self {
        let now = Instant::now();
        let state = shared.machine.read();
        let (log_time_ms, completed_index) = (state.log_time_ms(), state.applied_index());
        let (version, last_grant) = (state.machine_version(), state.last_grant());
        let deadline = state.next_deadline().unwrap_or_default();
        let has_leases = deadline.lease_log_ms.is_some();
        drop(state);
        let longest = u64::from(leasehold_partition::limits::LEASE_MS_MAX);
        let grace = Grace::inherit(if has_leases { log_time_ms + longest } else { 0 });
        tracing::info!(partition = shared.id.0, term, log_time_ms, "leads");
        Self {
            shared,
            term,
            clock: LogClock::start(log_time_ms, now),
            grace,
            batch: None,
            in_flight: VecDeque::new(),
            waiters: Waiters::default(),
            to_wake: BTreeSet::new(),
            named: HashSet::new(),
            granted_through: last_grant,
            reminded_through: last_grant,
            completed_index,
            configured: HashMap::new(),
            configuring: HashMap::new(),
            version,
            deadline,
            is_expiring: false,
            stamped_at: now,
        }
    }

    /// Serves until the term ends.
    pub async fn serve(
        &mut self,
        requests: &mut mpsc::UnboundedReceiver<Request>,
        role: &mut watch::Receiver<Role>,
    ) {
        let reason = loop {
            let timer = self.next_timer();
            let has_room = !self.batch_is_full();
            tokio::select! {
                biased;
                changed = role.changed() => {
                    let now = role.borrow_and_update().clone();
                    if changed.is_err() || now != (Role::Leader { term: self.term }) {
                        break Failure::not_leader(None);
                    }
                }
                applied = next_applied(&mut self.in_flight) => {
                    if let Err(failure) = self.complete(applied) {
                        break failure;
                    }
                }
                request = requests.recv(), if has_room => {
                    let Some(request) = request else { break stopping() };
                    self.take(request);
                }
                () = sleep_until(timer), if has_room => self.on_timer(),
            }
            give_way().await;
            self.take_waiting(requests);
            self.wake_waiters();
            if let Err(failure) = self.propose().await {
                break failure;
            }
        };
        self.resign(&reason);
    }

    /// Takes what was asked meanwhile, up to one entry's worth.
    fn take_waiting(&mut self, requests: &mut mpsc::UnboundedReceiver<Request>) {
        while !self.batch_is_full() {
            match requests.try_recv() {
                Ok(request) => self.take(request),
                Err(_) => return,
            }
        }
    }

    fn batch_is_full(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            batch.builder.len_bytes() >= ENTRY_BYTES_MAX || batch.builder.len() >= ENTRY_COMMANDS_MAX
        })
    }

    fn take(&mut self, request: Request) {
        self.shared.taken(request.size_bytes());
        match request {
            Request::Command { call, reply } => {
                if !reply.is_closed() {
                    match self.ensure_configured(call.queue) {
                        // It would be lost with the shard, or the refusal be remembered for a queue that has its name now.
                        Ok(Existence::Deleted) if call.adds_messages() => {
                            let _ = reply.send(Err(refusal(Refusal::UnknownQueue)));
                        }
                        Ok(_) => match self.outdated(&call) {
                            Some(reason) => drop(reply.send(Ok(Reply::Refused { reason }))),
                            None => self.add_encoded(call, reply),
                        },
                        Err(failure) => drop(reply.send(Err(failure))),
                    }
                }
            }
            Request::Receive(receive) => self.take_receive(receive),
            Request::GiveBack { unclaimed, receipts } => self.take_back(&unclaimed, receipts, &[]),
            Request::Ready { queue, messages_max, reply } => {
                self.waiters.ask(queue, messages_max, reply);
                self.to_wake.insert(queue);
            }
        }
    }

    fn add_receive(&mut self, receive: Receive) {
        let options = &receive.options;
        let command = Command::Receive {
            queue: receive.queue,
            messages_max: options.messages_max,
            bytes_max: options.bytes_max,
            lease_ms: options.lease_ms.or_else(|| self.adaptive_lease_ms(receive.queue)),
            attempt: options.attempt.as_deref(),
            consumer: &options.consumer,
        };
        let request = PartitionRequest { id: options.request, command };
        match self.open_batch().builder.push_request(&request) {
            Ok(()) => self.note_asked(receive),
            Err(error) => drop(receive.reply.send(Err(invalid(&error)))),
        }
    }

    /// The lease of a receive that names none, on a queue whose leases grow.
    fn adaptive_lease_ms(&self, queue: QueueId) -> Option<u32> {
        let ceiling_ms = self.shared.queues.adaptive_lease_ms_max(queue);
        if ceiling_ms == 0 {
            return None;
        }
        let state = self.shared.machine.read();
        let floor_ms = u64::from(state.shard(queue)?.settings.lease_ms);
        let measured = headroom::sum(&state.headroom(queue));
        u32::try_from(headroom::lease_ms(floor_ms, ceiling_ms, &measured)).ok()
    }

    fn add_encoded(&mut self, call: CommandCall, reply: ReplySender<Reply>) {
        let sent = match self.open_batch().builder.push_encoded(&call.command) {
            Ok(sent) => sent,
            Err(error) => return drop(reply.send(Err(invalid(&error)))),
        };
        let pending = match self.note_promise(&call) {
            None => Pending::Command(reply),
            Some(promise) => Pending::Promise(reply, promise),
        };
        self.open_batch().pending.push(pending);
        self.note_sent(call.queue, sent);
    }

    fn add_own(&mut self, command: &Command<'_>) {
        self.add(command, Pending::Own);
    }

    fn add(&mut self, command: &Command<'_>, pending: Pending) {
        let batch = self.open_batch();
        match batch.builder.push(command) {
            Ok(()) => batch.pending.push(pending),
            Err(error) => tracing::error!(%error, ?command, "the leader's own command is refused"),
        }
    }

    fn open_batch(&mut self) -> &mut Batch {
        self.batch.get_or_insert_with(|| Batch {
            builder: BatchBuilder::after(&Payload::PREFIX, 0, 0),
            pending: Vec::new(),
            coming: Coming::default(),
        })
    }

    fn batch_is_due(&self) -> bool {
        let commands = self.batch.as_ref().map_or(0, |batch| batch.builder.len());
        let in_flight = self.in_flight.iter().map(|entry| entry.pending.len());
        is_due(Filled { commands, is_full: self.batch_is_full() }, in_flight)
    }

    async fn propose(&mut self) -> Result<(), Failure> {
        // Its command was refused.
        self.batch.take_if(|batch| batch.builder.is_empty());
        if !self.batch_is_due() {
            return Ok(());
        }
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        let now = Instant::now();
        let stamp_ms = self.clock.stamp(now);
        batch.builder.stamp(stamp_ms, wall_ms());
        self.stamped_at = now;
        let payload =
            Payload::from_prefixed(batch.builder.finish().into()).expect("the batch has the prefix");
        match self.shared.group.propose(payload, self.term).await {
            Ok(proposal) => {
                let Batch { pending, coming, .. } = batch;
                self.in_flight.push_back(InFlight { proposal, stamp_ms, pending, coming });
                Ok(())
            }
            Err(error) => {
                let failure = propose_failure(&error);
                batch.pending.into_iter().for_each(|pending| fail(pending, &failure));
                Err(failure)
            }
        }
    }

    fn complete(&mut self, applied: Result<(u64, Applied), ProposeError>) -> Result<(), Failure> {
        let Some(entry) = self.in_flight.pop_front() else { return Ok(()) };
        let applied = match applied {
            Ok((index, Applied::Partition(applied))) => {
                self.completed_index = index;
                applied
            }
            Ok((_, Applied::Nothing | Applied::Catalogue(_))) => {
                unreachable!("a partition's entry has a partition's replies")
            }
            Err(error) => {
                let failure = propose_failure(&error);
                entry.pending.into_iter().for_each(|pending| fail(pending, &failure));
                return Err(failure);
            }
        };
        assert_eq!(applied.replies.len(), entry.pending.len(), "one reply for each command");
        let lag_ms = self.clock.now_ms(Instant::now()).saturating_sub(entry.stamp_ms);
        let mut rest = entry.pending.into_iter();
        for reply in applied.replies {
            let Some(pending) = rest.next() else { break };
            self.answer(
                pending,
                reply,
                Answering { lag_ms, stamp_ms: entry.stamp_ms, rest: rest.as_slice() },
            );
        }
        self.react(&applied.effects);
        Ok(())
    }

    fn answer(&mut self, pending: Pending, reply: Reply, entry: Answering<'_>) {
        if let Pending::Receive(receive) = &pending
            && let Some(id) = receive.options.request
        {
            self.named.remove(&name_of(id));
        }
        match (pending, reply) {
            (Pending::Receive(receive), Reply::Received { deliveries }) => {
                // It may have left something, since it was bounded, for one who was not woken because of it.
                self.to_wake.insert(receive.queue);
                self.deliver(*receive, deliveries, &entry);
            }
            (Pending::Receive(receive), Reply::OverLimit) if receive.may_wait() => {
                self.waiters.park(*receive)
            }
            (Pending::Receive(receive), reply) => drop(receive.reply.send(Err(receive_refused(&reply)))),
            (Pending::Command(sender), reply) => drop(sender.send(Ok(reply))),
            (Pending::Promise(sender, promise), reply) => {
                let answer = self.promise(&promise, reply, entry);
                let _ = sender.send(answer);
            }
            (Pending::Expire, Reply::Expired { .. }) => self.is_expiring = false,
            (Pending::Expire | Pending::Own, _) => {}
        }
    }

    fn react(&mut self, effects: &Effects) {
        self.to_wake.extend(&effects.ready);
        if !effects.outbox.is_empty() {
            self.shared.outbox.notify_one();
        }
        self.deadline = self.shared.machine.read().next_deadline().unwrap_or_default();
        if let Some(first) = self.deadline.lease_log_ms {
            self.grace.ended_through(first);
        }
    }

    /// The term is over: whoever waits learns it, and entries in flight are of unknown outcome.
    fn resign(&mut self, reason: &Failure) {
        tracing::info!(partition = self.shared.id.0, term = self.term, "no longer leads");
        self.waiters.fail_all(reason);
        if let Some(batch) = self.batch.take() {
            batch.pending.into_iter().for_each(|pending| fail(pending, reason));
        }
        let unknown = Failure::unknown(Reason::NoLeader, "leadership was lost before the outcome was known");
        for entry in self.in_flight.drain(..) {
            entry.pending.into_iter().for_each(|pending| fail(pending, &unknown));
        }
    }
}

async fn next_applied(in_flight: &mut VecDeque<InFlight>) -> Result<(u64, Applied), ProposeError> {
    match in_flight.front_mut() {
        Some(entry) => entry.proposal.applied().await,
        None => std::future::pending().await,
    }
}

fn fail(pending: Pending, failure: &Failure) {
    match pending {
        Pending::Command(reply) | Pending::Promise(reply, _) => drop(reply.send(Err(failure.clone()))),
        Pending::Receive(receive) => drop(receive.reply.send(Err(failure.clone()))),
        Pending::Expire | Pending::Own => {}
    }
}
