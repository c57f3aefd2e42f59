//! What runs have shown, gathered over systems and rounds.

use super::metric::{Metric, Reading, Summary};
use super::system::Failure;
use super::systems::Name;

/// One case of one workload, run once on one system.
#[derive(Debug, Clone)]
pub struct Record {
    pub system: Name,
    pub case: String,
    pub readings: Vec<Reading>,
}

#[derive(Debug, Default)]
pub struct Results {
    pub records: Vec<Record>,
    /// The system, what it was doing, and why it could not be measured.
    pub failures: Vec<(Name, String, Failure)>,
}

/// Takes what a workload finds out about one system.
pub struct Log<'a> {
    pub system: Name,
    pub results: &'a mut Results,
}

impl Log<'_> {
    pub fn record(&mut self, case: impl Into<String>, readings: Vec<Reading>) {
        let case = case.into();
        let told = readings.iter().map(|(metric, value)| format!("{} {value:.1}", metric.key()));
        progress(&format!("{}: {case}: {}", self.system.key(), told.collect::<Vec<_>>().join(", ")));
        self.results.records.push(Record { system: self.system, case, readings });
    }

    pub fn fail(&mut self, what: &str, failure: Failure) {
        progress(&format!("{}: {what}: {failure}", self.system.key()));
        self.results.failures.push((self.system, what.to_owned(), failure));
    }
}

/// For who watches; the results go to the standard output.
pub fn progress(line: &str) {
    eprintln!("{line}");
}

impl Results {
    /// In the order in which they were first run.
    pub fn cases(&self) -> Vec<&str> {
        let mut cases = Vec::new();
        for record in &self.records {
            if !cases.contains(&record.case.as_str()) {
                cases.push(&record.case);
            }
        }
        cases
    }

    /// In the order in which they are declared.
    pub fn metrics(&self, case: &str) -> Vec<Metric> {
        let records = self.records.iter().filter(|record| record.case == case);
        let mut metrics =
            records.flat_map(|record| record.readings.iter().map(|(metric, _)| *metric)).collect::<Vec<_>>();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }

    /// Over all runs of a case.
    pub fn summary(&self, case: &str, system: Name, metric: Metric) -> Option<Summary> {
        let records = self.records.iter().filter(|record| record.case == case && record.system == system);
        let readings = records.flat_map(|record| &record.readings).filter(|(known, _)| *known == metric);
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

    #[test]
    fn runs_of_a_case_are_summed_up_by_system() {
        let mut results = Results::default();
        for (system, rate) in [(Name::Leasehold, 10.0), (Name::Nats, 5.0), (Name::Leasehold, 30.0)] {
            let mut log = Log { system, results: &mut results };
            log.record("a", vec![(Metric::Lost, 0.0), (Metric::MessagesPerS, rate)]);
        }
        Log { system: Name::Nats, results: &mut results }.fail("b", Failure::new("no"));
        assert_eq!(results.cases(), ["a"]);
        assert_eq!(results.metrics("a"), [Metric::MessagesPerS, Metric::Lost]);
        let summary = results.summary("a", Name::Leasehold, Metric::MessagesPerS);
        assert_eq!(summary.map(|summary| summary.median), Some(20.0));
        assert_eq!(results.ratio("a", Metric::MessagesPerS, Name::Leasehold, Name::Nats), Some(4.0));
        assert_eq!(results.ratio("a", Metric::Lost, Name::Leasehold, Name::Nats), None);
        assert_eq!(results.summary("b", Name::Nats, Metric::Lost), None);
        assert_eq!(results.failures.len(), 1);
    }
}
