//! A comparison of Leasehold with nobody, for a moment: workloads end, find figures and lose nothing. Those that need minutes are
//! left to the command.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The program that is measured lies beside the one that measures; a test of this crate alone builds it first.
fn build_what_is_measured() {
    let program = Path::new(env!("CARGO_BIN_EXE_leasehold-bench")).with_file_name("leasehold");
    if !program.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "-p", "leasehold"]).status().unwrap();
        assert!(built.success());
    }
}

fn compare(work_dir: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-bench"));
    command.args(["compare", "--runs", "1", "--seconds", "1", "--kills", "1", "--work-dir"]).arg(work_dir);
    command.args(arguments);
    command.output().unwrap()
}

/// The median of one figure of each case whose name begins so.
fn figures(told: &Value, case: &str, metric: &str) -> Vec<f64> {
    let cases = told["cases"].as_array().unwrap().iter();
    let of_it = cases.filter(|known| known["case"].as_str().unwrap().starts_with(case));
    of_it.filter_map(|known| known["systems"]["leasehold"][metric]["median"].as_f64()).collect()
}

/// Whatever else the machine is doing, so no figure is compared with anything.
#[test]
fn workloads_run_on_leasehold() {
    build_what_is_measured();
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("figures.md");
    let workloads = ["--workloads", "w1,w2,w3,w4,w7", "--pipeline-seconds", "1"];
    let results = ["--systems", "leasehold", "--json", "--report", report.to_str().unwrap()];
    let output = compare(dir.path(), &[workloads.as_slice(), &results].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["failures"], Value::Array(Vec::new()), "{log}");
    for (case, metric, count) in [
        ("W1", "messages_per_s", 6),
        ("W2", "messages_per_s", 1),
        ("W3", "messages_per_s", 3),
        ("W3 128 B at 10,000/s", "p99_9_ms", 1),
        ("W7", "p99_9_ms", 1),
        ("W4", "send_gap_ms_max", 1),
        ("W4", "receive_gap_ms_max", 1),
    ] {
        let figures = figures(&told, case, metric);
        assert_eq!(figures.len(), count, "{case}, {metric}: {told:#}");
        assert!(figures.iter().all(|figure| *figure > 0.0), "{case}, {metric}: {told:#}");
    }
    assert_eq!(figures(&told, "W4", "lost"), [0.0]);
    assert!(std::fs::read_to_string(&report).unwrap().contains("## W4"));
}

#[test]
fn nothing_to_compare_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--systems", "nothing-like-it"]);
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("nothing-like-it") && log.contains("leasehold"), "{log}");
}
