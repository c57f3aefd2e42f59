//! Some seeds in every change. Many are a command: docs/reliability.md.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::process::Command;

use serde_json::Value;

/// A small cluster under all faults, unless the arguments say otherwise.
fn run(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-simulation"));
    command.args(["--seconds", "3", "--senders", "1", "--consumers", "2"]).args(arguments);
    let output = command.output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    assert!(output.status.success() && told["holds"] == true, "{told:#}");
    told
}

/// Without faults and traffic a run would prove nothing.
fn assert_it_proves_something(told: &Value) {
    let delivered = told["counts"]["delivered"].as_u64();
    assert!(told["faults"].as_u64() > Some(1) && delivered > Some(20), "{told:#}");
    assert!(told["counts"]["claims_judged"].as_u64() > Some(5), "{told:#}");
}

#[test]
fn the_same_seed_goes_the_same_way_and_another_does_not() {
    let traces = ["7", "7", "8"].map(|seed| run(&["--workload", "queue", "--seeds", seed])["trace"].clone());
    assert_eq!(traces[0], traces[1]);
    assert_ne!(traces[0], traces[2]);
}

#[test]
fn a_workload_that_needs_real_processes_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-simulation"));
    let output = command.args(["--workload", "queue,streams"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && words.contains("leasehold-jepsen runs it"), "{words}");
}

#[test]
fn who_looks_does_not_change_what_is_seen() {
    let silent = ["--workload", "queue", "--seeds", "2", "--seconds", "1"];
    let told = [&silent[..], &["--trace"]].concat();
    assert_eq!(run(&silent)["trace"], run(&told)["trace"]);
}

#[test]
fn a_snapshot_to_a_machine_without_power_is_sent_again() {
    let told = run(&[
        "--workload",
        "queue",
        "--seeds",
        "1",
        "--seconds",
        "10",
        "--senders",
        "3",
        "--consumers",
        "5",
        "--faults",
        "kill,snapshot,partition-leader,power-loss",
    ]);
    assert!(told["counts"]["snapshots_sent"].as_u64() > Some(3), "{told:#}");
}

#[test]
fn a_disk_that_fails_while_a_node_starts_is_no_refusal() {
    let told = run(&[
        "--workload",
        "queue",
        "--seeds",
        "5",
        "--seconds",
        "8",
        "--senders",
        "3",
        "--consumers",
        "5",
        "--faults",
        "sync-error,power-loss,power-loss-all,kill,kill-all,disk-full,snapshot,partition-leader",
    ]);
    assert_it_proves_something(&told);
}

fn keeps_its_promises(workload: &str, seed: &str) {
    assert_it_proves_something(&run(&["--workload", workload, "--seeds", seed]));
}

#[test]
fn groups_keep_their_promises() {
    keeps_its_promises("fifo", "1");
}

#[test]
fn delays_keep_their_promises() {
    keeps_its_promises("delays", "2");
}

#[test]
fn deduplication_keeps_its_promises() {
    keeps_its_promises("deduplication", "3");
}

#[test]
fn dead_letters_keep_their_promises() {
    keeps_its_promises("dead-letter", "4");
}

#[test]
fn leases_keep_their_promises() {
    keeps_its_promises("leases", "5");
}

#[test]
fn queues_keep_their_promises() {
    keeps_its_promises("queues", "9");
}

#[test]
fn five_nodes_keep_their_promises() {
    let told = run(&[
        "--workload",
        "queue",
        "--seeds",
        "6",
        "--nodes",
        "5",
        "--faults",
        "kill,partition-leader,power-loss",
    ]);
    assert_it_proves_something(&told);
}

/// Seeds that found something in the nodes, as they were run then.
#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    // A receive that was repeated after its messages were acked ended the task of the leader.
    run(&["--workload", "queue", "--seeds", "2", "--seconds", "4", "--senders", "3", "--consumers", "5"]);
}

#[test]
fn what_cannot_be_run_is_refused() {
    for arguments in [["--workload", "none"], ["--seeds", "5..5"], ["--faults", "flood"]] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_leasehold-simulation")).args(arguments).output().unwrap();
        assert!(
            !output.status.success() && output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}
