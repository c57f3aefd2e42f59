//! Everything that a comparison found out, and its JSON.

use serde_json::{Map, Value, json};

use super::floor::Row;
use super::machine::Machine;
use super::metric::Reading;
use super::results::Results;
use super::system::Failure;
use super::systems::{Found, Name};

/// Grows when a field changes its meaning.
const VERSION: u32 = 1;

pub struct Document {
    pub machine: Machine,
    pub command: String,
    pub note: String,
    pub runs: u32,
    pub seconds: u64,
    pub found: Vec<Found>,
    pub skipped: Vec<(Name, Failure)>,
    pub floor: Vec<Row>,
    pub results: Results,
}

impl Document {
    pub fn json(&self) -> Value {
        json!({
            "version": VERSION,
            "machine": self.machine.json(),
            "command": self.command,
            "note": self.note,
            "runs": self.runs,
            "seconds": self.seconds,
            "systems": self.found.iter().map(system).collect::<Vec<_>>(),
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
            "floor": self.floor.iter().map(floor).collect::<Vec<_>>(),
            "cases": self.results.cases().into_iter().map(|case| self.case(case)).collect::<Vec<_>>(),
            "failures": self.results.failures.iter().map(failure).collect::<Vec<_>>(),
        })
    }

    /// Those that Leasehold is compared with.
    pub fn others(&self) -> impl Iterator<Item = Name> {
        self.found.iter().map(|found| found.name).filter(|name| *name != Name::Leasehold)
    }

    fn case(&self, case: &str) -> Value {
        let by_system =
            self.found.iter().map(|found| (found.name.key().to_owned(), self.figures(case, found.name)));
        let ratios = self.others().map(|other| (other.key().to_owned(), self.ratios(case, other)));
        json!({
            "case": case,
            "systems": by_system.collect::<Map<_, _>>(),
            "times_as_good_as": ratios.collect::<Map<_, _>>(),
        })
    }

    fn figures(&self, case: &str, system: Name) -> Value {
        let metrics = self.results.metrics(case).into_iter();
        let figures = metrics.filter_map(|metric| {
            let summary = self.results.summary(case, system, metric)?;
            Some((metric.key().to_owned(), summary.json()))
        });
        figures.collect::<Map<_, _>>().into()
    }

    fn ratios(&self, case: &str, other: Name) -> Value {
        let metrics = self.results.metrics(case).into_iter();
        let ratios = metrics.filter_map(|metric| {
            let ratio = self.results.ratio(case, metric, Name::Leasehold, other)?;
            Some((metric.key().to_owned(), json!(ratio)))
        });
        ratios.collect::<Map<_, _>>().into()
    }
}

fn system(found: &Found) -> Value {
    json!({
        "name": found.name.key(), "title": found.name.title(), "version": found.version,
        "an_answer_means": found.name.durability(),
    })
}

fn skipped((name, failure): &(Name, Failure)) -> Value {
    json!({ "name": name.key(), "reason": failure.to_string() })
}

fn floor((what, readings): &Row) -> Value {
    let figure = |(metric, value): &Reading| (metric.key().to_owned(), json!(value));
    json!({ "what": what, "figures": readings.iter().map(figure).collect::<Map<_, _>>() })
}

fn failure((name, what, failure): &(Name, String, Failure)) -> Value {
    json!({ "system": name.key(), "what": what, "reason": failure.to_string() })
}
