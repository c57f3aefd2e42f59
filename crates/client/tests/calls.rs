//! Single calls: what a retry carries, what an error says, and which node is asked.

#![allow(clippy::unwrap_used, reason = "it is a test")]

mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::{Fault, Node, dead_address};
use leasehold_client::{Client, NewMessage, Outcome, QueueSettings, Reason, ReceiveOptions};

fn batch(bodies: &[&str]) -> Vec<NewMessage> {
    bodies.iter().map(|body| NewMessage::from(*body)).collect()
}

/// Sends until a node has stored a message. On a slow machine a look for routes may be given up, and a message goes to any node then.
async fn send_until_stored(client: &Client, node: &Node) {
    client.routes("q").await.unwrap();
    for _ in 0..300 {
        client.send("q", batch(&["a"])).await.unwrap();
        if !node.shared.state().stored.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no message went to the leader");
}

#[tokio::test]
async fn a_retry_carries_the_same_request() {
    let node = Node::start().await;
    let no_leader = Fault::Refuse(Reason::NoLeader);
    node.shared.fail_with([Fault::LoseAnswer, Fault::Refuse(Reason::Busy), no_leader]);
    let sent = node.client().send("q", batch(&["a", "b"])).await.unwrap();
    assert!(sent.iter().all(Result::is_ok));
    let state = node.shared.state();
    assert_eq!(state.sends.len(), 4);
    assert!(state.sends.iter().all(|send| *send == state.sends[0]));
    assert_eq!(state.stored, [b"a", b"b"]);
}

#[tokio::test]
async fn answered_requests_may_be_forgotten() {
    let node = Node::start().await;
    let client = node.client();
    for _ in 0..3 {
        client.send("q", batch(&["a"])).await.unwrap();
    }
    let state = node.shared.state();
    let ids: Vec<_> = state.sends.iter().filter_map(|send| send.request).collect();
    assert!(ids.iter().all(|id| id.session == ids[0].session && id.completed_below == id.sequence));
    assert!(ids.is_sorted_by(|before, after| before.sequence < after.sequence));
}

#[tokio::test]
async fn items_with_a_passing_refusal_are_tried_again_with_the_others() {
    let node = Node::start().await;
    node.shared.fail_with([Fault::RefuseItems(Reason::NoLeader)]);
    let sent = node.client().send("q", batch(&["a", "b", "bad"])).await.unwrap();
    assert_eq!(sent[0].as_ref().unwrap().id.sequence, 1);
    assert_eq!(sent[1].as_ref().unwrap().id.sequence, 2);
    let error = sent[2].as_ref().unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::QueueFull));
    assert_eq!(node.shared.state().stored, [b"a", b"b"]);
}

#[tokio::test]
async fn a_lasting_refusal_is_given_back_at_once() {
    let node = Node::start().await;
    node.shared.fail_with([Fault::Refuse(Reason::UnknownQueue)]);
    let error = node.client().send("q", batch(&["a"])).await.unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::UnknownQueue));
    assert_eq!((error.detail.as_str(), error.retry_after), ("injected", None));
    assert_eq!(node.shared.state().sends.len(), 1);
}

#[tokio::test]
async fn the_metadata_of_a_status_is_read() {
    let node = Node::start().await;
    let status = fake::refusal(Reason::TimedOut, Outcome::Unknown, 70);
    let error = leasehold_client::Error::from(status);
    assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::TimedOut));
    assert_eq!(error.retry_after, Some(Duration::from_millis(70)));
    drop(node);
    let error = leasehold_client::Error::from(tonic::Status::internal("proxy"));
    assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::None));
}

#[tokio::test]
async fn what_is_not_safe_to_repeat_is_repeated_only_after_a_refusal() {
    let node = Node::start().await;
    node.shared.fail_with([Fault::Refuse(Reason::Busy)]);
    node.client().purge_queue("q").await.unwrap();
    assert_eq!(node.shared.state().purges, 1);
    node.shared.fail_with([Fault::LoseAnswer]);
    let error = node.client().purge_queue("q").await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    assert_eq!(node.shared.state().purges, 2);
}

#[tokio::test]
async fn a_refusal_at_the_deadline_does_not_hide_that_an_attempt_was_lost() {
    let node = Node::start().await;
    let busy = std::iter::repeat_n(Fault::Refuse(Reason::Busy), 1_000);
    node.shared.fail_with(std::iter::once(Fault::LoseAnswer).chain(busy));
    let builder = Client::builder([node.address.clone()]).call_timeout(Duration::from_millis(300));
    let error = builder.build().unwrap().send("q", batch(&["a"])).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    assert!(matches!(error.reason, Reason::Busy | Reason::TimedOut));
}

#[tokio::test]
async fn another_endpoint_answers_for_one_that_is_gone() {
    let node = Node::start().await;
    let client = Client::connect([dead_address(), node.address.clone()]).unwrap();
    client.send("q", batch(&["a"])).await.unwrap();
    assert_eq!(client.cluster_status().await.unwrap().node, node.address);
}

#[tokio::test]
async fn a_node_without_a_cluster_is_passed_by() {
    let (outsider, node) = (Node::start().await, Node::start().await);
    outsider.shared.state().is_outside = true;
    let client = Client::connect([outsider.address.clone(), node.address.clone()]).unwrap();
    client.send("q", batch(&["a"])).await.unwrap();
    let client = Client::connect([outsider.address.clone(), node.address.clone()]).unwrap();
    assert!(client.create_queue("q", QueueSettings::default(), 1).await.unwrap());
    assert_eq!(node.shared.state().stored, [b"a"]);
}

