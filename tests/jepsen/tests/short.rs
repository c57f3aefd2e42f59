//! A short run with a fixed seed, so that every change meets real faults. Longer ones are a command: docs/reliability.md.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The `leasehold` program beside this one; a test of this crate alone builds it first.
fn program() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_leasehold-jepsen")).with_file_name("leasehold");
    if !program.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "-p", "leasehold"]).status().unwrap();
        assert!(built.success());
    }
    program
}

fn run(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-jepsen"));
    command.args(["run", "--json", "--seed", "3"]).args(arguments);
    if !arguments.contains(&"--time-limit") {
        command.args(["--time-limit", "10"]);
    }
    let output = command.arg("--program").arg(program()).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && told["holds"] == true, "{told:#}");
    let faults = arguments.windows(2).find(|pair| pair[0] == "--faults").map_or("", |pair| pair[1]);
    assert_each_came(&told, faults);
    told
}

/// A fault that never came proves nothing.
fn assert_each_came(told: &Value, faults: &str) {
    let skipped = told["skipped"].as_array().unwrap();
    for fault in faults.split(',') {
        let has_come = told["outages"][fault]["faults"].as_u64() > Some(0);
        assert!(has_come || skipped.iter().any(|skipped| skipped == fault), "{fault} never came: {told:#}");
    }
}

/// Without faults and traffic a run would prove nothing.
fn assert_it_proves_something(told: &Value) {
    assert!(
        told["faults"].as_u64() > Some(1) && told["counts"]["delivered"].as_u64() > Some(100),
        "{told:#}"
    );
}

#[test]
fn kills_and_pauses_break_no_promise() {
    assert_it_proves_something(&run(&["--faults", "kill,pause,pause-kill,transfer"]));
}

#[test]
fn partitions_break_no_promise() {
    let told = run(&["--faults", "partition-halves,partition-leader,isolate-all"]);
    let skipped = told["skipped"].as_array().unwrap();
    if !skipped.is_empty() {
        eprintln!("skipped: network namespaces are not permitted here, so {skipped:?} cannot be done");
        return;
    }
    assert_it_proves_something(&told);
    assert!(told["counts"]["packets_lost"].as_u64() > Some(0), "{told:#}");
}

/// Every workload meets faults of processes and, where they are possible, of machines and the network.
fn assert_a_workload_keeps_its_promises(workload: &str) -> Value {
    let faults = "kill,pause,transfer,kill-all,partition-leader,power-loss,clock-jump";
    let told = run(&["--workload", workload, "--faults", faults]);
    assert_it_proves_something(&told);
    told
}

#[test]
fn message_groups_keep_their_order() {
    assert_a_workload_keeps_its_promises("fifo");
}

#[test]
fn no_delay_is_cut_short() {
    assert_a_workload_keeps_its_promises("delays");
}

#[test]
fn what_is_sent_twice_is_one_message() {
    assert_a_workload_keeps_its_promises("deduplication");
}

#[test]
fn what_is_received_in_vain_is_dead_once() {
    let told = assert_a_workload_keeps_its_promises("dead-letter");
    assert!(told["counts"]["dead"].as_u64() > Some(0), "{told:#}");
}

#[test]
fn leases_end_when_they_shall_and_late_receipts_do_nothing() {
    let told = assert_a_workload_keeps_its_promises("leases");
    assert!(told["counts"]["repeated"].as_u64() > Some(10), "{told:#}");
}

#[test]
fn queues_are_what_was_decided() {
    let told = assert_a_workload_keeps_its_promises("queues");
    assert!(told["counts"]["queues"].as_u64() > Some(10), "{told:#}");
}

/// Producers and consumers of the client crate, whose lives end in all ways.
#[test]
fn streams_keep_their_leases_and_the_order_of_groups() {
    let told = assert_a_workload_keeps_its_promises("streams");
    for what in ["handled", "dead", "outlived_lease", "kept_by_extension"] {
        assert!(told["counts"][what].as_u64() > Some(0), "{what}: {told:#}");
    }
}

/// A running node reads what was damaged under it, says so, and hands none of it to anybody.
#[test]
fn files_that_are_damaged_under_a_running_node_lose_nothing() {
    let told = run(&["--faults", "corrupt-running", "--time-limit", "2"]);
    let counts = &told["counts"];
    assert!(counts["delivered"].as_u64() > Some(100), "{told:#}");
    assert!(counts["damage_noticed"].as_u64() > Some(0), "{told:#}");
}

#[test]
fn nodes_that_are_replaced_starved_and_restarted_break_no_promise() {
    assert_it_proves_something(&run(&["--faults", "replace,starve,rolling-restart,descriptors"]));
}

/// Nodes of two builds serve together, and the cluster does what the later one can when all are upgraded.
#[test]
fn an_upgrade_node_by_node_breaks_no_promise() {
    let told = run(&["--workload", "streams", "--faults", "upgrade,kill,transfer"]);
    assert!(told["counts"]["handled"].as_u64() > Some(0), "{told:#}");
    assert!(told["counts"]["version"].as_u64() > Some(1), "{told:#}");
}

/// Without what it had, a node could vote a second time: it belongs to no cluster until it is replaced.
#[test]
fn a_node_that_lost_everything_has_no_say() {
    let told = run(&["--faults", "wipe", "--time-limit", "5"]);
    assert!(told["counts"]["delivered"].as_u64() > Some(100), "{told:#}");
    assert!(told["outages"]["wipe"]["faults"].as_u64() > Some(0), "{told:#}");
}

/// A queue at its maximum length refuses sends, gives what it holds, and takes more when there is room; a node without memory ends.
#[test]
fn a_full_queue_and_a_node_without_memory_lose_nothing() {
    let told = run(&["--faults", "queue-full,memory"]);
    assert_it_proves_something(&told);
    assert!(told["counts"]["refused_for_length"].as_u64() > Some(0), "{told:#}");
}

#[test]
fn lost_power_and_bent_clocks_break_no_promise() {
    let told = run(&["--faults", "power-loss,power-loss-majority,pause-power,clock-jump,clock-strobe"]);
    let skipped = told["skipped"].as_array().unwrap();
    if !skipped.is_empty() {
        eprintln!("skipped: there is no C compiler, so {skipped:?} cannot be done");
        return;
    }
    assert_it_proves_something(&told);
}
