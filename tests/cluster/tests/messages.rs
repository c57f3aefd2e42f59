//! The life of messages, through the client, on three nodes.

use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{NewMessage, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster};

fn receive(messages_max: u32) -> ReceiveOptions {
    ReceiveOptions { messages_max, wait: Duration::from_secs(10), ..ReceiveOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_received_and_acknowledged() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    assert!(client.create_queue("work", QueueSettings::default(), 1).await.unwrap());
    assert!(!client.create_queue("work", QueueSettings::default(), 1).await.unwrap());
    let sent = client.send("work", vec![NewMessage::new("one"), NewMessage::new("two")]).await.unwrap();
    assert!(sent.iter().all(Result::is_ok));
    let mut messages = client.receive("work", receive(10)).await.unwrap();
    messages.sort_by_key(|message| message.body.clone());
    assert_eq!(messages.iter().map(|message| &message.body[..]).collect::<Vec<_>>(), [&b"one"[..], b"two"]);
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    assert!(client.ack("work", &receipts).await.unwrap().iter().all(Result::is_ok));
    let described = client.describe_queue("work").await.unwrap().counters.unwrap();
    assert_eq!((described.ready, described.leased), (0, 0));
    cluster.end().await;
}
