//! Consumers: credit, leases that are kept, settling over losses, and endings.

#![allow(clippy::unwrap_used, reason = "it is a test")]

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Fault, Node, eventually};
use futures::StreamExt;
use leasehold_client::{Client, Consumer, Delivery, Outcome, QueueKind, Reason};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(30);
/// A lease that is extended by half time, which no machine sleeps through.
const SHORT: Duration = Duration::from_secs(6);

/// What comes next, before a slow machine would be taken for one that hangs.
async fn next(consumer: &mut Consumer) -> Delivery {
    timeout(LONG, consumer.next()).await.expect("a delivery comes in time").unwrap().unwrap()
}

#[tokio::test]
async fn messages_are_pulled_against_credit_and_acked() {
    let node = Node::start().await;
    let names: Vec<String> = (0..20).map(|number| format!("m{number}")).collect();
    node.shared.offer(&names.iter().map(String::as_str).collect::<Vec<_>>(), LONG);
    let mut consumer = node.client().queue("q").consumer().concurrency(2).buffer(2).name("me").start();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(consumer.next().await.unwrap().unwrap());
    }
    assert_eq!(node.shared.state().pushed, 4);
    for delivery in held {
        assert!(delivery.lease_left() > Duration::ZERO);
        delivery.ack().await.unwrap();
    }
    for _ in 4..20 {
        consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    assert_eq!(node.shared.acked().len(), 20);
    assert_eq!(node.shared.state().starts[0].1.consumer, "me");
}

