//! Each example, run as a program with a cluster of its own: it ends with 0 only if what it shows is so.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::process::Command;

fn shows(program: &str, arguments: &[&str], last_line: &str) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{wrong}");
    assert_eq!(said.lines().last(), Some(last_line), "{said}");
}

#[test]
fn clickstream_counts_every_event_once() {
    shows(env!("CARGO_BIN_EXE_clickstream"), &["--events", "12000"], "the totals agree");
}

#[test]
fn cache_warmer_warms_each_route_by_one_message() {
    shows(env!("CARGO_BIN_EXE_cache_warmer"), &["--misses", "3000"], "the cache is warm");
}

#[test]
fn email_once_sends_one_mail_for_each_order() {
    shows(env!("CARGO_BIN_EXE_email_once"), &["--orders", "60"], "one mail for each order");
}

#[test]
fn fifo_orders_keeps_the_steps_of_each_order() {
    shows(env!("CARGO_BIN_EXE_fifo_orders"), &["--orders", "60"], "every order went step by step");
}

#[test]
fn an_endpoint_that_is_not_there_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_fifo_orders"))
        .args(["--endpoint", "not an address"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "));
}
