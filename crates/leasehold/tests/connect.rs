//! `leasehold connect` as a process of its own, which is told to stop, or killed.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage};
use leasehold_connect::testing::{Endpoint, Reply};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longer than anything takes that works, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const MESSAGES: u64 = 12;

struct Scene {
    processes: Processes,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// A cluster with a queue of some messages.
    async fn new(lease: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_leasehold"));
        let processes = Processes::start(program, dir.path(), 2).await.unwrap();
        let client = processes.client().unwrap();
        let settings = QueueSettings { lease_ms: Some(lease.as_millis() as u64), ..QueueSettings::default() };
        client.create_queue("q", settings, 1).await.unwrap();
        let messages = (0..MESSAGES).map(|number| NewMessage::new(format!("{number}")));
        let sent = client.send("q", messages.collect()).await.unwrap();
        assert!(sent.iter().all(Result::is_ok));
        Self { processes, client, _dir: dir }
    }

    fn command(&self, url: &str, more: &[&str]) -> Command {
        let mut command = leasehold();
        command
            .args(["connect", "http", "--queue", "q", "--url", url, "--json", "--batch-size", "2"])
            .args(more);
        command.env("LEASEHOLD_ENDPOINT", self.processes.endpoints().join(","));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn connect(&self, url: &str, more: &[&str]) -> Child {
        self.command(url, more).spawn().unwrap()
    }

    async fn left(&self) -> (u64, u64) {
        let counters = self.client.describe_queue("q").await.unwrap().counters.unwrap();
        (counters.ready + counters.delayed, counters.leased)
    }
}

fn leasehold() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

async fn terminate(child: &Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
}

/// Tells a process to stop, and returns what it said last.
async fn stopped(child: Child) -> Value {
    terminate(&child).await;
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{errors}");
    serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{told}{errors}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_connector_had_comes_again_under_the_same_keys() {
    let scene = Scene::new(Duration::from_secs(5)).await;
    let is_stuck = Arc::new(AtomicBool::new(true));
    let stuck = Arc::clone(&is_stuck);
    let endpoint = Endpoint::start(move |_| {
        Reply::status(200).after(if stuck.load(Ordering::SeqCst) { PATIENCE * 10 } else { Duration::ZERO })
    })
    .await;
    let mut first = scene.connect(&endpoint.url(), &["--timeout", "15m"]);
    eventually("a request is under way", async || !endpoint.asked().is_empty()).await;
    first.kill().await.unwrap();
    let before = endpoint.asked().len();
    is_stuck.store(false, Ordering::SeqCst);
    let second = scene.connect(&endpoint.url(), &[]);
    eventually("the queue is empty", async || scene.left().await == (0, 0)).await;
    assert_eq!(stopped(second).await["acked"], MESSAGES);
    let mut deliveries = BTreeMap::<String, Vec<Value>>::new();
    for told in endpoint.asked().iter().flat_map(|asked| asked.messages()) {
        deliveries.entry(told["body"].as_str().unwrap().to_owned()).or_default().push(told);
    }
    assert_eq!(deliveries.len() as u64, MESSAGES);
    let of_killed = endpoint.asked()[..before].iter().flat_map(|asked| asked.bodies()).collect::<Vec<_>>();
    for body in &of_killed {
        let [first, second] = &deliveries[body][..] else { panic!("{:?}", deliveries[body]) };
        assert_eq!(first["idempotencyKey"], second["idempotencyKey"]);
        assert!(second["receiveCount"].as_u64() > first["receiveCount"].as_u64());
        assert!(second["fencingToken"].as_u64() > first["fencingToken"].as_u64());
    }
    scene.processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_requests_finish_and_the_rest_go() {
    let scene = Scene::new(Duration::from_secs(300)).await;
    let endpoint = Endpoint::start(|_| Reply::status(200).after(Duration::from_secs(2))).await;
    let child = scene.connect(&endpoint.url(), &["--concurrency", "1", "--concurrency-max", "1"]);
    eventually("a request is under way", async || !endpoint.asked().is_empty()).await;
    let told = stopped(child).await;
    let handled = endpoint.asked().iter().flat_map(|asked| asked.bodies()).count() as u64;
    assert_eq!((told["acked"].as_u64(), told["unsettled"].as_u64()), (Some(handled), Some(0)), "{told}");
    assert!(handled < MESSAGES, "it was stopped before the end");
    assert_eq!(scene.left().await, (MESSAGES - handled, 0));
    scene.processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_obeyed_when_nobody_reads_what_is_said_about_it() {
    let scene = Scene::new(Duration::from_secs(300)).await;
    let endpoint = Endpoint::start(|_| Reply::status(200)).await;
    let mut child = scene.connect(&endpoint.url(), &[]);
    eventually("a request is under way", async || !endpoint.asked().is_empty()).await;
    drop(child.stderr.take());
    terminate(&child).await;
    let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
    scene.processes.kill_all().await.unwrap();
}

/// Whatever is written to the first waits until somebody reads from the second.
fn stalled() -> (OwnedFd, UnixStream) {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let full = std::io::copy(&mut std::io::repeat(0), &mut writer).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    writer.set_nonblocking(false).unwrap();
    (writer.into(), reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_nobody_reads_hold_up_neither_messages_nor_signals() {
    let scene = Scene::new(Duration::from_secs(300)).await;
    let endpoint = Endpoint::start(|_| Reply::status(200).after(Duration::from_millis(500))).await;
    let (stdout, _unread) = stalled();
    let one_by_one = ["--report", "100ms", "--concurrency", "1", "--concurrency-max", "1"];
    let mut command = scene.command(&endpoint.url(), &one_by_one);
    let child = command.stdout(Stdio::from(stdout)).spawn().unwrap();
    eventually("the queue is empty", async || scene.left().await == (0, 0)).await;
    terminate(&child).await;
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains(r#""outcome":"DONE""#) && told.contains("could not be told"), "{told}");
    scene.processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_connected_says_why() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2").unwrap();
    let secrets = file.path().to_str().unwrap();
    for (arguments, expected) in [
        (&["--url", "https://127.0.0.1:1/", "--ca-file", secrets][..], "not readable as PEM"),
        (&["--url", "127.0.0.1:1"], "give http://host:port/path"),
        (&["--url", "http://127.0.0.1:1", "--batch-size", "0"], "it can be 1 to 1000"),
        (&["--url", "http://127.0.0.1:1", "--secrets-file", secrets], "whsec_"),
        (&["--url", "http://127.0.0.1:1", "--secrets-file", "/nowhere"], "/nowhere"),
        (&["--url", "http://127.0.0.1:1", "--header", "a"], "name: value"),
        (&["--url", "http://127.0.0.1:1", "--header", "a: b", "--header", "hunter2"], "header 2: "),
        (&["--url", "http://127.0.0.1:1", "--header", "Bearer hunter2: a"], "header 1: "),
    ] {
        let output =
            leasehold().args(["connect", "http", "--queue", "q"]).args(arguments).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected) && !told.contains("hunter2"), "{told}");
    }
}
