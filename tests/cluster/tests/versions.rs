//! A cluster is upgraded node by node: it does what all of its nodes can.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Lease, NewMessage, Reason, ReceiveOptions};
use leasehold_cluster_tests::{Plan, TestCluster, eventually, receive_some};
use leasehold_node::config::Config;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// The settings of nodes that do what the first build did.
fn held() -> Vec<(String, String)> {
    vec![("version_max".to_owned(), "1".to_owned())]
}

async fn version(client: &Client) -> u32 {
    client.cluster_status().await.unwrap().version
}

async fn wait_for_version(cluster: &TestCluster, wanted: u32) {
    for name in NAMES {
        let client = cluster.client_at(name);
        eventually("every node knows of the version", async || version(&client).await == wanted).await;
    }
}

/// Puts the only message of a queue off, so often; how often it was received then.
async fn put_off(client: &Client, queue: &str, times: u32) -> u32 {
    client.send(queue, vec![NewMessage::new("later")]).await.unwrap().remove(0).unwrap();
    let options = ReceiveOptions { wait: Duration::from_secs(1), ..ReceiveOptions::default() };
    for _ in 0..times {
        let message = receive_some(client, queue, &options).await.remove(0);
        let later = [Lease::new(message.receipt, Duration::from_millis(1))];
        client.postpone(queue, &later).await.unwrap().remove(0).unwrap();
    }
    let message = receive_some(client, queue, &options).await.remove(0);
    client.ack(queue, &[message.receipt]).await.unwrap().remove(0).unwrap();
    message.receive_count
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_with_a_version_waits_for_the_last_node() {
    let mut cluster = TestCluster::start(Plan { settings: held(), ..Plan::default() }).await;
    let client = cluster.client();
    let dead = QueueSettings::default();
    client.create_queue("dead", dead, 1).await.unwrap();
    let settings = QueueSettings {
        dead_letter_queue: Some("dead".to_owned()),
        receives_max: Some(2),
        ..QueueSettings::default()
    };
    client.create_queue("work", settings, 1).await.unwrap();
    assert_eq!(version(&client).await, 1);
    // It waits as long as it was told, and the receive counts: one more would be the last.
    assert_eq!(put_off(&client, "work", 1).await, 2);

    cluster.set("version_max", "0");
    for name in NAMES {
        assert_eq!(version(&cluster.client()).await, 1, "{name} is not upgraded yet");
        cluster.stop(name).await;
        cluster.restart(name).await;
        cluster.wait_until_ready().await;
    }
    wait_for_version(&cluster, 2).await;
    let client = cluster.client();
    assert_eq!(put_off(&client, "work", 4).await, 5);
    assert_eq!(client.describe_queue("dead").await.unwrap().counters.unwrap().ready, 0);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_build_has_no_place_in_a_cluster_that_went_on() {
    let mut cluster = TestCluster::start(Plan { partitions: 1, ..Plan::default() }).await;
    wait_for_version(&cluster, 2).await;
    cluster.set("version_max", "1");
    cluster.add_process("n4").await;
    let refused = cluster.client_at("n1").add_node(cluster.init_node("n4")).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidArgument);
    assert!(refused.detail.contains("version 2") && refused.detail.contains("n4"), "{refused}");
    // As a node that was a member, it does not serve, and the others go on without it.
    cluster.stop("n3").await;
    assert!(!is_ready_when_held(&cluster, "n3").await);
    let client = cluster.client_at("n1");
    client.create_queue("work", QueueSettings::default(), 1).await.unwrap();
    assert_eq!(put_off(&client, "work", 2).await, 3);
    cluster.end().await;
}

/// Starts a stopped node as an earlier build for some seconds.
async fn is_ready_when_held(cluster: &TestCluster, name: &str) -> bool {
    let mut settings = held();
    settings.extend([
        ("name".to_owned(), name.to_owned()),
        ("data_dir".to_owned(), cluster.dir_of(name).display().to_string()),
        ("client_listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("peer_listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("admin_listen".to_owned(), "off".to_owned()),
        ("log.segment_bytes".to_owned(), (16 << 20).to_string()),
        ("limits.disk_low_bytes".to_owned(), (64 << 20).to_string()),
    ]);
    let config = Config::load(None, std::iter::empty(), &settings).unwrap();
    let Ok(node) = leasehold_node::Node::start(config).await else { return false };
    let mut was_ready = false;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        was_ready |= node.is_ready();
    }
    node.shutdown().await;
    was_ready
}