#[tokio::test]
async fn where_no_node_belongs_to_a_cluster_that_is_said_and_can_be_mended() {
    let (one, other) = (Node::start().await, Node::start().await);
    one.shared.state().is_outside = true;
    other.shared.state().is_outside = true;
    for endpoints in [vec![one.address.clone()], vec![one.address.clone(), other.address.clone()]] {
        let builder = Client::builder(endpoints).call_timeout(Duration::from_secs(3_600));
        let client = builder.build().unwrap();
        let error = client.create_queue("q", QueueSettings::default(), 1).await.unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::NotInitialised));
        let error = client.send("q", batch(&["a"])).await.unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::NotInitialised));
        client.init_cluster(Vec::new(), 1, 1).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_happened_when_no_node_was_ever_reached() {
    let builder = Client::builder([dead_address()]).call_timeout(Duration::from_millis(200));
    let client = builder.build().unwrap();
    // On a slow machine the time may end within an attempt, which then is unknown.
    for _ in 0..50 {
        let error = client.send("q", batch(&["a"])).await.unwrap_err();
        if error.outcome == Outcome::NotDone {
            return;
        }
    }
    panic!("a connection that was refused counts as one that was lost");
}

#[tokio::test]
async fn a_send_goes_to_the_leader_and_follows_it() {
    let entry = Node::start().await;
    let (old, new) = (Node::start().await, Node::start().await);
    let client = entry.client();
    entry.shared.lead_at(&[&old.address]);
    send_until_stored(&client, &old).await;
    assert_eq!(old.shared.state().stored, [b"a"]);
    let strayed = entry.shared.state().sends.len();

    entry.shared.lead_at(&[&new.address]);
    old.shared.fail_with(std::iter::repeat_n(Fault::Refuse(Reason::NoLeader), 1_000));
    client.send("q", batch(&["b"])).await.unwrap();
    assert_eq!(new.shared.state().stored, [b"b"]);
    assert_eq!(entry.shared.state().sends.len(), strayed);
}

#[tokio::test]
async fn a_leader_that_cannot_be_reached_is_passed_by() {
    let node = Node::start().await;
    node.shared.lead_at(&[&dead_address()]);
    node.client().send("q", batch(&["a"])).await.unwrap();
    assert_eq!(node.shared.state().stored, [b"a"]);
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_left() {
    let (entry, mut old) = (Node::start().await, Node::start().await);
    let client = entry.client();
    entry.shared.lead_at(&[&old.address]);
    send_until_stored(&client, &old).await;
    assert_eq!(old.shared.state().stored, [b"a"]);

    old.fall_silent();
    entry.shared.lead_at(&[&entry.address]);
    entry.shared.offer(&["one"], Duration::from_secs(30));
    // A node may take all this time to answer such a call: that it is silent must be noticed otherwise.
    let wait = Duration::from_secs(20);
    let asked = Instant::now();
    let received = client.receive("q", ReceiveOptions { wait, ..Default::default() }).await.unwrap();
    assert_eq!(received[0].body, "one");
    assert!(asked.elapsed() < wait);
}

#[tokio::test]
async fn received_messages_are_read_and_settled() {
    let node = Node::start().await;
    node.shared.offer(&["one", "two"], Duration::from_secs(30));
    node.shared.fail_with([Fault::Refuse(Reason::NoLeader)]);
    let client = node.client();
    let options = ReceiveOptions { messages_max: 10, ..Default::default() };
    let received = client.receive("q", options).await.unwrap();
    assert_eq!(node.shared.state().receives, 2);
    assert_eq!((received[0].body.as_ref(), received[1].fencing_token), (b"one".as_ref(), 2));
    assert!(received[0].lease_until > tokio::time::Instant::now());

    node.shared.state().stale.insert(b"two".to_vec());
    let receipts: Vec<_> = received.iter().map(|message| message.receipt.clone()).collect();
    let acked = client.ack("q", &receipts).await.unwrap();
    assert!(acked[0].is_ok());
    assert_eq!(acked[1].as_ref().unwrap_err().reason, Reason::ReceiptStale);
}

#[tokio::test]
async fn calls_can_be_made_from_any_task() {
    let node = Node::start().await;
    let client = Arc::new(node.client());
    let calls = (0..300).map(|number| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.send("q", vec![NewMessage::from(number.to_string())]).await })
    });
    for call in futures::future::join_all(calls).await {
        assert!(call.unwrap().unwrap()[0].is_ok());
    }
    assert_eq!(node.shared.state().stored.len(), 300);
}

#[tokio::test]
async fn an_item_refused_once_and_then_lost_is_unknown() {
    let node = Node::start().await;
    let refused = Fault::RefuseItems(Reason::NoLeader);
    node.shared.fail_with(std::iter::once(refused).chain(std::iter::repeat_n(Fault::LoseAnswer, 1_000)));
    let builder = Client::builder([node.address.clone()]).call_timeout(Duration::from_secs(3));
    let sent = builder.build().unwrap().send("q", batch(&["a", "b"])).await.unwrap();
    assert!(sent[0].is_ok());
    assert_eq!(sent[1].as_ref().unwrap_err().outcome, Outcome::Unknown);
}
