//! Backups of whole clusters, and clusters that begin with one (F19, I10): docs/backup.md says what is promised.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::backup::{self, BackupError, Restored};
use leasehold_client::v1::{QueueCounters, QueueSettings};
use leasehold_client::{
    Client, Message, MessageId, NewMessage, QueueKind, Reason, ReceiveOptions, Rejection,
};
use leasehold_cluster_tests::{Plan, TestCluster, eventually, receive_some};

const HOUR: Duration = Duration::from_secs(3_600);
const QUEUES: [&str; 5] = ["standard", "orders", "dead", "failing", "short"];

async fn receive(client: &Client, queue: &str, messages_max: u32, lease: Duration) -> Vec<Message> {
    let options = ReceiveOptions { messages_max, lease: Some(lease), ..ReceiveOptions::default() };
    client.receive(queue, options).await.unwrap()
}

/// As many as one receive gives of what is there.
async fn receive_there(client: &Client, queue: &str, messages_max: u32, lease: Duration) -> Vec<Message> {
    let wait = Duration::from_secs(10);
    let options = ReceiveOptions { messages_max, lease: Some(lease), wait, ..ReceiveOptions::default() };
    receive_some(client, queue, &options).await
}

/// Leases everything that is ready, for an hour.
async fn receive_all(client: &Client, queue: &str) -> Vec<Message> {
    let mut all = Vec::new();
    eventually("all that is ready is received", async || {
        all.extend(receive(client, queue, 100, HOUR).await);
        counters(client, queue).await.ready == 0
    })
    .await;
    all
}

async fn send(client: &Client, queue: &str, messages: Vec<NewMessage>) -> Vec<MessageId> {
    let sent = client.send(queue, messages).await.unwrap();
    sent.into_iter().map(|sent| sent.unwrap().id).collect()
}

async fn ack(client: &Client, queue: &str, messages: &[Message]) {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    assert!(client.ack(queue, &receipts).await.unwrap().iter().all(Result::is_ok));
}

async fn counters(client: &Client, queue: &str) -> QueueCounters {
    client.describe_queue(queue).await.unwrap().counters.unwrap()
}

fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect()
}

fn rows(name: &str, count: u32) -> Vec<NewMessage> {
    (0..count).map(|number| NewMessage::new(format!("{name}-{number}"))).collect()
}

/// What the first cluster gave out.
struct Before {
    leased: Vec<Message>,
    /// How often the message of "short" had been received.
    short_receives: u32,
    once: MessageId,
    counters: BTreeMap<&'static str, QueueCounters>,
}

/// Messages in every state, in queues of every kind.
async fn fill(client: &Client) -> Before {
    let plain = QueueSettings::default;
    client.create_queue("standard", plain(), 4).await.unwrap();
    let fifo = QueueSettings { kind: Some(QueueKind::Fifo as i32), ..plain() };
    client.create_queue("orders", fifo, 2).await.unwrap();
    client.create_queue("dead", plain(), 2).await.unwrap();
    let dead_letter_queue = Some("dead".to_owned());
    let failing = QueueSettings { dead_letter_queue, receives_max: Some(1000), ..plain() };
    client.create_queue("failing", failing, 2).await.unwrap();
    client.create_queue("short", plain(), 1).await.unwrap();
    client.create_queue("busy", plain(), 4).await.unwrap();
    send(client, "standard", rows("standard", 200)).await;
    let done = receive_there(client, "standard", 10, HOUR).await;
    ack(client, "standard", &done).await;
    let leased = receive_there(client, "standard", 20, HOUR).await;
    let later = NewMessage::new("later").delay(Duration::from_secs(900));
    let once = NewMessage::new("once").deduplication_id("id-1").attribute("colour", "String", "red");
    let once = send(client, "standard", vec![later, once]).await[1];
    for number in 0..5 {
        for group in ["a", "b"] {
            send(client, "orders", vec![NewMessage::new(number.to_string()).group(group)]).await;
        }
    }
    send(client, "failing", rows("failing", 300)).await;
    send(client, "short", rows("short", 1)).await;
    let short_receives = receive_there(client, "short", 1, Duration::from_secs(5)).await[0].receive_count;
    let mut counted = BTreeMap::new();
    for queue in ["standard", "orders", "short"] {
        counted.insert(queue, counters(client, queue).await);
    }
    Before { leased, short_receives, once, counters: counted }
}

/// What goes on while the backup is taken: rows that were sent, and rows that were asked to be acked.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    sent: Mutex<BTreeSet<String>>,
    settled: Mutex<BTreeSet<String>>,
}

