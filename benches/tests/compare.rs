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
    command.args(["compare", "--runs", "1", "--seconds", "1", "--kills", "1", "--pipeline-seconds", "1"]);
    command.arg("--work-dir").arg(work_dir);
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
    let workloads = ["--workloads", "w1,w2,w3,w4,w7", "--partitions", "2"];
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
        ("W7", "lasted_s", 1),
        ("W4", "send_gap_ms_max", 1),
        ("W4", "receive_gap_ms_max", 1),
    ] {
        let figures = figures(&told, case, metric);
        assert_eq!(figures.len(), count, "{case}, {metric}: {told:#}");
        assert!(figures.iter().all(|figure| *figure > 0.0), "{case}, {metric}: {told:#}");
    }
    assert_eq!(figures(&told, "W4", "lost"), [0.0]);
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains("## W4") && text.contains("spread over 2 partitions"), "{text}");
}

/// Two calls and a third that has nothing left to do make one document, which can be told again.
#[test]
fn what_is_kept_is_not_measured_again() {
    build_what_is_measured();
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let part = |workloads, more: &[&str]| {
        let usual =
            ["--systems", "leasehold", "--json", "--keep", kept.to_str().unwrap(), "--workloads", workloads];
        compare(dir.path(), &[usual.as_slice(), more].concat())
    };
    let document = |output: &std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let first = document(&part("w2", &[]));
    let both = document(&part("w2,w7", &["--note", "later"]));
    assert_eq!(both["parts"][1]["note"], "later");
    assert_eq!(figures(&both, "W2", "messages_per_s"), figures(&first, "W2", "messages_per_s"));
    assert_eq!(figures(&both, "W7", "lasted_s").len(), 1);
    let again = document(&part("w7,w2", &[]));
    assert_eq!(again, both);
    let mut report = Command::new(env!("CARGO_BIN_EXE_leasehold-bench"));
    assert_eq!(document(&report.arg("report").arg(&kept).arg("--json").output().unwrap()), both);
    let other = part("w1", &["--partitions", "2"]);
    let log = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && log.contains("partitions was 1 and is 2"), "{log}");
}

#[test]
fn nothing_to_compare_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let output = compare(dir.path(), &["--systems", "nothing-like-it"]);
    assert!(!output.status.success());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("nothing-like-it") && log.contains("leasehold"), "{log}");
}
