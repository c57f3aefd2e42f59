//! What runs have shown, gathered over systems and rounds.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::metric::{Metric, Reading, Summary};
use super::system::Failure;
use super::systems::Name;
use super::workloads::Workload;

/// What one run of a workload on one system told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub workload: Workload,
    /// From 0.
    pub round: u32,
    pub system: Name,
    /// With the start of clusters and the removal of their files.
    pub took_s: f64,
    pub records: Vec<Record>,
    pub failures: Vec<Failed>,
}

/// One case, run once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub case: String,
    pub readings: Vec<Reading>,
}

/// What failed or could not be measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    pub what: String,
    pub reason: Failure,
}

impl Log {
    pub fn new(workload: Workload, round: u32, system: Name) -> Self {
        Self { workload, round, system, took_s: 0.0, records: Vec::new(), failures: Vec::new() }
    }

    pub fn record(&mut self, case: impl Into<String>, readings: Vec<Reading>) {
        let case = case.into();
        let told = readings.iter().map(|(metric, value)| format!("{} {value:.1}", metric.key()));
        progress(&format!("{}: {case}: {}", self.system.key(), told.collect::<Vec<_>>().join(", ")));
        self.records.push(Record { case, readings });
    }

    pub fn fail(&mut self, what: &str, reason: Failure) {
        progress(&format!("{}: {what}: {reason}", self.system.key()));
        self.failures.push(Failed { what: what.to_owned(), reason });
    }
}

/// For who watches; the results go to the standard output.
pub fn progress(line: &str) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    eprintln!("{} {line}", time_of_day(since_epoch.as_secs()));
}

/// In UTC.
fn time_of_day(since_epoch_s: u64) -> String {
    let (hours, minutes, seconds) = (since_epoch_s / 3600 % 24, since_epoch_s / 60 % 60, since_epoch_s % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}")
}

#[derive(Debug, Default)]
pub struct Results {
    logs: Vec<Log>,
}

impl Results {
    /// Logs of parts may come in any order; those of a workload are put in the order of its rounds.
    pub fn of(mut logs: Vec<Log>) -> Self {
        logs.sort_by_key(|log| (log.workload, log.round));
        Self { logs }
    }

    pub fn failures(&self) -> impl Iterator<Item = (Name, &Failed)> {
        self.logs.iter().flat_map(|log| log.failures.iter().map(move |failed| (log.system, failed)))
    }

    /// How many times a system ran a workload, with those that failed.
    pub fn runs(&self, workload: Workload, system: Name) -> usize {
        self.logs.iter().filter(|log| (log.workload, log.system) == (workload, system)).count()
    }

    pub fn took_s(&self) -> f64 {
        self.logs.iter().map(|log| log.took_s).sum()
    }

    fn records(&self) -> impl Iterator<Item = (Name, &Record)> {
        self.logs.iter().flat_map(|log| log.records.iter().map(move |record| (log.system, record)))
    }

    /// By workload, and in the order in which they were first run.
    pub fn cases(&self) -> Vec<&str> {
        let mut cases = Vec::new();
        for (_, record) in self.records() {
            if !cases.contains(&record.case.as_str()) {
                cases.push(&record.case);
            }
        }
        cases
    }

    /// In the order in which they are declared.
    pub fn metrics(&self, case: &str) -> Vec<Metric> {
        let records = self.records().filter(|(_, record)| record.case == case);
        let mut metrics = records
            .flat_map(|(_, record)| record.readings.iter().map(|(metric, _)| *metric))
            .collect::<Vec<_>>();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }

    /// Over all runs of a case.
    pub fn summary(&self, case: &str, system: Name, metric: Metric) -> Option<Summary> {
        let records = self.records().filter(|(name, record)| *name == system && record.case == case);
        let readings = records.flat_map(|(_, record)| &record.readings).filter(|(known, _)| *known == metric);
        Summary::of(&readings.map(|(_, value)| *value).collect::<Vec<_>>())
    }

    /// How many times as good the first system's median is as that of the second.
    pub fn ratio(&self, case: &str, metric: Metric, ours: Name, theirs: Name) -> Option<f64> {
        let median = |system| self.summary(case, system, metric).map(|summary| summary.median);
        metric.ratio(median(ours)?, median(theirs)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(round: u32, system: Name, rate: f64) -> Log {
        let mut log = Log::new(Workload::W1, round, system);
        log.record("a", vec![(Metric::Lost, 0.0), (Metric::MessagesPerS, rate)]);
        log
    }

    #[test]
    fn runs_of_a_case_are_summed_up_by_system() {
        let mut failed = log(0, Name::Nats, 5.0);
        failed.fail("b", Failure::new("no"));
        let results = Results::of(vec![log(1, Name::Leasehold, 10.0), failed, log(0, Name::Leasehold, 30.0)]);
        assert_eq!(results.cases(), ["a"]);
        assert_eq!(results.metrics("a"), [Metric::MessagesPerS, Metric::Lost]);
        let summary = results.summary("a", Name::Leasehold, Metric::MessagesPerS).unwrap();
        assert_eq!((summary.median, summary.values), (20.0, vec![30.0, 10.0]));
        assert_eq!(results.ratio("a", Metric::MessagesPerS, Name::Leasehold, Name::Nats), Some(4.0));
        assert_eq!(results.ratio("a", Metric::Lost, Name::Leasehold, Name::Nats), None);
        assert_eq!(results.summary("b", Name::Nats, Metric::Lost), None);
        assert_eq!(
            results.failures().map(|(system, failed)| (system, failed.what.as_str())).collect::<Vec<_>>(),
            [(Name::Nats, "b")]
        );
    }

    #[test]
    fn workloads_keep_their_order_whichever_was_run_first() {
        let mut later = Log::new(Workload::W2, 0, Name::Leasehold);
        later.record("W2 x", Vec::new());
        assert_eq!(Results::of(vec![later, log(0, Name::Leasehold, 1.0)]).cases(), ["a", "W2 x"]);
    }

    #[test]
    fn the_time_of_day_has_two_digits_each() {
        assert_eq!(time_of_day(0), "00:00:00");
        assert_eq!(time_of_day(86_400 * 20_000 + 3 * 3600 + 4 * 60 + 59), "03:04:59");
    }
}
