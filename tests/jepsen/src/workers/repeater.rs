//! A client that makes every request twice, with the same id, at two nodes: as after an answer that was lost, or a packet that came
//! again later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::v1::messages_client::MessagesClient;
use leasehold_client::v1::{
    self, AckRequest, NewMessage, ReceiveRequest, ReceiveResponse, RequestId, SendRequest, SendResponse,
    SettleResponse,
};
use leasehold_histories::history::Op;
use leasehold_histories::random::Random;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::{CALL_TIMEOUT, RECEIVE_WAIT, RETRY_PAUSE, Stage};

/// A queue of one shard: a receive of several may be answered by another one the second time.
pub const REPEATED_QUEUE: &str = "jepsen-repeated";
const MESSAGES: usize = 3;

struct Repeater {
    stage: Arc<Stage>,
    session: u64,
    sequence: u64,
    random: Random,
}

/// Sends, receives and acks until the run is over.
pub async fn repeater(stage: Arc<Stage>, mut random: Random) {
    let session = random.draw();
    let mut repeater = Repeater { stage, session, sequence: 0, random };
    while !repeater.stage.is_over.load(Ordering::Relaxed) {
        repeater.round().await;
        sleep(RETRY_PAUSE).await;
    }
}

impl Repeater {
    async fn round(&mut self) {
        let queue = || REPEATED_QUEUE.to_owned();
        let request = self.next_request();
        let messages = vec![NewMessage { body: "twice".into(), ..NewMessage::default() }; MESSAGES];
        let send = SendRequest { queue: queue(), messages, request };
        self.twice("send", send, async |client, send| client.send(send).await, sent).await;
        let request = self.next_request();
        let wait_ms = RECEIVE_WAIT.as_millis() as u64;
        let receive =
            ReceiveRequest { queue: queue(), messages_max: 2, wait_ms, request, ..ReceiveRequest::default() };
        let received = self
            .twice("receive", receive, async |client, receive| client.receive(receive).await, received)
            .await;
        let receipts = received.into_iter().flat_map(|received| received.deliveries);
        let receipts = receipts.map(|delivery| delivery.receipt).collect::<Vec<_>>();
        let request = self.next_request();
        let ack = AckRequest { queue: queue(), receipts, request };
        self.twice("ack", ack, async |client, ack| client.ack(ack).await, acked).await;
    }

    /// All earlier requests are over when the next one is made.
    fn next_request(&mut self) -> Option<RequestId> {
        self.sequence += 1;
        Some(RequestId { session: self.session, sequence: self.sequence, completed_below: self.sequence })
    }

    /// Makes a request at one node and the same at another, and writes down what both answered. `read` says what was done; `None` is
    /// what need not be remembered.
    async fn twice<Q: Clone, A>(
        &mut self,
        what: &str,
        request: Q,
        call: impl AsyncFn(&mut MessagesClient<Channel>, Q) -> Result<Response<A>, Status>,
        read: impl Fn(&A) -> Option<Vec<String>>,
    ) -> Option<A> {
        let mut answers = Vec::new();
        let stage = self.stage.clone();
        let _calls = stage.calls.read().await;
        for _ in 0..2 {
            let endpoints = self.stage.endpoints();
            let endpoint = &endpoints[self.random.below(endpoints.len() as u64) as usize];
            let answer = timeout(CALL_TIMEOUT, async {
                let mut client = MessagesClient::connect(endpoint.clone()).await.ok()?;
                call(&mut client, request.clone()).await.ok()
            });
            answers.extend(answer.await.ok().flatten().map(Response::into_inner));
            sleep(Duration::from_millis(self.random.below(100))).await;
        }
        if let [first, again] = &answers[..]
            && let (Some(first), Some(again)) = (read(first), read(again))
        {
            let request = format!("{what} {}", self.sequence);
            self.stage.recorder.add(Op::Repeat { request, first, again });
        }
        answers.pop()
    }
}

fn sent(answer: &SendResponse) -> Option<Vec<String>> {
    let is_done = |sent: &v1::SendOutcome| sent.outcome() == v1::Outcome::Done;
    let all_done = answer.outcomes.iter().all(is_done);
    let id = |sent: &v1::SendOutcome| sent.id.map(|id| format!("{}-{}", id.partition, id.sequence));
    all_done.then(|| answer.outcomes.iter().filter_map(id).collect())
}

/// That nothing was there is not remembered.
fn received(answer: &ReceiveResponse) -> Option<Vec<String>> {
    let grant = |delivery: &v1::Delivery| {
        let id = delivery.id.unwrap_or_default();
        format!("{}-{} under {}", id.partition, id.sequence, delivery.fencing_token)
    };
    (!answer.deliveries.is_empty()).then(|| answer.deliveries.iter().map(grant).collect())
}

/// A refusal for a passing reason is not remembered.
fn acked(answer: &SettleResponse) -> Option<Vec<String>> {
    let is_done = |settled: &v1::SettleOutcome| settled.outcome() == v1::Outcome::Done;
    let all_done = !answer.outcomes.is_empty() && answer.outcomes.iter().all(is_done);
    all_done.then(|| answer.outcomes.iter().map(|settled| format!("{:?}", settled.outcome())).collect())
}
