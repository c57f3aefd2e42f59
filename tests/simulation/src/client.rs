//! A client as the nodes see one: it names its requests, tries them again at other nodes until their time is over, and now and then a
//! request reaches two nodes.

use std::sync::Arc;
use std::time::Duration;

use leasehold_histories::history::Outcome;
use leasehold_histories::random::Random;
use leasehold_node::simulation::{Failure, SimulatedNode};
use leasehold_proto::v1::{self, Reason, RequestId};
use tokio::time::{Instant, sleep, timeout};

use crate::network::{End, Network};
use crate::transport::{Answer, Call};

const CALL_TIME_MAX: Duration = Duration::from_secs(3);
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(1_500);
const TWICE_PERCENT: u64 = 4;

/// What is known of a call without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    pub outcome: Outcome,
    pub reason: Reason,
}

impl Failed {
    fn of(failure: &Failure) -> Self {
        Self { outcome: outcome(failure.outcome), reason: failure.reason }
    }
}

pub struct Client {
    network: Arc<Network>,
    nodes: u64,
    pub random: Random,
    node: usize,
    session: u64,
    sequence: u64,
    /// Whether another try of the last call may have happened.
    was_unknown: bool,
}

impl Client {
    pub fn new(network: Arc<Network>, nodes: usize, mut random: Random) -> Self {
        let (session, nodes) = (random.draw(), nodes as u64);
        let node = random.below(nodes) as usize;
        Self { network, nodes, random, node, session, sequence: 0, was_unknown: false }
    }

    /// A node, whichever, to be asked next.
    pub fn turn_to_any(&mut self) {
        self.node = self.random.below(self.nodes) as usize;
    }

    pub fn nodes(&self) -> usize {
        self.nodes as usize
    }

    pub fn turn_to(&mut self, node: usize) {
        self.node = node;
    }

    /// It is started again, and remembers nothing.
    pub fn begin_again(&mut self) {
        (self.session, self.sequence) = (self.random.draw(), 0);
    }

    /// The name of the next request, which all tries of it carry.
    pub fn name(&mut self) -> RequestId {
        self.sequence += 1;
        RequestId { session: self.session, sequence: self.sequence, completed_below: self.sequence }
    }

    /// Has a node do something, until it is known how that ended or the time is over. `wait` is what a node may take by design.
    ///
    /// # Errors
    /// What is known without an answer.
    pub async fn call<T, F, S>(&mut self, wait: Duration, serve: S) -> Result<T, Failed>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        S: Fn(SimulatedNode) -> F + Clone + Send + 'static,
    {
        self.attempts(wait, serve, 0).await
    }

    /// The same for a request that nodes recognise when it comes again; now and then it reaches two of them.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn ask<Q, T, F, S>(&mut self, wait: Duration, request: Q, serve: S) -> Result<T, Failed>
    where
        Q: Send + Sync + 'static,
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        S: Fn(SimulatedNode, Arc<Q>) -> F + Clone + Send + 'static,
    {
        let request = Arc::new(request);
        self.attempts(wait, move |node| serve(node, request.clone()), TWICE_PERCENT).await
    }

    async fn attempts<T, F, S>(&mut self, wait: Duration, serve: S, twice_percent: u64) -> Result<T, Failed>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        S: Fn(SimulatedNode) -> F + Clone + Send + 'static,
    {
        let deadline = Instant::now() + CALL_TIME_MAX + wait;
        self.was_unknown = false;
        loop {
            if self.random.percent(twice_percent) {
                let other = self.open(self.random.clone().below(self.nodes) as usize, &serve);
                tokio::spawn(timeout(ATTEMPT_TIME_MAX + wait, other.answer()));
                // Its answer is not waited for: what this one is told does not hold for that one.
                self.was_unknown = true;
            }
            let call = self.open(self.node, &serve);
            let (failed, is_transient) = match timeout(ATTEMPT_TIME_MAX + wait, call.answer()).await {
                Ok(Answer::Came(Ok(answer))) => return Ok(answer),
                Ok(Answer::Came(Err(failure))) => (Failed::of(&failure), failure.retry_after_ms > 0),
                Ok(Answer::Refused) => (Failed { outcome: Outcome::NotDone, reason: Reason::None }, true),
                Ok(Answer::Broken) | Err(_) => {
                    (Failed { outcome: Outcome::Unknown, reason: Reason::None }, true)
                }
            };
            let pause = Duration::from_millis(10 + self.random.below(90));
            if !is_transient || Instant::now() + pause >= deadline {
                let outcome = if self.was_unknown { Outcome::Unknown } else { failed.outcome };
                return Err(Failed { outcome, ..failed });
            }
            self.was_unknown |= failed.outcome == Outcome::Unknown;
            self.turn_to_any();
            sleep(pause).await;
        }
    }

    /// How one item of the last answer ended: a refusal does not say that an earlier try did nothing.
    pub fn outcome_of(&self, item: v1::Outcome) -> Outcome {
        match outcome(item) {
            Outcome::NotDone if self.was_unknown => Outcome::Unknown,
            known => known,
        }
    }

    fn open<T, F, S>(&self, node: usize, serve: &S) -> Call<Result<T, Failure>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
        S: Fn(SimulatedNode) -> F + Clone + Send + 'static,
    {
        let serve = serve.clone();
        Call::open(&self.network, End::Clients, node, self.session ^ self.sequence, serve)
    }
}

fn outcome(outcome: v1::Outcome) -> Outcome {
    match outcome {
        v1::Outcome::Done => Outcome::Done,
        v1::Outcome::NotDone => Outcome::NotDone,
        v1::Outcome::Unknown => Outcome::Unknown,
    }
}
