//! What the demo shows while it runs, and what it says at the end.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::failover::Failover;
use super::proof::{Record, Verdict, leases_across};
use super::work::Ledger;
use crate::output::{Failure, Output};

/// Shows how far it is: a line that is redrawn on a terminal, or a line a second.
pub async fn show(ledger: Arc<Ledger>, rows: u64) {
    let is_terminal = std::io::stdout().is_terminal();
    loop {
        let line = line(&ledger, rows);
        let text = if is_terminal { format!("\r\x1b[2K{line}") } else { format!("{line}\n") };
        let mut stdout = std::io::stdout();
        // Without anybody who looks, the proof goes on.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        sleep(Duration::from_millis(if is_terminal { 100 } else { 1_000 })).await;
    }
}

fn line(ledger: &Ledger, rows: u64) -> String {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let failover = match count(&ledger.failover_ms) {
        0 => String::new(),
        ms => format!(", failover {ms} ms"),
    };
    format!(
        "sent {}/{rows}, processed {}, acked {}, in flight {}, redelivered {}, crashes {}{failover}",
        count(&ledger.sent),
        count(&ledger.processed),
        count(&ledger.acked),
        count(&ledger.in_flight),
        count(&ledger.redelivered),
        count(&ledger.crashes),
    )
}

/// What came out of a run.
pub struct Proof {
    pub verdict: Verdict,
    failover: Option<Failover>,
    leases_across_failover: Option<u64>,
    crashes: u64,
}

impl Proof {
    pub fn new(verdict: Verdict, failover: Option<Failover>, records: &[Record], crashes: u64) -> Self {
        let across = failover.as_ref().map(|failover| {
            let led = failover.partitions.iter().map(|(partition, _)| *partition).collect::<Vec<_>>();
            leases_across(records, failover.killed, &led)
        });
        Self { verdict, failover, leases_across_failover: across, crashes }
    }

    /// Says it, as one object or as a table.
    pub fn tell(&self, took: Duration, output: Output) -> Result<(), Failure> {
        let failover_ms = self.failover.as_ref().map(|failover| failover.longest().as_millis() as u64);
        let mut object = self.verdict.to_json();
        object["failover_ms"] = json!(failover_ms);
        object["killed"] = json!(self.failover.as_ref().map(|failover| &failover.node_name));
        object["leases_across_failover"] = json!(self.leases_across_failover);
        object["consumer_crashes"] = json!(self.crashes);
        object["seconds"] = json!(took.as_secs_f64());
        output.line(self.table(took), &object)
    }

    fn table(&self, took: Duration) -> String {
        let verdict = &self.verdict;
        let causes = verdict.duplicates.iter().map(|(cause, count)| format!("{count} {cause}"));
        let causes = causes.collect::<Vec<_>>().join(", ");
        let duplicates = verdict.duplicates.values().sum::<u64>();
        let margin = verdict.lease_margin_ms_min.map_or(String::new(), |ms| {
            format!("  the next worker came {ms} ms after the promised end, at the soonest")
        });
        let mut rows = vec![
            ("sent", verdict.sent, String::new()),
            ("acknowledged", verdict.acked, String::new()),
            ("lost", verdict.lost.len() as u64, String::new()),
            ("invented", verdict.invented.len() as u64, String::new()),
            ("corrupted", verdict.corrupted, String::new()),
            ("left in the queue", verdict.remaining, String::new()),
            ("redelivered", verdict.redelivered, String::new()),
            ("processed again", duplicates, format!("  {causes}")),
            ("redelivered after ack", verdict.redelivered_after_ack, String::new()),
            ("leases shortened", verdict.leases_shortened, margin),
            ("late acks refused", verdict.late_acks_refused, String::new()),
            ("fencing violations", verdict.fencing_violations, String::new()),
        ];
        if let Some(failover) = &self.failover {
            let (led, open) = (failover.partitions.len(), self.leases_across_failover.unwrap_or_default());
            let killed = &failover.node_name;
            let detail = format!(
                " ms  {killed} was killed; it led {led} partitions with {open} open leases of crashed workers"
            );
            rows.push(("failover", failover.longest().as_millis() as u64, detail));
        }
        let rows = rows.iter().map(|(name, count, detail)| format!("{name:<22} {count:>8}{detail}\n"));
        let end = if verdict.holds() { "the proof holds" } else { "THE PROOF DOES NOT HOLD" };
        format!("\n\n{}{:<22} {:>8.1} s\n{end}", rows.collect::<String>(), "took", took.as_secs_f64())
    }
}
