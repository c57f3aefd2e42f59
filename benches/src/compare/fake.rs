//! A system in memory, for tests of workloads: queues that are as fast as they are told to be.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::time::sleep;

use super::system::{Doing, Failure, Queue, Receiver, Sender, System, Through};

/// What receivers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    Works,
    /// There is never a message.
    Hangs,
    /// Each second request is refused.
    Stumbles,
}

/// What happened to a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    pub senders: usize,
    pub receivers: usize,
    pub sent: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Bytes>,
    used: Use,
}

type Queues = Arc<Mutex<BTreeMap<String, State>>>;

pub struct Fake {
    dir: PathBuf,
    receiving: Receiving,
    queues: Queues,
}

impl Fake {
    pub fn new(dir: &Path, receiving: Receiving) -> Self {
        Self { dir: dir.to_owned(), receiving, queues: Queues::default() }
    }

    /// Of each queue that ever was, by name.
    pub fn used(&self) -> Vec<(String, Use)> {
        locked(&self.queues).iter().map(|(name, state)| (name.clone(), state.used)).collect()
    }
}

fn locked(queues: &Queues) -> MutexGuard<'_, BTreeMap<String, State>> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on<T>(queues: &Queues, queue: &str, act: impl FnOnce(&mut State) -> T) -> Result<T, Failure> {
    let mut queues = locked(queues);
    let state = queues.get_mut(queue).ok_or_else(|| Failure::new(format!("{queue} was not created")))?;
    Ok(act(state))
}

impl System for Fake {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn pids(&self) -> Vec<u32> {
        vec![std::process::id()]
    }

    fn queues_for(&self, partitions: u32) -> usize {
        partitions as usize
    }

    fn create_queue<'a>(&'a self, queue: Queue<'a>) -> Doing<'a, ()> {
        locked(&self.queues).insert(queue.name.to_owned(), State::default());
        ready(Ok(())).boxed()
    }

    fn send_one<'a>(&'a self, queue: &'a str, body: Bytes) -> Doing<'a, ()> {
        ready(on(&self.queues, queue, |state| state.waiting.push_back(body))).boxed()
    }

    /// What happened to it is remembered.
    fn delete_queue<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        ready(on(&self.queues, name, |state| state.waiting.clear())).boxed()
    }

    fn sender<'a>(&'a self, queue: &'a str, _: Through) -> Doing<'a, Arc<dyn Sender>> {
        let connection = Connection { queues: Arc::clone(&self.queues), queue: queue.to_owned() };
        let counted = on(&self.queues, queue, |state| state.used.senders += 1);
        ready(counted.map(|()| Arc::new(connection) as Arc<dyn Sender>)).boxed()
    }

    fn receiver<'a>(&'a self, queue: &'a str, _: Through) -> Doing<'a, Box<dyn Receiver>> {
        let connection = Connection { queues: Arc::clone(&self.queues), queue: queue.to_owned() };
        let counted = on(&self.queues, queue, |state| state.used.receivers += 1);
        let taker = Taker { connection, receiving: self.receiving, requests: 0, unacked: 0 };
        ready(counted.map(|()| Box::new(taker) as Box<dyn Receiver>)).boxed()
    }

    fn leader<'a>(&'a self, _: &'a str) -> Doing<'a, usize> {
        ready(Ok(0)).boxed()
    }

    fn kill(&mut self, _: usize) -> Doing<'_, ()> {
        ready(Err(Failure::new("it has no process"))).boxed()
    }

    fn restart(&mut self, _: usize) -> Doing<'_, Duration> {
        ready(Err(Failure::new("it has no process"))).boxed()
    }

    fn stop(self: Box<Self>) -> Doing<'static, ()> {
        ready(Ok(())).boxed()
    }
}

struct Connection {
    queues: Queues,
    queue: String,
}

impl Sender for Connection {
    fn send(&self, bodies: Vec<Bytes>) -> BoxFuture<'_, Vec<Result<Instant, Failure>>> {
        let count = bodies.len();
        let taken = on(&self.queues, &self.queue, |state| {
            state.used.sent += count;
            state.waiting.extend(bodies);
        });
        ready(vec![taken.map(|()| Instant::now()); count]).boxed()
    }
}

struct Taker {
    connection: Connection,
    receiving: Receiving,
    requests: usize,
    unacked: usize,
}

impl Receiver for Taker {
    fn receive(&mut self, messages_max: usize, wait: Duration) -> Doing<'_, Vec<Bytes>> {
        async move {
            self.requests += 1;
            if self.receiving == Receiving::Stumbles && self.requests.is_multiple_of(2) {
                return Err(Failure::new("it stumbled"));
            }
            let Connection { queues, queue } = &self.connection;
            let taken = on(queues, queue, |state| {
                let count = match self.receiving {
                    Receiving::Hangs => 0,
                    Receiving::Works | Receiving::Stumbles => state.waiting.len().min(messages_max),
                };
                state.waiting.drain(..count).collect::<Vec<_>>()
            })?;
            if taken.is_empty() {
                sleep(wait.min(Duration::from_millis(1))).await;
            }
            self.unacked += taken.len();
            Ok(taken)
        }
        .boxed()
    }

    fn ack(&mut self) -> Doing<'_, usize> {
        ready(Ok(std::mem::take(&mut self.unacked))).boxed()
    }
}
