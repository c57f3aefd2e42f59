//! What the paths cost when somebody last agreed to it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use serde_json::{Value, json};

use crate::count::CountError;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.json");

/// How much more a path may cost, with the compiler of the baseline.
const TOLERANCE_PERCENT: u64 = 3;
/// With another compiler, which inlines and lays out in other ways.
const OTHER_COMPILER_TOLERANCE_PERCENT: u64 = 15;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    compiler: String,
    instructions_a_message: BTreeMap<String, u64>,
}

/// One path, then and now.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    name: String,
    before: Option<u64>,
    now: u64,
    pub is_within: bool,
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, before, now, is_within } = self;
        let word = if *is_within { "" } else { "   TOO MUCH" };
        match before {
            Some(before) => write!(formatter, "{name:<16}{before:>8} before {now:>8} now{word}"),
            None => write!(formatter, "{name:<16} not in the baseline {now:>8} now{word}"),
        }
    }
}

impl Baseline {
    pub fn new(compiler: String) -> Self {
        Self { compiler, ..Self::default() }
    }

    /// # Errors
    /// When the file is missing or malformed.
    pub fn load() -> Result<Self, CountError> {
        let bad = |what: String| CountError::Baseline(format!("{FILE} cannot be read: {what}; run `bless`"));
        let text = fs::read_to_string(FILE).map_err(|error| bad(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        Self::from_json(&value).ok_or_else(|| bad("it has another form".to_owned()))
    }

    fn from_json(value: &Value) -> Option<Self> {
        let compiler = value["compiler"].as_str()?.to_owned();
        let paths = value["instructions_a_message"].as_object()?;
        let paths = paths.iter().map(|(name, count)| Some((name.clone(), count.as_u64()?)));
        Some(Self { compiler, instructions_a_message: paths.collect::<Option<_>>()? })
    }

    fn to_json(&self) -> Value {
        json!({ "compiler": self.compiler, "instructions_a_message": self.instructions_a_message })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<(), CountError> {
        let text = format!("{:#}\n", self.to_json());
        fs::write(FILE, text)
            .map_err(|error| CountError::Baseline(format!("{FILE} cannot be written: {error}")))
    }

    pub fn set(&mut self, name: String, count: u64) {
        self.instructions_a_message.insert(name, count);
    }

    /// How much more than the baseline is allowed of what this compiler makes.
    pub fn tolerance_percent(&self, compiler: &str) -> u64 {
        if compiler == self.compiler {
            return TOLERANCE_PERCENT;
        }
        println!(
            "the baseline is of {}, this is {compiler}: {OTHER_COMPILER_TOLERANCE_PERCENT} % are allowed",
            self.compiler
        );
        OTHER_COMPILER_TOLERANCE_PERCENT
    }

    /// A path that the baseline does not know is too much: somebody has to agree to it.
    pub fn compare(&self, name: &str, now: u64, tolerance_percent: u64) -> Row {
        let before = self.instructions_a_message.get(name).copied();
        let is_within = before.is_some_and(|before| now * 100 <= before * (100 + tolerance_percent));
        Row { name: name.to_owned(), before, now, is_within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_cost_a_little_more_and_no_more_than_that() {
        let mut baseline = Baseline::new("rustc 1".to_owned());
        baseline.set("cycle".to_owned(), 1_000);
        let tolerance = baseline.tolerance_percent("rustc 1");
        assert!(baseline.compare("cycle", 1_030, tolerance).is_within);
        assert!(!baseline.compare("cycle", 1_031, tolerance).is_within);
        assert!(baseline.compare("cycle", 500, tolerance).is_within);
        assert!(!baseline.compare("unknown", 1, tolerance).is_within);
        assert!(baseline.compare("cycle", 1_150, baseline.tolerance_percent("rustc 2")).is_within);
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let mut baseline = Baseline::new("rustc 1".to_owned());
        baseline.set("cycle".to_owned(), 1_000);
        assert_eq!(Baseline::from_json(&baseline.to_json()), Some(baseline));
        assert_eq!(Baseline::from_json(&json!({ "compiler": 1 })), None);
    }
}
