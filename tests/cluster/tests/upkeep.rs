//! Members that change at the wrong moment, or in the wrong way: nothing stands still, and nobody votes for what it has lost.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage, Reason};
use leasehold_cluster_tests::{Plan, TestCluster, eventually};
use tokio::time::{Instant, sleep};

async fn send(client: &Client) {
    let sent = client.send("q", vec![NewMessage::new("still here")]).await.unwrap();
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
}

/// The two that would be left cannot decide anything without the one that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_for_those_who_have_to_decide_then() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("q", QueueSettings::default(), 4).await.unwrap();
    cluster.stop("n1").await;
    let client = cluster.client();
    // While a replica is still starting, a removal is refused.
    eventually("the removal is taken", async || client.remove_node("n3").await.is_ok()).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        send(&client).await;
        sleep(Duration::from_millis(100)).await;
    }
    cluster.restart("n1").await;
    eventually("the removed node has left", async || {
        let status = cluster.client_at("n1").cluster_status().await;
        status
            .is_ok_and(|status| !status.nodes.is_empty() && status.nodes.iter().all(|node| node.name != "n3"))
    })
    .await;
    cluster.stop("n3").await;
    send(&cluster.client()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_everything_is_not_added_as_what_it_was() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("q", QueueSettings::default(), 4).await.unwrap();
    cluster.stop("n3").await;
    std::fs::remove_dir_all(cluster.dir_of("n3")).unwrap();
    let client = cluster.client();
    cluster.restart("n3").await;
    let refused = client.add_node(cluster.init_node("n3")).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidArgument);
    assert!(refused.detail.contains("remove-node n3"), "{refused}");
    send(&client).await;
    cluster.end().await;
}
