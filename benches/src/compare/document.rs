//! Everything that a comparison found out, and its JSON.

use serde_json::{Map, Value, json};

use super::journal::{Conditions, Measured, Part, Skipped};
use super::metric::{Metric, Summary};
use super::results::{Failed, Results};
use super::systems::Name;

/// Grows when a field goes or changes its meaning.
const VERSION: u32 = 2;

pub struct Document {
    pub conditions: Conditions,
    pub parts: Vec<Part>,
    pub results: Results,
}

impl Document {
    pub fn json(&self) -> Value {
        let conditions = &self.conditions;
        json!({
            "version": VERSION,
            "machine": conditions.machine,
            "harness": conditions.harness,
            "runs": conditions.runs,
            "seconds": conditions.seconds,
            "pipeline_seconds": conditions.pipeline_seconds,
            "kills": conditions.kills,
            "partitions": conditions.partitions,
            "took_s": self.results.took_s(),
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
            "systems": self.systems().into_iter().map(system).collect::<Vec<_>>(),
            "skipped": self.skipped(),
            "floor": self.floor().into_iter().map(floor).collect::<Vec<_>>(),
            "cases": self.results.cases().into_iter().map(|case| self.case(case)).collect::<Vec<_>>(),
            "failures": self.results.failures().map(failure).collect::<Vec<_>>(),
        })
    }

    /// Those of any part, in the order of [`Name`].
    pub fn systems(&self) -> Vec<&Measured> {
        let mut systems = self.parts.iter().flat_map(|part| &part.systems).collect::<Vec<_>>();
        systems.sort_by_key(|system| system.name);
        systems.dedup_by_key(|system| system.name);
        systems
    }

    /// Those that no part has.
    pub fn skipped(&self) -> Vec<&Skipped> {
        let systems = self.systems();
        let skipped = self.parts.iter().flat_map(|part| &part.skipped);
        let mut skipped = skipped
            .filter(|skipped| !systems.iter().any(|system| system.name == skipped.name))
            .collect::<Vec<_>>();
        skipped.sort_by_key(|skipped| skipped.name);
        skipped.dedup_by_key(|skipped| skipped.name);
        skipped
    }

    /// Those that Leasehold is compared with.
    pub fn others(&self) -> Vec<Name> {
        let names = self.systems().into_iter().map(|system| system.name);
        names.filter(|name| *name != Name::Leasehold).collect()
    }

    /// Over all parts.
    pub fn floor(&self) -> Vec<(&str, Vec<(Metric, Summary)>)> {
        let mut rows = Vec::<(&str, Vec<(Metric, Vec<f64>)>)>::new();
        for row in self.parts.iter().flat_map(|part| &part.floor) {
            let at = position_or_new(&mut rows, row.what.as_str());
            for (metric, value) in &row.readings {
                let figures = &mut rows[at].1;
                let at = position_or_new(figures, *metric);
                figures[at].1.push(*value);
            }
        }
        let summaries = |figures: Vec<(Metric, Vec<f64>)>| {
            figures.into_iter().filter_map(|(metric, values)| Some((metric, Summary::of(&values)?))).collect()
        };
        rows.into_iter().map(|(what, figures)| (what, summaries(figures))).collect()
    }

    fn case(&self, case: &str) -> Value {
        let names = self.systems().into_iter().map(|system| system.name);
        let by_system = names.map(|name| (name.key().to_owned(), self.figures(case, name)));
        let ratios =
            self.others().into_iter().map(|other| (other.key().to_owned(), self.ratios(case, other)));
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

/// Where a key is, with an empty value if it was nowhere.
fn position_or_new<K: PartialEq, V: Default>(pairs: &mut Vec<(K, V)>, key: K) -> usize {
    pairs.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
        pairs.push((key, V::default()));
        pairs.len() - 1
    })
}

fn part(part: &Part) -> Value {
    json!({ "command": part.command, "note": part.note })
}

fn system(measured: &Measured) -> Value {
    let name = measured.name;
    json!({
        "name": name, "title": name.title(), "version": measured.version, "an_answer_means": name.durability(),
    })
}

fn floor((what, figures): (&str, Vec<(Metric, Summary)>)) -> Value {
    let figures = figures.into_iter().map(|(metric, summary)| (metric.key().to_owned(), summary.json()));
    json!({ "what": what, "figures": figures.collect::<Map<_, _>>() })
}

fn failure((name, failed): (Name, &Failed)) -> Value {
    json!({ "system": name, "what": failed.what, "reason": failed.reason })
}
