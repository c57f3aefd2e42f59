//! Many seeds: each run is a process of its own, so that nothing of one reaches the next, whatever it breaks.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use leasehold_histories::workload::Workload;
use serde_json::Value;

use crate::Arguments;

/// `first..end`, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    end: u64,
}

impl Seeds {
    pub fn single(self) -> Option<u64> {
        (self.end == self.first + 1).then_some(self.first)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u64>().map_err(|_| format!("{text:?} is not a seed: give a number, or first..end"))
        };
        let (first, end) = match text.split_once("..") {
            Some((first, end)) => (number(first)?, number(end)?),
            None => (number(text)?, number(text)?.saturating_add(1)),
        };
        if first < end {
            Ok(Self { first, end })
        } else {
            Err(format!("{text} holds no seed: the end is above the first"))
        }
    }
}

fn arguments_of(arguments: &Arguments, workload: Workload, seed: u64) -> Vec<String> {
    let plan = &arguments.plan;
    let faults = plan.faults.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(",");
    let numbers = [
        ("--nodes", plan.nodes as u64),
        ("--partitions", plan.partitions.into()),
        ("--seconds", plan.seconds),
        ("--senders", plan.senders),
        ("--consumers", plan.consumers),
        ("--seeds", seed),
    ];
    let words = ["--workload".to_owned(), workload.name(), "--faults".to_owned(), faults];
    numbers
        .into_iter()
        .flat_map(|(name, number)| [name.to_owned(), number.to_string()])
        .chain(words)
        .collect()
}

/// The command that runs a seed again.
pub fn replay(arguments: &Arguments, workload: Workload, seed: u64) -> String {
    format!("leasehold-simulation {}", arguments_of(arguments, workload, seed).join(" "))
}

/// Runs all seeds with all workloads and tells each run in a line; false when one of them found something.
pub fn run_all(arguments: &Arguments) -> bool {
    let Seeds { first, end } = arguments.seeds;
    let runs = (first..end).flat_map(|seed| arguments.workload.iter().map(move |workload| (*workload, seed)));
    let mut waiting = std::collections::VecDeque::new();
    let mut all_hold = true;
    for (workload, seed) in runs {
        if waiting.len() >= arguments.jobs.max(1) {
            all_hold &= waiting.pop_front().is_none_or(finish);
        }
        waiting.push_back(begin(arguments, workload, seed));
    }
    waiting.into_iter().fold(all_hold, |all_hold, run| finish(run) && all_hold)
}

/// A run and the command that repeats it.
type Run = (Result<Child, std::io::Error>, String);

fn begin(arguments: &Arguments, workload: Workload, seed: u64) -> Run {
    let program = std::env::current_exe();
    let begun = program.and_then(|program| {
        let mut command = Command::new(program);
        command
            .args(arguments_of(arguments, workload, seed))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    });
    (begun, replay(arguments, workload, seed))
}

fn finish((begun, replay): Run) -> bool {
    let ended = begun.and_then(|mut child| {
        let mut told = String::new();
        if let Some(output) = &mut child.stdout {
            output.read_to_string(&mut told)?;
        }
        Ok((child.wait()?, told))
    });
    match ended {
        Ok((status, told)) if serde_json::from_str::<Value>(&told).is_ok() => {
            print!("{told}");
            status.success()
        }
        Ok((status, _)) => {
            println!("the run ended without a verdict ({status}): {replay}");
            false
        }
        Err(error) => {
            println!("the run could not be made ({error}): {replay}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_they_are_written() {
        assert_eq!("7".parse(), Ok(Seeds { first: 7, end: 8 }));
        assert_eq!("1..100".parse(), Ok(Seeds { first: 1, end: 100 }));
        for text in ["", "x", "1..", "5..5", "-1"] {
            assert!(text.parse::<Seeds>().is_err(), "{text}");
        }
    }
}
