//! How long partitions stood still under each fault, as clients saw it: measured, not judged. The longest over all faults of a
//! name, all partitions and all clients, so a single stuck partition shows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{History, Op, Outcome};

/// The worst of all faults of one name.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outage {
    pub faults: u64,
    /// From the beginning of the fault, or the last operation that was done before it ended, to the next one in that partition.
    pub standstill_ms_max: u64,
    /// From the end of the fault to the first operation in a partition that was asked after it.
    pub recovery_ms_max: u64,
}

/// When an operation of a partition was asked for and done.
struct Done {
    began_us: u64,
    ended_us: u64,
}

pub fn measure(history: &History) -> BTreeMap<String, Outage> {
    let partitions = done_by_partition(history);
    let mut outages: BTreeMap<String, Outage> = BTreeMap::new();
    for (fault, began_us, ended_us) in faults(history) {
        let outage = outages.entry(fault).or_default();
        outage.faults += 1;
        for done in partitions.values() {
            let standstill_ms = standstill_us(done, began_us, ended_us) / 1_000;
            let recovery_ms = recovery_us(done, ended_us) / 1_000;
            outage.standstill_ms_max = outage.standstill_ms_max.max(standstill_ms);
            outage.recovery_ms_max = outage.recovery_ms_max.max(recovery_ms);
        }
    }
    outages
}

/// In the order in which they were done.
fn done_by_partition(history: &History) -> BTreeMap<u32, Vec<Done>> {
    let mut partitions: BTreeMap<u32, Vec<Done>> = BTreeMap::new();
    for op in &history.ops {
        let (partition, began_us, ended_us) = match op {
            Op::Send { began_us, ended_us, outcome: Outcome::Done, message: Some(message), .. }
            | Op::Ack { message, began_us, ended_us, outcome: Outcome::Done, .. }
            | Op::Grant { message, began_us, ended_us, .. } => (message.0, *began_us, *ended_us),
            _ => continue,
        };
        partitions.entry(partition).or_default().push(Done { began_us, ended_us });
    }
    for done in partitions.values_mut() {
        done.sort_by_key(|done| done.ended_us);
    }
    partitions
}

/// Name, beginning and end of each fault that ended.
fn faults(history: &History) -> Vec<(String, u64, u64)> {
    let mut begun = BTreeMap::new();
    let mut faults = Vec::new();
    for op in &history.ops {
        match op {
            Op::Fault { number, at_us, fault, .. } => drop(begun.insert(*number, (fault, *at_us))),
            Op::FaultEnded { number, at_us } => {
                if let Some((fault, began_us)) = begun.remove(number) {
                    faults.push((fault.clone(), began_us, *at_us));
                }
            }
            _ => {}
        }
    }
    faults
}

/// The longest time without anything done that begins within the fault.
fn standstill_us(done: &[Done], began_us: u64, ended_us: u64) -> u64 {
    let after = done.partition_point(|done| done.ended_us < began_us);
    let mut last_us = began_us;
    let mut longest_us = 0;
    for done in &done[after..] {
        longest_us = longest_us.max(done.ended_us - last_us);
        last_us = done.ended_us;
        if last_us > ended_us {
            break;
        }
    }
    longest_us
}

fn recovery_us(done: &[Done], ended_us: u64) -> u64 {
    let first = done.iter().find(|done| done.began_us >= ended_us);
    first.map_or(0, |first| first.ended_us - ended_us)
}

#[cfg(test)]
mod tests {
    use super::super::story::{ack, history};
    use super::*;

    #[test]
    fn the_longest_standstill_and_the_recovery_are_measured() {
        let acked = |at_ms: u64| ack(1, at_ms * 1_000, Outcome::Done);
        let fault = |number, at_ms: u64| Op::Fault {
            number,
            at_us: at_ms * 1_000,
            fault: "loss".to_owned(),
            what: String::new(),
        };
        let ended = |number, at_ms: u64| Op::FaultEnded { number, at_us: at_ms * 1_000 };
        let ops = vec![
            acked(10),
            fault(0, 100),
            acked(150),
            acked(1_150),
            ended(0, 2_000),
            acked(2_700),
            fault(1, 3_000),
            ended(1, 3_100),
            acked(3_200),
        ];
        let measured = measure(&history(ops));
        let worst = Outage { faults: 2, standstill_ms_max: 1_550, recovery_ms_max: 700 };
        assert_eq!(measured, BTreeMap::from([("loss".to_owned(), worst)]));
    }
}