async fn send_and_ack(client: Client, load: Arc<Load>) {
    for number in 0.. {
        let row = format!("busy-{number}");
        load.sent.lock().unwrap().insert(row.clone());
        send(&client, "busy", vec![NewMessage::new(row)]).await;
        let messages = receive(&client, "busy", 1, HOUR).await;
        load.settled.lock().unwrap().extend(bodies(&messages));
        if !messages.is_empty() {
            ack(&client, "busy", &messages).await;
        }
        if load.is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

async fn reject(client: Client, load: Arc<Load>) {
    while !load.is_over.load(Ordering::Relaxed) {
        let messages = receive(&client, "failing", 2, HOUR).await;
        let rejections =
            messages.into_iter().map(|message| Rejection::new(message.receipt, "no")).collect::<Vec<_>>();
        if !rejections.is_empty() {
            assert!(client.reject("failing", &rejections).await.unwrap().iter().all(Result::is_ok));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts nodes, and founds a cluster of them from a backup.
async fn restore(nodes: usize, folder: &Path) -> (TestCluster, Restored) {
    let mut cluster = TestCluster::empty(Vec::new());
    let names = (1..=nodes).map(|number| format!("m{number}")).collect::<Vec<_>>();
    for name in &names {
        cluster.add_process(name).await;
    }
    let members = names.iter().map(|name| cluster.init_node(name)).collect();
    // Any of them can be asked.
    let client = cluster.client_at(&names[nodes - 1]);
    let restored = backup::restore(&client, folder, members, 0).await.unwrap();
    cluster.wait_until_ready().await;
    (cluster, restored)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_goes_on_where_the_backup_was_taken() {
    let cluster = TestCluster::start(Plan::default()).await;
    let client = cluster.client();
    let mut before = fill(&client).await;
    let waiting = send(&client, "busy", rows("waiting", 500)).await;
    let load = Arc::new(Load::default());
    let work = [
        tokio::spawn(send_and_ack(client.clone(), load.clone())),
        tokio::spawn(reject(client.clone(), load.clone())),
    ];
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("backup");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let taken = backup::take(&client, &folder).await.unwrap();
    load.is_over.store(true, Ordering::Relaxed);
    for work in work {
        work.await.unwrap();
    }
    assert_eq!(backup::verify(&folder).unwrap(), taken);
    // The first life goes on after the copy: none of this is in it, and none of its names may come again.
    let lost = send(&client, "standard", rows("lost", 50)).await;
    before.leased.extend(receive_all(&client, "standard").await);
    cluster.end().await;
    for nodes in [3, 1] {
        let (cluster, restored) = restore(nodes, &folder).await;
        assert_ne!(restored.cluster_id, taken.cluster_id);
        let client = cluster.client();
        check_states(&client, &before, &lost).await;
        check_busy(&client, &load, waiting.len()).await;
        check_dead_letters(&client).await;
        // It is a cluster like any other: it starts again from its own disks.
        let name = format!("m{nodes}");
        let mut cluster = cluster;
        cluster.stop(&name).await;
        cluster.restart(&name).await;
        cluster.wait_until_ready().await;
        assert_eq!(cluster.client().list_queues("", 100, "").await.unwrap().queues.len(), QUEUES.len() + 1);
        cluster.end().await;
    }
}

async fn check_states(client: &Client, before: &Before, lost: &[MessageId]) {
    for (queue, wanted) in &before.counters {
        let found = counters(client, queue).await;
        let states = |counters: &QueueCounters| (counters.ready, counters.leased, counters.delayed);
        if *queue == "short" {
            assert_eq!(found.ready + found.leased, 1, "{queue}");
        } else {
            assert_eq!(states(&found), states(wanted), "{queue}");
        }
    }
    // Receipts of the other cluster are worth nothing here, those of leases that are still in force too.
    for outcome in client.ack("standard", &[before.leased[0].receipt.clone()]).await.unwrap() {
        assert_eq!(outcome.unwrap_err().reason, Reason::ReceiptForged);
    }
    let again = NewMessage::new("once").deduplication_id("id-1");
    let again = client.send("standard", vec![again]).await.unwrap().pop().unwrap().unwrap();
    assert!(again.duplicate && again.id == before.once, "{again:?}");
    let fresh = send(client, "standard", rows("fresh", 50)).await;
    assert!(fresh.iter().all(|id| !lost.contains(id)), "an id of a lost message came again");
    let granted = receive_all(client, "standard").await;
    let tokens = |messages: &[Message]| {
        let mut tokens = BTreeMap::new();
        for message in messages {
            let last = tokens.entry(message.id.partition).or_insert((u64::MAX, 0));
            *last = (message.fencing_token.min(last.0), message.fencing_token.max(last.1));
        }
        tokens
    };
    let old = tokens(&before.leased);
    for (partition, (first, _)) in tokens(&granted) {
        assert!(old.get(&partition).is_none_or(|(_, last)| first > *last), "fencing tokens of {partition}");
    }
    let colour = granted.iter().find(|message| message.body == "once").unwrap();
    assert_eq!(colour.attribute("colour").unwrap(), "red");
    for (group, number) in [("a", "0"), ("b", "0")] {
        let first = receive_there(client, "orders", 1, HOUR).await.pop().unwrap();
        assert_eq!(&first.body[..], number.as_bytes(), "{group}");
    }
    // A lease that was in force ends here, and its grant counts.
    let mut short = Vec::new();
    eventually("the lease of the backup ends", async || {
        short.extend(receive(client, "short", 1, HOUR).await);
        !short.is_empty()
    })
    .await;
    assert!(short[0].receive_count > before.short_receives, "{}", short[0].receive_count);
}

/// What was sent before the backup and not settled since is there, and nothing that was never sent.
async fn check_busy(client: &Client, load: &Load, waiting: usize) {
    let found = bodies(&receive_all(client, "busy").await);
    let unique = found.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(unique.len(), found.len(), "nothing comes twice");
    let (sent, settled) = (load.sent.lock().unwrap(), load.settled.lock().unwrap());
    let wanted = (0..waiting).map(|number| format!("waiting-{number}")).collect::<BTreeSet<_>>();
    let missing = wanted.difference(&unique).filter(|row| !settled.contains(*row)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "{missing:?}");
    let invented = unique.iter().filter(|row| !sent.contains(*row) && !wanted.contains(*row));
    assert_eq!(invented.count(), 0);
}

/// While messages moved from one queue to the other: each is in one of them, once.
async fn check_dead_letters(client: &Client) {
    let mut found = Vec::new();
    eventually("no message is on its way", async || {
        let (failing, dead) = (counters(client, "failing").await, counters(client, "dead").await);
        failing.dead == 0 && failing.ready + failing.leased + dead.ready + dead.leased == 300
    })
    .await;
    let leased = counters(client, "failing").await.leased;
    for queue in ["failing", "dead"] {
        found.extend(bodies(&receive_all(client, queue).await));
    }
    let unique = found.iter().collect::<BTreeSet<_>>();
    assert_eq!((unique.len(), found.len() as u64 + leased), (found.len(), 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sound_backup_founds_nothing() {
    let cluster = TestCluster::start(Plan { nodes: 1, partitions: 2, ..Plan::default() }).await;
    let client = cluster.client();
    client.create_queue("work", QueueSettings::default(), 2).await.unwrap();
    send(&client, "work", rows("row", 100)).await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("backup");
    let taken = backup::take(&client, &folder).await.unwrap();
    assert_eq!((taken.queues, taken.messages(), taken.partitions().count()), (1, 100, 2));
    let again = backup::take(&client, &folder).await.unwrap_err();
    assert!(matches!(again, BackupError::NotEmpty { .. }), "{again}");
    let mut empty = TestCluster::empty(Vec::new());
    empty.add_process("m1").await;
    let node = || vec![empty.init_node("m1")];
    let file = folder.join(&taken.parts[0].file);
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let error = backup::restore(&empty.client(), &folder, node(), 0).await.unwrap_err();
    assert!(matches!(&error, BackupError::Damaged { path, .. } if *path == file), "{error}");
    fs::write(&file, &whole).unwrap();
    let (manifest, aside) = (folder.join("manifest"), folder.join("aside"));
    fs::rename(&manifest, &aside).unwrap();
    let error = backup::restore(&empty.client(), &folder, node(), 0).await.unwrap_err();
    assert!(matches!(error, BackupError::Incomplete { .. }), "{error}");
    fs::rename(&aside, &manifest).unwrap();
    // Not over what is there.
    let error = backup::restore(&client, &folder, vec![cluster.init_node("n1")], 0).await.unwrap_err();
    assert!(
        matches!(&error, BackupError::Client(error) if error.reason == Reason::AlreadyInitialised),
        "{error}"
    );
    assert_eq!(counters(&client, "work").await.ready, 100);
    // The nodes that were asked for in vain are as they were.
    backup::restore(&empty.client(), &folder, node(), 0).await.unwrap();
    assert_eq!(counters(&empty.client(), "work").await.ready, 100);
    empty.end().await;
    cluster.end().await;
}
