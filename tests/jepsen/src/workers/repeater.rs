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

/// Nothing, when a message was refused for a passing reason.
fn sent(answer: &SendResponse) -> Option<Vec<String>> {
    let told = |sent: &v1::SendOutcome| match sent.outcome() {
        v1::Outcome::Done => sent.id.map(|id| format!("{}-{}", id.partition, id.sequence)),
        outcome => refused(outcome, sent.reason()),
    };
    answer.outcomes.iter().map(told).collect()
}

/// A refusal that is remembered with the request. All others pass, or come from a node that did not get as far as to ask.
fn refused(outcome: v1::Outcome, reason: v1::Reason) -> Option<String> {
    use v1::Reason::{MessageGone, QueueFull, ReceiptForged, ReceiptStale};
    let is_remembered = outcome == v1::Outcome::NotDone
        && matches!(reason, MessageGone | QueueFull | ReceiptForged | ReceiptStale);
    is_remembered.then(|| format!("{reason:?}"))
}

/// That nothing was there is not remembered.
fn received(answer: &ReceiveResponse) -> Option<Vec<String>> {
    let grant = |delivery: &v1::Delivery| {
        let id = delivery.id.unwrap_or_default();
        format!("{}-{} under {}", id.partition, id.sequence, delivery.fencing_token)
    };
    (!answer.deliveries.is_empty()).then(|| answer.deliveries.iter().map(grant).collect())
}

/// Nothing, when a receipt was refused for a passing reason. The session is young and its next request has not been made, so that an
/// ack that was done once is done, and not of a message that is gone.
fn acked(answer: &SettleResponse) -> Option<Vec<String>> {
    let told = |settled: &v1::SettleOutcome| match settled.outcome() {
        v1::Outcome::Done => Some("Done".to_owned()),
        outcome => refused(outcome, settled.reason()),
    };
    let told = answer.outcomes.iter().map(told).collect::<Option<Vec<_>>>();
    told.filter(|told| !told.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(outcome: v1::Outcome, reason: v1::Reason) -> Option<Vec<String>> {
        let done = v1::SettleOutcome::default();
        let other = v1::SettleOutcome { outcome: outcome as i32, reason: reason as i32, ..done.clone() };
        acked(&SettleResponse { outcomes: vec![done, other] })
    }

    #[test]
    fn an_ack_that_is_done_once_and_gone_the_next_time_is_another_answer() {
        let done = settled(v1::Outcome::Done, v1::Reason::None);
        assert_eq!(done, Some(vec!["Done".to_owned(), "Done".to_owned()]));
        let gone = settled(v1::Outcome::NotDone, v1::Reason::MessageGone);
        assert!(gone.is_some() && gone != done, "{gone:?}");
    }

    #[test]
    fn what_passes_and_what_nobody_knows_is_not_judged() {
        for reason in [v1::Reason::Busy, v1::Reason::NoLeader, v1::Reason::Stopping, v1::Reason::TimedOut] {
            assert_eq!(settled(v1::Outcome::NotDone, reason), None);
        }
        assert_eq!(settled(v1::Outcome::Unknown, v1::Reason::MessageGone), None);
        assert_eq!(acked(&SettleResponse::default()), None);
    }
}
