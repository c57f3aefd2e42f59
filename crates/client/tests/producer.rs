//! Producers: batches, results for each message, and losses of the stream.

mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fault, Node};
use futures::{FutureExt, SinkExt};
use leasehold_client::v1::SendRequest;
use leasehold_client::{Client, NewMessage, Outcome, QueueKind, Reason};

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

/// A batch that has to be sent again would come behind those that were under way beside it.
#[tokio::test]
async fn what_goes_to_a_fifo_queue_keeps_its_order_when_batches_are_sent_again() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Fifo, Duration::from_secs(30));
    for _ in 0..5 {
        node.shared.fail_with([Fault::LoseAnswer, Fault::Refuse(Reason::Busy)]);
    }
    let producer = node.client().queue("q").producer().batch(10, 1024 * 1024).start();
    let results = producer.send_all(bodies(500)).await;
    assert!(results.iter().all(Result::is_ok));
    let stored = node.shared.state().stored.clone();
    let sent = bodies(500).into_iter().map(String::into_bytes).collect::<Vec<_>>();
    assert_eq!(stored, sent);
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

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn what_no_node_takes_is_refused_at_once_and_harms_no_neighbour() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().start();
    let largest = NewMessage::new("x".repeat(MIB - 3)).attribute("a", "b", "c");
    let larger = NewMessage::new("y".repeat(MIB - 2)).attribute("a", "b", "c");
    let named = NewMessage::new("z").group("g".repeat(9 * MIB));
    let results = producer.send_all(["a".into(), larger, largest, named, NewMessage::new("b")]).await;
    assert!(results[0].is_ok() && results[2].is_ok() && results[4].is_ok());
    let errors = [1, 3].map(|at| results[at].as_ref().unwrap_err());
    for error in errors {
        assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::MessageTooLarge));
    }
    let says = |bytes: usize| errors[0].detail.contains(&bytes.to_string());
    assert!(says(MIB + 1) && says(MIB), "{}", errors[0]);
    stored_once(&node, 3);
}

#[tokio::test]
async fn what_does_not_count_with_a_node_does_not_count_here() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().start();
    let body = || NewMessage::new("x".repeat(MIB));
    assert!(producer.send(body().attribute("AWS.TraceHeader", "String", "t".repeat(1_024))).await.is_ok());
    let error = producer.send(body().attribute("AWS.TraceHeader", "String", "t".repeat(1_025))).await;
    assert_eq!(error.unwrap_err().reason, Reason::MessageTooLarge);
}

#[tokio::test]
async fn a_batch_is_no_larger_than_a_node_takes() {
    let node = Node::start().await;
    let producer = node.client().queue("q").producer().batch(usize::MAX, usize::MAX).start();
    // Three that do not quite fill a batch, and the largest that there are.
    let len = |number: u8| if number % 4 == 3 { MIB } else { MIB - 2_500 };
    let results = producer.send_all((0..12).map(|number| vec![number; len(number)])).await;
    assert!(results.iter().all(Result::is_ok));
    let state = node.shared.state();
    let bytes = |send: &SendRequest| send.messages.iter().map(|message| message.body.len()).sum::<usize>();
    let largest = state.sends.iter().map(bytes).max().unwrap();
    assert!(largest > 3 * MIB && largest <= 4 * MIB, "{largest}");
}

#[tokio::test]
async fn a_node_without_a_cluster_is_left() {
    let (outsider, node) = (Node::start().await, Node::start().await);
    outsider.shared.state().is_outside = true;
    let client = Client::connect([outsider.address.clone(), node.address.clone()]).unwrap();
    client.queue("q").producer().start().send("a").await.unwrap();
    stored_once(&node, 1);
    let error = outsider.client().queue("q").producer().start().send("b").await.unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::NotInitialised));
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

/// Whoever closed it, and although it takes no more messages.
#[tokio::test]
async fn flush_and_close_wait_for_results_while_another_clone_closes() {
    for how in ["flush", "close"] {
        let node = Node::start().await;
        node.shared.fail_with(std::iter::repeat_n(Fault::Refuse(Reason::Busy), 20));
        let producer = node.client().queue("q").producer().start();
        let other = producer.clone();
        let pending = producer.enqueue("a").await.unwrap();
        let mut closing = Box::pin(producer.close());
        assert!(closing.as_mut().now_or_never().is_none());
        // It is being closed when this is refused.
        assert_eq!(other.send("late").await.unwrap_err().reason, Reason::Stopping);
        match how {
            "flush" => other.flush().await,
            _ => other.close().await,
        }
        assert!(pending.now_or_never().is_some_and(|sent| sent.is_ok()), "{how}");
        closing.await;
        other.flush().await;
        other.close().await;
        stored_once(&node, 1);
    }
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
    let builder = Client::builder([node.address.clone()]).call_timeout(Duration::from_secs(3));
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
