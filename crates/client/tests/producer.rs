//! Producers: batches, results for each message, and losses of the stream.

mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fault, Node};
use futures::SinkExt;
use leasehold_client::{Client, NewMessage, Outcome, Reason};

fn bodies(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn stored_once(node: &Node, count: usize) {
    let state = node.shared.state();
    let distinct: BTreeSet<_> = state.stored.iter().collect();
    assert_eq!((state.stored.len(), distinct.len()), (count, count));
}

#[tokio::test]
async fn messages_travel_in_batches_and_each_has_its_result() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().start();
    let results = producer.send_all(bodies(5_000)).await;
    let ids: BTreeSet<_> = results.iter().map(|sent| sent.as_ref().unwrap().id.sequence).collect();
    assert_eq!(ids.len(), 5_000);
    stored_once(&node, 5_000);
    assert!(node.shared.state().sends.len() < 1_000);
    assert!(node.shared.state().sends.iter().all(|send| send.messages.len() <= 256));
}

#[tokio::test]
async fn a_lost_stream_sends_unanswered_batches_again_but_once() {
    let node = Node::start().await;
    for _ in 0..5 {
        node.shared.fail_with([Fault::LoseAnswer, Fault::Refuse(Reason::Busy)]);
    }
    let producer = node.client().queue("q").producer().batch(10, 1024 * 1024).start();
    let results = producer.send_all(bodies(500)).await;
    assert!(results.iter().all(Result::is_ok));
    stored_once(&node, 500);
    let state = node.shared.state();
    let ids: BTreeSet<_> = state.sends.iter().map(|send| send.request.unwrap().sequence).collect();
    assert!(state.sends.len() > ids.len(), "batches were sent again");
    for send in &state.sends {
        let same = state.sends.iter().filter(|other| other.request == send.request);
        assert!(same.clone().all(|other| other == send));
    }
}

#[tokio::test]
async fn a_refused_message_does_not_harm_its_neighbours() {
    let node = Node::start().await;
    node.shared.fail_with([Fault::RefuseItems(Reason::NoLeader)]);
    let producer = node.client().queue("q").producer().start();
    let results = producer.send_all(["a", "bad", "c"]).await;
    assert!(results[0].is_ok() && results[2].is_ok());
    let error = results[1].as_ref().unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::QueueFull));
    stored_once(&node, 2);
}

#[tokio::test]
async fn messages_wait_for_room() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().bytes_in_flight(1_000).start();
    let big = vec!["x".repeat(700), "y".repeat(700), "z".repeat(5_000)];
    assert!(producer.send_all(big).await.iter().all(Result::is_ok));
    assert!(node.shared.state().sends.iter().all(|send| send.messages.len() == 1));
}

#[tokio::test]
async fn flush_and_close_wait_for_results() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().linger(Duration::from_secs(60)).start();
    let first = producer.enqueue("a").await.unwrap();
    let second = producer.enqueue("b").await.unwrap();
    producer.flush().await;
    stored_once(&node, 2);
    assert!(first.await.is_ok() && second.await.is_ok());

    let third = producer.enqueue("c").await.unwrap();
    producer.close().await;
    assert!(third.await.is_ok());
    let error = producer.send("d").await.unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::Stopping));
    stored_once(&node, 3);
}

#[tokio::test]
async fn what_was_handed_over_is_sent_when_the_producer_is_dropped() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().start();
    let pending = producer.enqueue("a").await.unwrap();
    drop(producer);
    assert!(pending.await.is_ok());
}

#[tokio::test]
async fn another_node_takes_over() {
    let first = Node::start().await;
    let second = Node::join(Arc::clone(&first.shared)).await;
    let client = Client::connect([first.address.clone(), second.address.clone()]).unwrap();
    let producer = client.queue("q").producer().start();
    producer.send("a").await.unwrap();
    drop(first);
    producer.send("b").await.unwrap();
    stored_once(&second, 2);
}

#[tokio::test]
async fn time_over_says_that_it_may_have_happened() {
    let node = Node::start().await;
    let builder = Client::builder([node.address.clone()]).call_timeout(Duration::from_millis(300));
    let producer = builder.build().unwrap().queue("q").producer().start();
    node.shared.fail_with(std::iter::repeat_n(Fault::LoseAnswer, 10_000));
    let error = producer.send("a").await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    stored_once(&node, 1);
}

#[tokio::test]
async fn a_sink_has_a_result_for_every_message_when_it_is_flushed() {
    let node = Node::start().await;
    node.shared.fail_with([Fault::LoseAnswer, Fault::RefuseItems(Reason::NoLeader)]);
    let mut sink = node.client().queue("q").producer().bytes_in_flight(4_000).start().sink();
    let mut told = 0;
    for number in 0..500 {
        let body = if number == 7 { "bad".to_owned() } else { number.to_string() };
        // It is told with a later message, which is sent all the same.
        if let Err(error) = sink.feed(NewMessage::new(body)).await {
            assert_eq!((error.position, error.error.reason), (7, Reason::QueueFull));
            told += 1;
        }
    }
    assert_eq!(told, 1);
    sink.close().await.unwrap();
    stored_once(&node, 499);
}

#[tokio::test]
async fn a_sink_says_which_message_was_refused() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().start();
    let mut sink = producer.sink();
    for body in ["a", "bad b", "c", "bad d"] {
        sink.feed(NewMessage::new(body)).await.unwrap();
    }
    assert_eq!(sink.flush().await.unwrap_err().position, 1);
    assert_eq!(sink.flush().await.unwrap_err().position, 3);
    sink.flush().await.unwrap();
    producer.close().await;
    sink.feed(NewMessage::new("e")).await.unwrap();
    let closed = sink.flush().await.unwrap_err();
    assert_eq!((closed.position, closed.error.reason), (4, Reason::Stopping));
}
