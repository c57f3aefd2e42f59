//! What is done with deliveries of a stream, and with jobs. Of a message group one is handled after the other, and what is behind one
//! that comes again goes back with it: of jobs the client crate sees to that, of deliveries whoever reads the stream.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use leasehold_client::{ConsumerBuilder, Delivery, Failure, Job};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::hold::{Decision, Hold, Life};

/// A delivery, and what is written down of it first.
struct Held {
    hold: Hold,
    delivery: Delivery,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It will not come again, as far as is known.
    Done,
    Returned,
}

/// Everything that a reader of a stream holds.
struct Hands {
    life: Arc<Life>,
    /// Of each group with a message at work: those behind it.
    behind: BTreeMap<String, VecDeque<Held>>,
    /// Each with its group, if order holds in it.
    tasks: JoinSet<(Option<String>, Fate)>,
}

/// Reads a stream until it ends, and closes it while the last messages are at work.
pub async fn stream(life: Arc<Life>, consumer: ConsumerBuilder) {
    let mut consumer = consumer.start();
    let mut hands = Hands { life, behind: BTreeMap::new(), tasks: JoinSet::new() };
    loop {
        tokio::select! {
            next = consumer.next() => match next {
                Some(Ok(delivery)) => hands.take(delivery),
                _ => break,
            },
            Some(ended) = hands.tasks.join_next() => hands.on_ended(ended.ok()),
        }
    }
    hands.behind.clear();
    let all = async { while hands.tasks.join_next().await.is_some() {} };
    tokio::join!(consumer.close(), all);
}

impl Hands {
    fn take(&mut self, delivery: Delivery) {
        let group = delivery.ordered_group().map(str::to_owned);
        let held = Held { hold: Hold::new(&self.life, &delivery), delivery };
        if let Some(group) = &group {
            if let Some(behind) = self.behind.get_mut(group) {
                return behind.push_back(held);
            }
            self.behind.insert(group.clone(), VecDeque::new());
        }
        self.begin(group, held);
    }

    fn begin(&mut self, group: Option<String>, held: Held) {
        let (decision, takes) = self.life.decide(&held.delivery);
        self.tasks.spawn(async move { (group, handle(held, decision, takes).await) });
    }

    fn on_ended(&mut self, ended: Option<(Option<String>, Fate)>) {
        let Some((Some(group), fate)) = ended else { return };
        let next = self.behind.get_mut(&group).filter(|_| fate == Fate::Done).and_then(VecDeque::pop_front);
        match next {
            Some(held) if !held.delivery.lease_left().is_zero() => self.begin(Some(group), held),
            // Nothing is behind it, or it comes again, and what is behind it after it.
            _ => drop(self.behind.remove(&group)),
        }
    }
}

async fn handle(mut held: Held, decision: Decision, takes: Duration) -> Fate {
    held.hold.work(takes, || held.delivery.lease_left()).await;
    let Held { mut hold, delivery } = held;
    hold.ask(decision);
    let settling = match decision {
        Decision::Ack => delivery.ack(),
        Decision::Release(delay) => delivery.release(delay),
        Decision::Postpone(delay) => delivery.postpone(delay),
        Decision::Reject => delivery.reject(WHY),
        Decision::GiveBack => delivery.give_back(),
        Decision::AckAndGo => {
            drop(delivery.ack());
            return Fate::Done;
        }
        Decision::Drop => {
            drop(delivery);
            return Fate::Returned;
        }
    };
    let result = settling.await;
    hold.answered(&result);
    match decision {
        Decision::Ack | Decision::Reject if result.is_ok() => Fate::Done,
        _ => Fate::Returned,
    }
}

const WHY: &str = "its token says so";

/// Handles jobs until it is told to stop. What became of a message is the client crate's to know.
pub async fn run(life: Arc<Life>, consumer: ConsumerBuilder) {
    let handler = move |job: Job| {
        let mut hold = Hold::new(&life, &job);
        let (decision, takes) = life.decide(&job);
        async move {
            hold.work(takes, || job.deadline().saturating_duration_since(Instant::now())).await;
            hold.ask(as_of_a_job(decision));
            drop(hold);
            match as_of_a_job(decision) {
                Decision::Release(delay) => Err(Failure::retry_after(delay, WHY)),
                Decision::Postpone(delay) => Err(Failure::postpone(delay, WHY)),
                Decision::Reject => Err(Failure::reject(WHY)),
                _ => Ok(()),
            }
        }
    };
    // A queue that cannot be consumed ends this life, and the next one tries again.
    let _ = consumer.run(handler).await;
}

/// A handler has fewer ways to end.
fn as_of_a_job(decision: Decision) -> Decision {
    match decision {
        Decision::GiveBack | Decision::Drop => Decision::Release(Duration::ZERO),
        Decision::AckAndGo => Decision::Ack,
        _ => decision,
    }
}
