//! The command as its users meet it: real processes, on loopback.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes that works, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn leasehold() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// It ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A cluster in a process of its own; it ends with this value.
struct Dev {
    _process: Process,
    /// Who is killed leaves its files behind.
    _dir: TempDir,
    endpoint: String,
}

impl Dev {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = leasehold();
        command
            .args(["dev", "--port", "0", "--sqs-port", "0", "--partitions", "2", "--json"])
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let mut endpoint = None;
        for line in BufReader::new(process.0.stdout.take().unwrap()).lines() {
            let told: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if told["ready"] == true {
                break;
            }
            endpoint = endpoint.or_else(|| told["endpoint"].as_str().map(str::to_owned));
        }
        let endpoint = endpoint.expect("dev tells its endpoints before it is ready");
        Self { _process: process, _dir: dir, endpoint }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = leasehold();
        command.args(arguments).env("LEASEHOLD_ENDPOINT", &self.endpoint);
        command
    }

    fn run(&self, arguments: &[&str], stdin: &str) -> Output {
        self.run_into(Stdio::piped(), arguments, stdin)
    }

    fn run_into(&self, stdout: Stdio, arguments: &[&str], stdin: &str) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The output of a command that must succeed.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The JSON objects of a command that must succeed.
    fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        let arguments = [arguments, &["--json"]].concat();
        self.done(&arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Receives so many messages, in as many calls as it takes: a node that was held up for a second gives back what it has granted,
    /// and says at once that there is nothing.
    fn received(&self, queue: &str, count: usize, more: &[&str]) -> Vec<Value> {
        let mut got = Vec::new();
        eventually("the messages are received", || {
            let left = (count - got.len()).to_string();
            let arguments = ["receive", queue, "--max", left.as_str(), "--wait", "10s"];
            got.extend(self.objects(&[&arguments[..], more].concat()));
            got.len() == count
        });
        got
    }
}

