//! A cluster whose nodes and clients have to believe each other.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, Error, NewMessage, Outcome, ReceiveOptions, Tls};
use leasehold_cluster_tests::{Authorised, PATIENCE, Plan, TestCluster, eventually, receive_some};
use leasehold_tls::testing::TestAuthority;
use leasehold_tls::{Authorities, Identity, connect, connector};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Not too long to wait for a call that is not answered.
const SHORT: Duration = Duration::from_secs(3);
/// Long enough, on a busy machine too, for a call that is answered.
const LONG: Duration = Duration::from_secs(30);
/// Four of 256 KiB each time: more than the log holds without a snapshot.
const SENDS: u32 = 100;

async fn cluster(known: &Authorised) -> TestCluster {
    let (settings, tls) = (known.settings(), Some(known.of(&known.clients)));
    TestCluster::start(Plan { partitions: 1, settings, tls, ..Plan::default() }).await
}

async fn ask(address: SocketAddr, tls: Option<Tls>, time: Duration) -> Result<(), Error> {
    let builder = Client::builder([address.to_string()]).call_timeout(time);
    let client = tls.into_iter().fold(builder, |builder, tls| builder.tls(tls)).build().unwrap();
    client.cluster_status().await.map(drop)
}

/// Why nothing was asked. On a busy machine the time may end within an attempt or a handshake: then it is asked again.
async fn refusal(address: SocketAddr, tls: Tls) -> Error {
    let end = Instant::now() + PATIENCE;
    loop {
        let error = ask(address, Some(tls.clone()), SHORT).await.unwrap_err();
        let is_told = error.outcome == Outcome::NotDone && !error.detail.contains("takes too long");
        if is_told || Instant::now() >= end {
            return error;
        }
    }
}

/// What a node answers on the port of its peers to somebody who speaks another version.
async fn answer_to_peer(
    address: SocketAddr,
    nodes: &TestAuthority,
    of: Option<&TestAuthority>,
) -> io::Result<String> {
    let identity = of.map(|authority| {
        let (certificate, key) = authority.signs(&["a"]);
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    });
    let authorities = Authorities::from_pem(nodes.pem().as_bytes()).unwrap();
    let connector = connector(&authorities, identity.as_ref(), &[b"leasehold-lane/1"]).unwrap();
    let mut stream = connect(&connector, "127.0.0.1", TcpStream::connect(address).await?).await?;
    stream.write_all(b"LEASEHOLD LANE 0\nwhatever it says then").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_is_served_and_nobody_else() {
    let known = Authorised::default();
    let cluster = cluster(&known).await;
    let client = cluster.client();
    client.create_queue("q", QueueSettings::default(), 1).await.unwrap();
    // Two of the three nodes ask the leader.
    for name in ["n1", "n2", "n3"] {
        let client = cluster.client_at(name);
        client.send("q", vec![NewMessage::new(name)]).await.unwrap().pop().unwrap().unwrap();
        let options = ReceiveOptions { wait: Duration::from_secs(10), ..ReceiveOptions::default() };
        let message = receive_some(&client, "q", &options).await.pop().unwrap();
        assert_eq!(message.body, name);
        assert!(client.ack("q", &[message.receipt]).await.unwrap()[0].is_ok());
    }

    let address = cluster.node("n1").client_address();
    let stranger = TestAuthority::default();
    let (certificate, key) = known.clients.signs(&["client"]);
    let believes_another = Tls::new().authorities(stranger.pem()).identity(certificate, key);
    let refused = [
        ("no TLS", None),
        ("no certificate", Some(known.tls())),
        ("a certificate of somebody else", Some(known.of(&stranger))),
        ("a certificate of a node's authority", Some(known.of(&known.nodes))),
    ];
    for (whose, tls) in refused {
        assert!(ask(address, tls, SHORT).await.is_err(), "{whose}");
    }
    let error = refusal(address, believes_another).await;
    assert!(error.outcome == Outcome::NotDone && error.detail.contains("certificate"), "{error}");
    let of_client = Some(known.of(&known.clients));
    ask(address, of_client, LONG).await.expect("the same with a certificate that is known");

    let peers = cluster.node("n1").peer_address();
    let answer = answer_to_peer(peers, &known.nodes, Some(&known.nodes)).await.unwrap();
    assert!(answer.contains("LEASEHOLD LANE 1"), "{answer}");
    for (whose, of) in
        [("none", None), ("a client's", Some(&known.clients)), ("a stranger's", Some(&stranger))]
    {
        assert!(answer_to_peer(peers, &known.nodes, of).await.is_err(), "a certificate: {whose}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_were_away_come_back_over_tls() {
    let known = Authorised::default();
    let mut cluster = cluster(&known).await;
    cluster.client().create_queue("q", QueueSettings::default(), 1).await.unwrap();
    cluster.stop("n3").await;
    let client = cluster.client_at("n1");
    let body = vec![7; 256 * 1024];
    for _ in 0..SENDS {
        client.send("q", vec![NewMessage::new(body.clone()); 4]).await.unwrap();
    }
    let snapshot =
        |cluster: &TestCluster, name: &str| cluster.dir_of(name).join("log").join("snapshot-00000001");
    eventually("the nodes have taken a snapshot", async || {
        snapshot(&cluster, "n1").exists() && snapshot(&cluster, "n2").exists()
    })
    .await;
    cluster.restart("n3").await;
    eventually("the node that was away has the snapshot", async || snapshot(&cluster, "n3").exists()).await;
    cluster.end().await;
}
