//! The task of a producer: gathers messages into batches and follows each to its answers.

use std::sync::Arc;

use leasehold_proto::v1::{self, PublishRequest, PublishResponse, Reason, SendRequest};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::DropGuard;

use super::stream::{Event, Stream};
use super::{CLOSED, Command, Options, Outgoing};
use crate::session::{REQUESTS_MAX, Sessions, WINDOW_MAX};
use crate::unanswered::{Finished, Unanswered};
use crate::{Client, Error, ItemResults, Sent};

/// Batches under way to a queue without an order, unless told.
const STANDARD_IN_FLIGHT_MAX: usize = 8;

/// `_ended` tells everybody, when it is dropped, that every message has its result.
pub(super) async fn run(
    client: Client,
    options: Options,
    mut inbox: UnboundedReceiver<Command>,
    _ended: DropGuard,
) {
    let mut batcher = Batcher::new(client, options);
    let mut is_closed = false;
    loop {
        batcher.turn();
        if is_closed && batcher.is_idle() {
            break;
        }
        let wake = batcher.next_deadline();
        tokio::select! {
            command = inbox.recv(), if !is_closed && batcher.has_room() => match command {
                Some(command) => batcher.take(command, &mut inbox),
                None => is_closed = true,
            },
            event = batcher.stream.next() => batcher.on_event(event),
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
        batcher.is_closing |= is_closed;
    }
}

struct Batcher {
    client: Client,
    options: Options,
    sessions: Arc<Sessions>,
    gathering: Gathering,
    next_tag: u64,
    unanswered: Unanswered<SendRequest, Waiter>,
    stream: Stream,
    /// Each waits until every tag below its own is answered.
    flushes: Vec<(u64, oneshot::Sender<()>)>,
    is_closing: bool,
}

/// The batch that is not yet under way.
#[derive(Default)]
struct Gathering {
    messages: Vec<v1::NewMessage>,
    waiters: Vec<Waiter>,
    bytes: usize,
    since: Option<Instant>,
}

/// Who waits for the result of a message.
#[derive(Debug)]
struct Waiter {
    reply: oneshot::Sender<Result<Sent, Error>>,
    _permit: OwnedSemaphorePermit,
}

impl Batcher {
    fn new(client: Client, options: Options) -> Self {
        Self {
            stream: Stream::new(client.clone(), options.queue.clone()),
            client,
            options,
            sessions: Sessions::new(WINDOW_MAX, REQUESTS_MAX),
            gathering: Gathering::default(),
            next_tag: 1,
            unanswered: Unanswered::new(),
            flushes: Vec::new(),
            is_closing: false,
        }
    }

    /// Does what is due.
    fn turn(&mut self) {
        let now = Instant::now();
        let over = self.unanswered.expire(now);
        finish(over);
        if self.unanswered.is_stuck(self.stream.id(), now) {
            let event = self.stream.fail("the node does not answer");
            self.on_event(event);
        }
        while self.may_start(now) && self.start() {}
        self.send_due(now);
        let first = self.unanswered.first_tag().unwrap_or(self.next_tag);
        for (_, done) in self.flushes.extract_if(.., |(tag, _)| *tag <= first) {
            let _ = done.send(());
        }
    }

    fn send_due(&mut self, now: Instant) {
        if !self.unanswered.has_due(now) {
            return;
        }
        let Some(stream) = self.stream.ready() else { return };
        for (tag, _, send) in self.unanswered.send_due(now, |_| stream) {
            self.stream.send(PublishRequest { tag, send: Some(send.clone()) });
        }
    }

    /// A batch goes when it is full, when none is under way, or when it has waited long enough.
    fn may_start(&self, now: Instant) -> bool {
        let Some(since) = self.gathering.since else { return false };
        let is_wanted = self.unanswered.is_empty()
            || self.is_full()
            || self.is_closing
            || !self.flushes.is_empty()
            || since + self.options.linger <= now;
        is_wanted && self.unanswered.len() < self.in_flight_max()
    }

    /// While it is not known whether order matters, it does.
    fn in_flight_max(&self) -> usize {
        let by_kind = if self.stream.is_to_standard() { STANDARD_IN_FLIGHT_MAX } else { 1 };
        self.options.batches_in_flight_max.unwrap_or(by_kind)
    }

    /// False when too many requests are under way.
    fn start(&mut self) -> bool {
        let Some(request) = self.sessions.try_begin() else { return false };
        let Gathering { messages, waiters, .. } = std::mem::take(&mut self.gathering);
        let queue = self.options.queue.clone();
        let wire = SendRequest { queue, messages, request: Some(request.id()) };
        self.unanswered.add(self.next_tag, request, wire, waiters, self.client.settings().call_timeout);
        self.next_tag += 1;
        true
    }

    fn is_full(&self) -> bool {
        self.gathering.messages.len() >= self.options.batch_messages_max
            || self.gathering.bytes >= self.options.batch_bytes_max
    }

    fn has_room(&self) -> bool {
        !self.is_full()
    }

    fn is_idle(&self) -> bool {
        self.gathering.messages.is_empty() && self.unanswered.is_empty()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let has_place = self.unanswered.len() < self.in_flight_max();
        let linger = self.gathering.since.filter(|_| has_place).map(|since| since + self.options.linger);
        let due = self.unanswered.next_deadline().map(|at| self.stream.not_before(at));
        linger.into_iter().chain(due).min()
    }

    /// Takes a command and those that wait behind it, as far as the batch has room.
    fn take(&mut self, first: Command, inbox: &mut UnboundedReceiver<Command>) {
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Send(outgoing) => self.gather(outgoing),
                Command::Flush(done) => {
                    // The batch that is gathering gets the next tag.
                    let after = u64::from(!self.gathering.messages.is_empty());
                    self.flushes.push((self.next_tag + after, done));
                }
                Command::Close => {
                    self.is_closing = true;
                    inbox.close();
                }
            }
            next = if self.has_room() { inbox.try_recv().ok() } else { None };
        }
    }

    fn gather(&mut self, outgoing: Outgoing) {
        let Outgoing { message, size_bytes, reply, permit } = outgoing;
        if self.is_closing {
            let _ = reply.send(Err(Error::stopped(CLOSED)));
            return;
        }
        self.gathering.since.get_or_insert_with(Instant::now);
        self.gathering.bytes += size_bytes;
        self.gathering.messages.push(message.wire);
        self.gathering.waiters.push(Waiter { reply, _permit: permit });
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Changed => {}
            Event::Answer(answer) => self.on_answer(answer),
            Event::Lost(stream, error) => {
                finish(self.unanswered.lose(stream, &error, self.client.settings()));
            }
        }
    }

    fn on_answer(&mut self, response: PublishResponse) {
        let answer = match response.error {
            Some(error) => Err(Error::from(error)),
            None => Ok(response.outcomes.iter().map(Sent::from_outcome).collect()),
        };
        let left = why_to_leave(&answer);
        finish(self.unanswered.answer(response.tag, answer, self.client.settings()));
        if let Some(error) = left {
            let event = self.stream.leave(error);
            self.on_event(event);
        }
    }
}

/// Why another node may do better: this one stops, or finds no leader, which it has looked for.
fn why_to_leave(answer: &Result<ItemResults<Sent>, Error>) -> Option<Error> {
    let is_why = |error: &&Error| error.is_of_the_node() || error.reason == Reason::NoLeader;
    match answer {
        Err(error) => Some(error).filter(is_why).cloned(),
        // One shard without a leader among others is not the node's fault.
        Ok(results) => {
            let whys = results.iter().map(|result| result.as_ref().err().filter(is_why));
            let whys = whys.collect::<Option<Vec<_>>>()?;
            whys.first().copied().cloned()
        }
    }
}

fn finish(finished: Finished<Waiter, Sent>) {
    for (waiter, result) in finished {
        let _ = waiter.reply.send(result);
    }
}