#[test]
fn every_subcommand_does_its_work_on_a_cluster() {
    let dev = Dev::start();
    assert_eq!(
        dev.done(&["queue", "create", "jobs", "--lease", "45s", "--shards", "2"]),
        "jobs is created\n"
    );
    assert_eq!(
        dev.done(&["queue", "create", "jobs", "--lease", "45s", "--shards", "2"]),
        "jobs was there already\n"
    );
    assert_eq!(dev.objects(&["queue", "describe", "jobs"])[0]["settings"]["lease_ms"], 45_000);
    dev.done(&["queue", "set", "jobs", "--lease", "1m"]);
    assert_eq!(dev.objects(&["queue", "describe", "jobs"])[0]["settings"]["lease_ms"], 60_000);
    let sent = dev.objects(&["send", "jobs", "by hand", "--attribute", "kind=test"]);
    let id = sent[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(dev.objects(&["peek", "jobs"])[0]["body"], "by hand");
    let got = dev.received("jobs", 1, &["--ack"]);
    assert_eq!(
        (&got[0]["id"], &got[0]["attributes"]["kind"]),
        (&Value::from(id.clone()), &Value::from("test"))
    );
    assert_eq!(dev.objects(&["why", "jobs", &id]).last().unwrap()["state"], "gone");
    assert_eq!(dev.objects(&["why", "jobs", "0:999999"]).last().unwrap()["state"], "never-sent");
    let lines = dev.run(&["send", "jobs"], "one\ntwo\nthree\n");
    assert_eq!(text(&lines.stdout), "3 messages sent\n");
    let seen = tempfile::NamedTempFile::new().unwrap();
    let exec = format!("cat >> {0}; echo >> {0}", seen.path().display());
    let mut bodies = Vec::<String>::new();
    eventually("the command has run for all", || {
        dev.done(&["receive", "jobs", "--max", "3", "--wait", "10s", "--exec", &exec]);
        bodies = std::fs::read_to_string(seen.path()).unwrap().lines().map(str::to_owned).collect();
        bodies.len() >= 3
    });
    bodies.sort();
    assert_eq!(bodies, ["one", "three", "two"]);
    let described = &dev.objects(&["queue", "describe", "jobs"])[0];
    assert_eq!((&described["leased"], &described["headroom"]["acks"]), (&Value::from(0), &Value::from(4)));
    assert!(dev.done(&["queue", "describe", "jobs"]).contains("of 4 acks"));
    dev.done(&["queue", "create", "dead"]);
    dev.done(&["queue", "redrive", "dead", "--target", "jobs"]);
    dev.done(&["queue", "purge", "jobs"]);
    assert_eq!(dev.done(&["queue", "list"]), "dead\njobs\n");
    dev.done(&["queue", "delete", "dead"]);
    assert_eq!(dev.done(&["queue", "list"]), "jobs\n");
    let status = &dev.objects(&["cluster", "status"])[0];
    assert_eq!((status["ready"].as_bool(), status["nodes"].as_array().map(Vec::len)), (Some(true), Some(3)));
    assert!(dev.done(&["cluster", "status"]).contains("partition 0"));
    let verified = &dev.objects(&["cluster", "verify", "--patience", "60s"])[0];
    assert_eq!(verified["diverged"], serde_json::json!([]));
    assert!(verified["equal"].as_u64() > Some(1), "{verified}");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("backup").display().to_string();
    let taken = &dev.objects(&["backup", "take", &folder])[0];
    assert_eq!(taken["cluster_id"], status["cluster_id"]);
    assert_eq!(dev.objects(&["backup", "verify", &folder])[0], *taken);
    assert!(dev.done(&["backup", "verify", &folder]).contains("is whole"));
}

#[test]
fn what_fails_says_why_in_text_and_in_json() {
    let dev = Dev::start();
    let output = dev.run(&["receive", "nothing"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not exist"), "{}", text(&output.stderr));
    let output = dev.run(&["receive", "nothing", "--json"], "");
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        (&told["outcome"], &told["reason"]),
        (&Value::from("NOT_DONE"), &Value::from("UNKNOWN_QUEUE"))
    );
    assert_eq!(dev.run(&["send", "jobs", "x", "--delay", "soon"], "").status.code(), Some(2));
    assert_eq!(dev.run(&["why", "jobs", "12"], "").status.code(), Some(2));
}

#[test]
fn what_was_received_is_settled_by_its_receipt() {
    let dev = Dev::start();
    dev.done(&["queue", "create", "dead"]);
    dev.done(&[
        "queue",
        "create",
        "jobs",
        "--lease",
        "5m",
        "--dead-letter-queue",
        "dead",
        "--receives-max",
        "10",
    ]);
    for body in ["one", "two", "three"] {
        dev.done(&["send", "jobs", body]);
    }
    let receive = |count: usize| {
        let got = dev.received("jobs", count, &[]);
        got.iter().map(|told| told["receipt"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let receipts = receive(3);
    let [one, two, three] = &receipts[..] else { panic!("{receipts:?}") };
    assert_eq!(dev.done(&["extend", "jobs", one, two, "--lease", "10m"]), "2 messages extended\n");
    assert_eq!(dev.done(&["ack", "jobs", one]), "1 message acknowledged\n");
    assert_eq!(dev.done(&["reject", "jobs", two, "--reason", "no picture"]), "1 message rejected\n");
    assert_eq!(dev.objects(&["release", "jobs", three])[0]["released"], 1);
    let four = &receive(1)[0];
    assert_eq!(dev.done(&["postpone", "jobs", four, "--delay", "10ms"]), "1 message postponed\n");
    let dead = &dev.received("dead", 1, &[])[0];
    assert_eq!(dead["attributes"]["leasehold-rejected"], "no picture");
    // A second time, and of a queue that has nowhere to put what is rejected.
    let again = dev.run(&["ack", "jobs", one, "--json"], "");
    let told: Value = serde_json::from_slice(&again.stderr).unwrap();
    assert_eq!((again.status.code(), &told["reason"]), (Some(1), &Value::from("MESSAGE_GONE")));
    let receipt = dead["receipt"].as_str().unwrap();
    let rejected = dev.run(&["reject", "dead", receipt, "--reason", "x"], "");
    assert!(text(&rejected.stderr).contains("NO_DEAD_LETTER_QUEUE"), "{}", text(&rejected.stderr));
    let mixed = dev.run(&["ack", "jobs", &receive(1)[0], one], "");
    assert_eq!((mixed.status.code(), text(&mixed.stdout)), (Some(1), "1 message acknowledged\n".to_owned()));
    assert!(text(&mixed.stderr).contains("receipt 2: "), "{}", text(&mixed.stderr));
    assert_eq!(dev.run(&["ack", "jobs", "12:7"], "").status.code(), Some(2));
}

#[test]
fn what_was_done_and_cannot_be_told_is_not_called_undone() {
    let dev = Dev::start();
    dev.done(&["queue", "create", "jobs"]);
    let untold = |arguments: &[&str], stdin: &str| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = dev.run_into(full.into(), &[arguments, &["--json"]].concat(), stdin);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{told}");
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}"));
        assert_eq!(told["outcome"], "DONE");
        told["detail"].as_str().unwrap().to_owned()
    };
    let told = untold(&["send", "jobs", "one"], "");
    assert!(told.contains("is sent, which could not be told"), "{told}");
    let told = untold(&["send", "jobs"], "two\n");
    assert!(told.contains("1 messages are sent of lines 1 to 1"), "{told}");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = dev.run_into(full.into(), &["send", "jobs"], "three\nfour\n");
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(3) && told.contains("2 messages are sent"), "{told}");
    let got = dev.received("jobs", 1, &[]);
    let told = untold(&["ack", "jobs", got[0]["receipt"].as_str().unwrap()], "");
    assert!(told.contains("1 message acknowledged"), "{told}");
    let described = &dev.objects(&["queue", "describe", "jobs"])[0];
    assert_eq!((described["ready"].as_u64(), described["leased"].as_u64()), (Some(3), Some(0)));
}

#[test]
fn a_signal_of_the_terminal_lets_the_command_in_hand_finish() {
    let dev = Dev::start();
    dev.done(&["queue", "create", "jobs", "--lease", "5m"]);
    dev.done(&["send", "jobs", "by hand"]);
    let dir = tempfile::tempdir().unwrap();
    let (began, ended) = (dir.path().join("began"), dir.path().join("ended"));
    let exec = format!("touch {}; sleep 2; touch {}", began.display(), ended.display());
    let mut command = dev.command(&["receive", "jobs", "--follow", "--exec", &exec]);
    let mut process = Process(command.process_group(0).spawn().unwrap());
    eventually("the command runs", || began.exists());
    kill_process_group(Pid::from_child(&process.0), Signal::INT).unwrap();
    let mut status = None;
    eventually("it ends", || {
        status = process.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()) && ended.exists(), "{status:?}");
    let described = &dev.objects(&["queue", "describe", "jobs"])[0];
    let left = ["ready", "leased", "delayed"].map(|state| described[state].as_u64());
    assert_eq!(left, [Some(0); 3]);
}

#[test]
fn no_command_outlives_the_receive_that_is_stopped_at_once() {
    let dev = Dev::start();
    dev.done(&["queue", "create", "jobs", "--lease", "5m"]);
    dev.done(&["send", "jobs", "by hand"]);
    let dir = tempfile::tempdir().unwrap();
    let began = dir.path().join("began");
    let exec = format!("touch {}; sleep 600; true", began.display());
    let mut command = dev.command(&["receive", "jobs", "--follow", "--exec", &exec]);
    let mut process = Process(command.stderr(Stdio::piped()).spawn().unwrap());
    eventually("the command runs", || began.exists());
    let mut status = None;
    eventually("it ends", || {
        // Two signals that come together are one.
        kill_process(Pid::from_child(&process.0), Signal::INT).unwrap();
        thread::sleep(Duration::from_millis(100));
        status = process.0.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(1));
    // The command and what it started have its stderr, which ends with the last of them.
    let mut stderr = process.0.stderr.take().unwrap();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(stderr.read_to_end(&mut Vec::new()).is_ok()));
    assert_eq!(end.recv_timeout(PATIENCE), Ok(true), "the command goes on");
}

fn refused(arguments: &[&str]) -> String {
    let output = leasehold().arg("server").args(arguments).output().unwrap();
    assert!(!output.status.success());
    text(&output.stderr)
}

#[test]
fn a_server_that_cannot_start_names_the_key_or_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("data_dir={}", dir.path().display());
    let listen = [
        "--set",
        "client_listen=127.0.0.1:0",
        "--set",
        "peer_listen=127.0.0.1:0",
        "--set",
        "admin_listen=127.0.0.1:0",
    ];
    let with = |extra: &[&str]| {
        let mut arguments = vec!["--set", "name=a", "--set", data.as_str()];
        arguments.extend(listen);
        arguments.extend(extra);
        refused(&arguments)
    };
    assert!(with(&["--set", "raft.heartbeat_ms=fast"]).contains("raft.heartbeat_ms"));
    assert!(with(&["--set", "no_such_key=1"]).contains("no_such_key"));
    assert!(
        with(&["--set", "client_listen=0.0.0.0:0", "--set", "client_advertise=a:1"]).contains("insecure")
    );
    // Of another node, and of a newer version.
    write_identity(dir.path(), 1, "b");
    assert!(with(&[]).contains("belongs to node \"b\""), "{}", with(&[]));
    write_identity(dir.path(), 9, "a");
    assert!(with(&[]).contains("newer version"), "{}", with(&[]));
}

fn write_identity(dir: &Path, version: u32, name: &str) {
    let body =
        format!("leasehold identity {version}\ncluster {:032x}\nnode 1\ncatalogue 1\nname {name}\n", 7);
    let crc = crc32c::crc32c(body.as_bytes());
    std::fs::write(dir.join("identity"), format!("{body}crc32c {crc:08x}\n")).unwrap();
}

#[test]
fn the_demo_proves_that_a_killed_leader_loses_nothing() {
    let output = leasehold().args(["demo", "--json", "--messages", "12000"]).output().unwrap();
    let told: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert!(output.status.success(), "{told}");
    assert_eq!(told["holds"], true);
    assert_eq!((told["sent"].as_u64(), told["acked"].as_u64()), (Some(12_000), Some(12_000)));
    assert_eq!((told["lost"].as_u64(), told["leases_shortened"].as_u64()), (Some(0), Some(0)));
    // The faults took place: a run without them would prove nothing.
    assert!(told["failover_ms"].as_u64().is_some() && told["killed"].is_string(), "{told}");
    assert!(told["consumer_crashes"].as_u64() > Some(0) && told["redelivered"].as_u64() > Some(0), "{told}");
}
