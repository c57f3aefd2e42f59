//! Members that change at the wrong moment, or in the wrong way: nothing stands still, and nobody votes for what it has lost. And what a
//! node tells of itself.
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

/// A volume that is not mounted looks like a folder that was never used: the node would vote as if it had never voted.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_is_gone_does_not_start_without_it() {
    let mut cluster = TestCluster::start(Plan::default()).await;
    cluster.client().create_queue("q", QueueSettings::default(), 4).await.unwrap();
    cluster.stop("n3").await;
    let (log, elsewhere) = (cluster.dir_of("n3").join("log"), cluster.dir_of("n3").join("elsewhere"));
    std::fs::rename(&log, &elsewhere).unwrap();
    for _ in 0..2 {
        let refusal = cluster.refusal("n3").await;
        assert!(refusal.contains("is not the one with which this node joined"), "{refusal}");
    }
    send(&cluster.client()).await;
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&elsewhere, &log).unwrap();
    cluster.restart("n3").await;
    cluster.wait_until_ready().await;
    send(&cluster.client()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_identity_is_taken_into_no_cluster() {
    let mut cluster = TestCluster::start(Plan { nodes: 1, partitions: 1, ..Plan::default() }).await;
    cluster.stop("n1").await;
    let identity = cluster.dir_of("n1").join("identity");
    std::fs::remove_file(&identity).unwrap();
    cluster.restart("n1").await;
    let refused = cluster.client().init_cluster(vec![cluster.init_node("n1")], 1, 1).await.unwrap_err();
    assert!(refused.detail.contains("its identity is gone"), "{refused}");
    assert!(!identity.exists());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_readiness_and_metrics_are_served() {
    let mut cluster = TestCluster::empty(Vec::new());
    cluster.add_process("n1").await;
    let node = cluster.node("n1");
    let channel =
        tonic::transport::Endpoint::from_shared(leasehold_cluster_tests::endpoint(node.client_address()));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut status = async || {
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        health.check(request).await.unwrap().into_inner().status()
    };
    let (serving, not_serving) = (
        tonic_health::pb::health_check_response::ServingStatus::Serving,
        tonic_health::pb::health_check_response::ServingStatus::NotServing,
    );
    eventually("a node without a cluster is not healthy", async || status().await == not_serving).await;
    let admin = node.admin_address().unwrap();
    assert!(get(admin, "/readyz").await.starts_with("HTTP/1.1 503"));
    cluster.client().init_cluster(vec![cluster.init_node("n1")], 1, 1).await.unwrap();
    eventually("a node that serves is healthy", async || status().await == serving).await;
    assert!(get(admin, "/readyz").await.starts_with("HTTP/1.1 200"));
    let client = cluster.client();
    client.create_queue("seen", QueueSettings::default(), 1).await.unwrap();
    let sent = client.send("seen", vec![NewMessage::new("x"); 7]).await.unwrap();
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    eventually("the queue is in the metrics", async || {
        let metrics = get(admin, "/metrics").await;
        metrics.lines().any(|line| {
            line.starts_with("leasehold_queue_ready{") && line.contains("\"seen\"") && line.ends_with(" 7")
        })
    })
    .await;
    cluster.end().await;
}

/// A plain HTTP answer, headers and all.
async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// There is nothing to hand over, and nobody else to go on: nothing stands still for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_hand_over_to_itself_goes_on() {
    let cluster = TestCluster::start(Plan { nodes: 1, partitions: 1, ..Plan::default() }).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    client.transfer_leader(0, "n1").await.unwrap();
    send(&client).await;
    cluster.end().await;
}