#[tokio::test]
async fn the_concurrency_of_a_stream_can_change() {
    let node = Node::start().await;
    let names: Vec<String> = (0..20).map(|number| format!("m{number}")).collect();
    node.shared.offer(&names.iter().map(String::as_str).collect::<Vec<_>>(), LONG);
    let mut consumer = node.client().queue("q").consumer().concurrency(2).buffer(1).start();
    eventually("it has as many as it may", || node.shared.state().pushed == 3).await;
    consumer.set_concurrency(6);
    eventually("it has more", || node.shared.state().pushed == 7).await;
    consumer.set_concurrency(1);
    // Six are settled, and one is asked for: two in hand are as many as it may have now.
    for _ in 0..6 {
        consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    eventually("it asks for one more", || node.shared.state().pushed == 8).await;
    let held = [consumer.next().await.unwrap().unwrap(), consumer.next().await.unwrap().unwrap()];
    held[0].extend(LONG).await.unwrap();
    assert_eq!(node.shared.state().pushed, 8);
}

#[tokio::test]
async fn thousands_of_acks_at_once_all_have_their_answer() {
    let node = Node::start().await;
    let names: Vec<String> = (0..5_000).map(|number| format!("m{number}")).collect();
    node.shared.offer(&names.iter().map(String::as_str).collect::<Vec<_>>(), LONG);
    let mut consumer = node.client().queue("q").consumer().concurrency(5_000).start();
    let mut held = Vec::new();
    while held.len() < 5_000 {
        held.push(consumer.next().await.unwrap().unwrap());
    }
    let acks: Vec<_> = held.into_iter().map(Delivery::ack).collect();
    for ack in acks {
        ack.await.unwrap();
    }
    assert_eq!(node.shared.acked().len(), 5_000);
}

#[tokio::test]
async fn a_dropped_delivery_is_released() {
    let node = Node::start().await;
    node.shared.offer(&["dropped", "later"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    drop(consumer.next().await.unwrap().unwrap());
    consumer.next().await.unwrap().unwrap().release(Duration::from_secs(7)).await.unwrap();
    let dropped = (b"dropped".to_vec(), 0);
    eventually("both are released", || node.shared.released().len() == 2).await;
    assert_eq!(node.shared.released(), [dropped, (b"later".to_vec(), 7_000)].into());
}

#[tokio::test]
async fn the_lease_of_a_held_message_is_extended() {
    let node = Node::start().await;
    node.shared.offer(&["held"], SHORT);
    let mut consumer = node.client().queue("q").consumer().lease(LONG).start();
    let delivery = next(&mut consumer).await;
    eventually("it is extended", || node.shared.extensions() > 0).await;
    eventually("the lease is long", || delivery.lease_left() > LONG / 2).await;
    assert!(node.shared.reaches("held").contains(&30_000));
    delivery.extend(LONG * 3).await.unwrap();
    assert!(delivery.lease_left() > LONG * 2);
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn a_lease_without_end_ends_nothing_else() {
    let node = Node::start().await;
    node.shared.offer(&["endless", "next"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    let delivery = consumer.next().await.unwrap().unwrap();
    // This node takes any.
    delivery.extend(Duration::MAX).await.unwrap();
    assert!(delivery.lease_left() > LONG);
    delivery.ack().await.unwrap();
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
}

#[tokio::test]
async fn a_message_that_waits_is_extended_too_until_the_maximum() {
    let node = Node::start().await;
    node.shared.offer(&["waits"], SHORT);
    let consumer = node.client().queue("q").consumer().start();
    eventually("it is extended again and again", || node.shared.extensions() > 2).await;
    drop(consumer);

    let node = Node::start().await;
    node.shared.offer(&["ends"], SHORT);
    let mut consumer = node.client().queue("q").consumer().keep_leases_for(Duration::ZERO).start();
    let delivery = next(&mut consumer).await;
    timeout(LONG, delivery.lease_lost().cancelled()).await.expect("the lease ends");
    assert_eq!(delivery.lease_left(), Duration::ZERO);
    assert_eq!(node.shared.extensions(), 0);
}

/// Nobody takes them: it has no more in its memory than it was to have.
#[tokio::test]
async fn a_consumer_that_hangs_gives_back_what_it_has_and_asks_for_no_more() {
    let node = Node::start().await;
    let names: Vec<String> = (0..20).map(|number| format!("m{number}")).collect();
    node.shared.offer(&names.iter().map(String::as_str).collect::<Vec<_>>(), SHORT);
    let builder = node.client().queue("q").consumer().concurrency(2).buffer(1);
    let mut consumer = builder.keep_leases_for(Duration::from_secs(1)).start();
    eventually("what it has goes back", || node.shared.untouched().len() == 3).await;
    // What it asked for before this would be there by now.
    consumer.set_concurrency(3);
    eventually("it asks for one more", || node.shared.state().pushed == 4).await;
    // What waited for too long is dropped by whoever takes the next, and has its place no more.
    let taken = next(&mut consumer).await;
    assert!(!["m0", "m1", "m2"].map(str::as_bytes).contains(&&taken.body[..]));
    eventually("it asks for others", || node.shared.state().pushed > 4).await;
}

#[tokio::test]
async fn a_refused_extension_says_that_the_lease_is_lost() {
    let node = Node::start().await;
    node.shared.state().stale.insert(b"taken".to_vec());
    node.shared.offer(&["taken"], LONG / 30);
    let mut consumer = node.client().queue("q").consumer().lease(LONG).start();
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.lease_lost().cancelled().await;
    assert_eq!(delivery.lease_left(), Duration::ZERO);
    let error = delivery.ack().await.unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::ReceiptStale));
}

#[tokio::test]
async fn receipts_outlive_the_stream() {
    let node = Node::start().await;
    node.shared.offer(&["a", "b"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    let first = consumer.next().await.unwrap().unwrap();
    let second = consumer.next().await.unwrap().unwrap();
    node.shared.reset_streams();
    first.ack().await.unwrap();
    eventually("there is another stream", || node.shared.state().starts.len() > 1).await;
    node.shared.fail_with([Fault::LoseAnswer]);
    second.ack().await.unwrap();
    assert_eq!(node.shared.acked().len(), 2);
    let state = node.shared.state();
    let of_second = state.settles.iter().filter(|settle| settle.acks.iter().any(|ack| ack == "b"));
    let ids: Vec<_> = of_second.map(|settle| settle.request).collect();
    assert_eq!(ids.len(), 2, "the lost request came again");
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn credit_held_is_not_given_again_on_another_stream() {
    let node = Node::start().await;
    node.shared.offer(&["a", "b", "c", "d", "e"], LONG);
    let mut consumer = node.client().queue("q").consumer().concurrency(2).buffer(1).start();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(consumer.next().await.unwrap().unwrap());
    }
    node.shared.reset_streams();
    eventually("there is another stream", || node.shared.state().starts.len() > 1).await;
    held.pop().unwrap().ack().await.unwrap();
    held.push(consumer.next().await.unwrap().unwrap());
    assert_eq!(node.shared.state().pushed, 4);
}

#[tokio::test]
async fn each_leader_is_pulled_from() {
    let first = Node::start().await;
    let second = Node::join(Arc::clone(&first.shared)).await;
    first.shared.lead_at(&[&first.address, &second.address]);
    let mut consumer = first.client().queue("q").consumer().start();
    eventually("both are asked", || first.shared.state().starts.len() == 2).await;
    let starts = first.shared.state().starts.clone();
    assert!(starts.iter().all(|(_, start)| start.local_shards_only));
    assert_ne!(starts[0].0, starts[1].0);
    first.shared.offer(&["a"], LONG);
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();

    first.shared.lead_at(&[&second.address, &second.address]);
    drop(first);
    second.shared.offer(&["b"], LONG);
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
}

#[tokio::test]
async fn a_leader_out_of_reach_does_not_stop_the_others() {
    let node = Node::start().await;
    node.shared.lead_at(&[&node.address, &fake::dead_address()]);
    node.shared.offer(&["a"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    let any = || node.shared.state().starts.iter().any(|(_, start)| !start.local_shards_only);
    eventually("one stream for all shards", any).await;
    node.shared.offer(&["b"], LONG);
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
}

#[tokio::test]
async fn what_waits_is_released_at_the_stop_and_what_is_held_can_be_acked() {
    let node = Node::start().await;
    node.shared.offer(&["held", "waits"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    let held = consumer.next().await.unwrap().unwrap();
    eventually("both are pushed", || node.shared.state().pushed == 2).await;
    consumer.stop();
    assert!(consumer.next().await.is_none());
    let closing = tokio::spawn(consumer.close());
    eventually("it is released", || node.shared.released().contains_key(b"waits".as_ref())).await;
    held.ack().await.unwrap();
    closing.await.unwrap();
    assert_eq!(node.shared.released().len(), 1);
}

#[tokio::test]
async fn a_queue_that_is_not_there_ends_the_consumer() {
    let node = Node::start().await;
    let mut consumer = node.client().queue("unknown").consumer().start();
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::UnknownQueue);
    assert!(consumer.next().await.is_none());
}

#[tokio::test]
async fn a_node_without_a_cluster_ends_a_consumer_only_where_no_other_is() {
    let (outsider, node) = (Node::start().await, Node::start().await);
    outsider.shared.state().is_outside = true;
    node.shared.offer(&["a"], LONG);
    let client = Client::connect([outsider.address.clone(), node.address.clone()]).unwrap();
    let mut consumer = client.queue("q").consumer().start();
    consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    let mut alone = outsider.client().queue("q").consumer().start();
    assert_eq!(alone.next().await.unwrap().unwrap_err().reason, Reason::NotInitialised);
    assert!(alone.next().await.is_none());
}

/// The queue that has the name now may be of another kind.
#[tokio::test]
async fn order_holds_after_a_stream_ended_until_the_queue_is_known_again() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Standard, LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    eventually("there is a stream", || node.shared.state().starts.len() == 1).await;
    node.shared.describe(&node.address, QueueKind::Fifo, LONG);
    node.shared.end_streams();
    eventually("there is another stream", || node.shared.state().starts.len() == 2).await;
    node.shared.offer_groups(&[("a1", Some("a"))], LONG);
    let first = consumer.next().await.unwrap().unwrap();
    assert_eq!(first.ordered_group(), Some("a"));
    first.ack().await.unwrap();

    node.shared.describe(&node.address, QueueKind::Standard, LONG);
    node.shared.end_streams();
    for _ in 0..3_000 {
        node.shared.offer_groups(&[("tenant", Some("a"))], LONG);
        let delivery = next(&mut consumer).await;
        let is_free = delivery.ordered_group().is_none();
        delivery.ack().await.unwrap();
        if is_free {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is never known again");
}

#[tokio::test]
async fn a_message_that_waits_has_a_short_lease_until_somebody_begins() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Standard, LONG);
    node.shared.offer(&["begun", "waits"], SHORT);
    let mut consumer = node.client().queue("q").consumer().start();
    let begun = next(&mut consumer).await;
    assert_eq!(node.shared.state().starts[0].1.lease_ms, Some(5_000));
    eventually("its lease is that of the queue", || begun.lease_left() > LONG / 2).await;
    assert_eq!(node.shared.reaches("begun")[0], 30_000);
    eventually("the other is kept too", || !node.shared.reaches("waits").is_empty()).await;
    assert!(node.shared.reaches("waits").iter().all(|reach_ms| *reach_ms == 5_000));
    begun.ack().await.unwrap();
}

#[tokio::test]
async fn a_message_whose_lease_was_lost_while_it_waited_is_not_handed_out() {
    let node = Node::start().await;
    node.shared.state().stale.insert(b"lost".to_vec());
    node.shared.offer(&["lost", "good"], SHORT);
    let mut consumer = node.client().queue("q").consumer().start();
    // Their extensions are answered together, and the next one comes after that.
    eventually("the loss is known", || node.shared.reaches("good").len() > 1).await;
    assert!(!node.shared.reaches("lost").is_empty());
    assert_eq!(next(&mut consumer).await.body, "good");
}

/// It comes again, and they after it.
#[tokio::test]
async fn what_is_behind_a_message_of_its_group_that_was_lost_while_it_waited_goes_back() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Fifo, LONG);
    node.shared.state().stale.insert(b"a1".to_vec());
    let mut consumer = node.client().queue("q").consumer().start();
    node.shared.offer_groups(&[("a1", Some("a")), ("b1", Some("b")), ("a2", Some("a"))], SHORT);
    // Their extensions are answered together, and the next one comes after that.
    eventually("the loss is known", || node.shared.reaches("b1").len() > 1).await;
    assert!(!node.shared.reaches("a1").is_empty());
    assert_eq!(next(&mut consumer).await.body, "b1");
    eventually("it goes back", || node.shared.released().contains_key(b"a2".as_ref())).await;
}

/// Whatever became of it: it comes again, or may.
#[tokio::test]
async fn what_is_behind_a_message_of_its_group_that_is_not_done_is_not_handed_out() {
    for how in ["release", "postpone", "give back", "drop", "refused ack"] {
        let node = Node::start().await;
        node.shared.describe(&node.address, QueueKind::Fifo, LONG);
        let mut consumer = node.client().queue("q").consumer().start();
        node.shared.offer_groups(&[("a1", Some("a")), ("a2", Some("a")), ("b1", Some("b"))], LONG);
        let first = consumer.next().await.unwrap().unwrap();
        assert_eq!(first.body, "a1");
        match how {
            "release" => first.release(Duration::ZERO).await.unwrap(),
            "postpone" => first.postpone(Duration::ZERO).await.unwrap(),
            "give back" => first.give_back().await.unwrap(),
            "drop" => drop(first),
            _ => {
                node.shared.state().stale.insert(b"a1".to_vec());
                first.ack().await.unwrap_err();
            }
        }
        assert_eq!(consumer.next().await.unwrap().unwrap().body, "b1", "{how}");
        eventually("it goes back", || node.shared.released().contains_key(b"a2".as_ref())).await;
    }
}

#[tokio::test]
async fn a_rejected_message_goes_with_its_reason_or_is_released() {
    let node = Node::start().await;
    node.shared.offer(&["bad", "worse"], LONG);
    let mut consumer = node.client().queue("q").consumer().start();
    consumer.next().await.unwrap().unwrap().reject("é".repeat(600)).await.unwrap();
    assert_eq!(node.shared.rejected()[b"bad".as_ref()], "é".repeat(512));
    node.shared.state().has_no_dead_letter_queue = true;
    let error = consumer.next().await.unwrap().unwrap().reject("no").await.unwrap_err();
    assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::NoDeadLetterQueue));
    eventually("it is released", || node.shared.released().contains_key(b"worse".as_ref())).await;
}
