//! Keeps what a comparison found out, so that it can be cut short and continued, and be made in parts.
//!
//! ```text
//!  {"conditions": …}   first: what must be the same in all parts
//!  {"part": …}         for each call that measures: its command, its systems, the floor of the machine
//!  {"run": …}          for each workload on each system, when it was done
//! ```
//!
//! A line is written when it is complete, and what was cut off in the middle of a line is measured again. So is a run whose line
//! somebody takes away.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document::Document;
use super::floor::Row;
use super::machine::Machine;
use super::results::{Log, Results};
use super::system::Failure;
use super::systems::Name;
use super::workloads::Workload;

/// Grows when a field comes, goes or changes its meaning.
pub const VERSION: u32 = 1;

/// What must be the same for all figures of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// [`VERSION`] of the program that wrote them.
    pub version: u32,
    pub machine: Machine,
    /// The build of the program that measures.
    pub harness: String,
    pub runs: u32,
    pub seconds: u64,
    pub pipeline_seconds: u64,
    pub kills: u32,
    pub partitions: u32,
}

/// A system, and which of its builds was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    pub name: Name,
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    pub name: Name,
    pub reason: Failure,
}

/// One call of the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub command: String,
    pub note: String,
    pub systems: Vec<Measured>,
    pub skipped: Vec<Skipped>,
    pub floor: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Conditions(Conditions),
    Part(Part),
    Run(Log),
}

/// What is in a file.
#[derive(Debug, Default)]
struct Content {
    conditions: Option<Conditions>,
    parts: Vec<Part>,
    logs: Vec<Log>,
    /// Up to the end of the last line that is complete.
    whole_bytes: usize,
}

#[derive(Debug)]
pub struct Journal {
    /// Without one it is in memory alone.
    file: Option<File>,
    conditions: Conditions,
    parts: Vec<Part>,
    logs: Vec<Log>,
}

impl Journal {
    pub fn in_memory(conditions: Conditions) -> Self {
        Self { file: None, conditions, parts: Vec::new(), logs: Vec::new() }
    }

    /// Continues a file, or begins it. It is this program's alone until the value ends.
    ///
    /// # Errors
    /// When it cannot be read or written, is no such file, or what is in it was measured under other conditions.
    pub fn open(path: &Path, conditions: Conditions) -> Result<Self, Failure> {
        let named = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
        let mut options = File::options();
        let opened = options.read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(|error| named(&error))?;
        file.try_lock().map_err(|_| named(&"another program writes it"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let content = parse(&bytes).map_err(|failure| named(&failure))?;
        let Some(before) = content.conditions else {
            let mut journal = Self { file: Some(file), ..Self::in_memory(conditions.clone()) };
            journal.write(&Line::Conditions(conditions))?;
            return Ok(journal);
        };
        if let Some(difference) = difference(&before, &conditions)? {
            return Err(named(&format!(
                "it was measured under other conditions: {difference}. Measure under the same ones, or keep this in another file"
            )));
        }
        file.set_len(content.whole_bytes as u64)?;
        Ok(Self { file: Some(file), conditions, parts: content.parts, logs: content.logs })
    }

    /// What a file has, to be told again.
    ///
    /// # Errors
    /// When it cannot be read or is no such file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let named = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
        let content = parse(&std::fs::read(path).map_err(|error| named(&error))?);
        let content = content.map_err(|failure| named(&failure))?;
        let conditions = content.conditions.ok_or_else(|| named(&"nothing is in it"))?;
        Ok(Self { file: None, conditions, parts: content.parts, logs: content.logs })
    }

    /// # Errors
    /// When another build of one of the systems was measured before.
    pub fn check(&self, systems: &[Measured]) -> Result<(), Failure> {
        let before = self.parts.iter().flat_map(|part| &part.systems);
        let mut pairs = before.flat_map(|before| systems.iter().map(move |now| (before, now)));
        let other = pairs.find(|(before, now)| before.name == now.name && before.version != now.version);
        other.map_or(Ok(()), |(before, now)| {
            Err(Failure::new(format!(
                "what was kept is of {} {}, and this is {}: keep it in another file",
                now.name.title(),
                before.version,
                now.version
            )))
        })
    }

    pub fn has(&self, workload: Workload, round: u32, system: Name) -> bool {
        self.logs.iter().any(|log| (log.workload, log.round, log.system) == (workload, round, system))
    }

    pub fn begin_part(&mut self, part: Part) -> Result<(), Failure> {
        self.write(&Line::Part(part.clone()))?;
        self.parts.push(part);
        Ok(())
    }

    pub fn keep(&mut self, log: Log) -> Result<(), Failure> {
        self.write(&Line::Run(log.clone()))?;
        self.logs.push(log);
        Ok(())
    }

    pub fn into_document(self) -> Document {
        Document { conditions: self.conditions, parts: self.parts, results: Results::of(self.logs) }
    }

    /// In one write, and so that it outlasts the machine: what is in the file took minutes.
    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        file.write_all(text.as_bytes())?;
        Ok(file.sync_data()?)
    }
}

fn parse(bytes: &[u8]) -> Result<Content, Failure> {
    let whole_bytes = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole_bytes == 0 && !bytes.is_empty() {
        return Err(Failure::new("it has no whole line: remove it, or name another file"));
    }
    let mut content = Content { whole_bytes, ..Content::default() };
    for (at, line) in std::str::from_utf8(&bytes[..whole_bytes])?.lines().enumerate() {
        let named =
            |error: &dyn std::fmt::Display| Failure::new(format!("line {} cannot be read: {error}", at + 1));
        if at == 0 {
            check_version(line).map_err(|failure| named(&failure))?;
        }
        match serde_json::from_str(line).map_err(|error| named(&error))? {
            Line::Conditions(conditions) => content.conditions = Some(conditions),
            Line::Part(part) => content.parts.push(part),
            Line::Run(log) => content.logs.push(log),
        }
    }
    Ok(content)
}

/// Before anything else is looked at, since all of it may be different in another version.
fn check_version(line: &str) -> Result<(), Failure> {
    let version = serde_json::from_str::<Value>(line)?["conditions"]["version"].clone();
    if version == VERSION {
        return Ok(());
    }
    Err(Failure::new(format!("it is of version {version}, and this program knows version {VERSION}")))
}

/// What is not the same, in words.
fn difference(before: &Conditions, now: &Conditions) -> Result<Option<String>, Failure> {
    let (before, now) = (serde_json::to_value(before)?, serde_json::to_value(now)?);
    let fields = before.as_object().into_iter().flatten();
    let other = fields.filter(|(name, value)| now[name.as_str()] != **value);
    let told = other.map(|(name, value)| format!("{name} was {value} and is {}", now[name.as_str()]));
    let told = told.collect::<Vec<_>>().join(", ");
    Ok((!told.is_empty()).then_some(told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::metric::Metric;

    /// As it lies on disks: a reader of this version must go on to understand it.
    const WRITTEN: &str = concat!(
        r#"{"conditions":{"version":1,"machine":{"processor":"P","cores":2,"memory_mib":1024,"kernel":"6.1","filesystem":"ext4"},"#,
        r#""harness":"release build 0a","runs":3,"seconds":5,"pipeline_seconds":300,"kills":5,"partitions":4}}"#,
        "\n",
        r#"{"part":{"command":"leasehold-bench compare","note":"n","systems":[{"name":"leasehold","version":"1"}],"#,
        r#""skipped":[{"name":"nats-synced","reason":"gone"}],"floor":[{"what":"sync","readings":[["p50_ms",0.25]]}]}}"#,
        "\n",
        r#"{"run":{"workload":"w1","round":2,"system":"leasehold","took_s":1.5,"#,
        r#""records":[{"case":"W1 a","readings":[["messages_per_s",5.0],["p99_9_ms",0.5]]}],"#,
        r#""failures":[{"what":"W1 b","reason":"no"}]}}"#,
        "\n",
    );

    fn conditions() -> Conditions {
        let machine = Machine {
            processor: "P".to_owned(),
            cores: 2,
            memory_mib: 1024,
            kernel: "6.1".to_owned(),
            filesystem: "ext4".to_owned(),
        };
        Conditions {
            version: VERSION,
            machine,
            harness: "release build 0a".to_owned(),
            runs: 3,
            seconds: 5,
            pipeline_seconds: 300,
            kills: 5,
            partitions: 4,
        }
    }

    fn measured(version: &str) -> Measured {
        Measured { name: Name::Leasehold, version: version.to_owned() }
    }

    fn part() -> Part {
        Part {
            command: "leasehold-bench compare".to_owned(),
            note: "n".to_owned(),
            systems: vec![measured("1")],
            skipped: vec![Skipped { name: Name::NatsSynced, reason: Failure::new("gone") }],
            floor: vec![Row { what: "sync".to_owned(), readings: vec![(Metric::P50Ms, 0.25)] }],
        }
    }

    fn log() -> Log {
        let mut log = Log::new(Workload::W1, 2, Name::Leasehold);
        log.record("W1 a", vec![(Metric::MessagesPerS, 5.0), (Metric::P999Ms, 0.5)]);
        log.fail("W1 b", Failure::new("no"));
        log.took_s = 1.5;
        log
    }

    fn reason(opened: Result<Journal, Failure>) -> String {
        opened.unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_has_the_form_of_its_version_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let mut journal = Journal::open(&path, conditions()).unwrap();
        journal.begin_part(part()).unwrap();
        journal.keep(log()).unwrap();
        drop(journal);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), WRITTEN);
        for journal in [Journal::read(&path).unwrap(), Journal::open(&path, conditions()).unwrap()] {
            assert_eq!(journal.conditions, conditions());
            assert_eq!((journal.parts, journal.logs), (vec![part()], vec![log()]));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), WRITTEN);
    }

    /// A report made again must say what the first said. Readers that are quick with numbers are wrong in the last bit of some.
    #[test]
    fn figures_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let values = (1..2_000).map(|at| f64::from(at) * 1_000.0 / 3.7 / f64::from(at % 97 + 7));
        let readings = values.map(|value| (Metric::MessagesPerS, value)).collect::<Vec<_>>();
        let mut log = Log::new(Workload::W1, 2, Name::Leasehold);
        log.record("W1 a", readings.clone());
        let mut journal = Journal::open(&path, conditions()).unwrap();
        journal.keep(log).unwrap();
        drop(journal);
        let read = Journal::read(&path).unwrap().logs.remove(0).records.remove(0).readings;
        let changed = readings.iter().zip(&read).find(|(written, read)| written != read);
        assert_eq!((changed, read.len()), (None, readings.len()));
    }

    #[test]
    fn only_what_has_no_line_is_still_to_be_measured() {
        let mut journal = Journal::in_memory(conditions());
        journal.keep(log()).unwrap();
        assert!(journal.has(Workload::W1, 2, Name::Leasehold));
        for (workload, round, system) in [
            (Workload::W2, 2, Name::Leasehold),
            (Workload::W1, 1, Name::Leasehold),
            (Workload::W1, 2, Name::Nats),
        ] {
            assert!(!journal.has(workload, round, system));
        }
    }

    #[test]
    fn a_line_that_was_cut_off_is_forgotten_and_the_file_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        std::fs::write(&path, format!("{WRITTEN}{{\"run\":{{\"workl")).unwrap();
        assert_eq!(Journal::read(&path).unwrap().logs, [log()]);
        let mut journal = Journal::open(&path, conditions()).unwrap();
        journal.keep(Log { round: 3, ..log() }).unwrap();
        drop(journal);
        assert_eq!(Journal::read(&path).unwrap().logs, [log(), Log { round: 3, ..log() }]);
    }

    #[test]
    fn other_conditions_are_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        std::fs::write(&path, WRITTEN).unwrap();
        let other = Conditions { seconds: 3, harness: "release build 0b".to_owned(), ..conditions() };
        let said = reason(Journal::open(&path, other));
        for part in ["kept", "seconds was 5 and is 3", "harness was \"release build 0a\"", "another file"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), WRITTEN);
    }

    #[test]
    fn another_build_of_a_system_is_refused_and_another_system_is_not() {
        let mut journal = Journal::in_memory(conditions());
        journal.begin_part(part()).unwrap();
        let nats = Measured { name: Name::Nats, version: "2".to_owned() };
        assert_eq!(journal.check(&[measured("1"), nats]), Ok(()));
        let said = journal.check(&[measured("1, release build 77")]).unwrap_err().to_string();
        assert!(said.contains("Leasehold 1, and this is 1, release build 77"), "{said}");
    }

    #[test]
    fn what_is_no_such_file_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        for (text, expected) in [
            ("notes", "no whole line"),
            ("notes\n", "line 1 cannot be read"),
            ("{\"conditions\":{\"version\":2}}\n", "version 2, and this program knows version 1"),
            (&format!("{WRITTEN}{{\"jump\":1}}\n"), "line 4 cannot be read: unknown variant"),
        ] {
            std::fs::write(&path, text).unwrap();
            let said = reason(Journal::open(&path, conditions()));
            assert!(said.contains(expected) && said.contains("kept"), "{said}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let said = reason(Journal::read(&dir.path().join("nothing")));
        assert!(said.contains("nothing"), "{said}");
    }

    #[test]
    fn two_programs_do_not_write_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let _open = Journal::open(&path, conditions()).unwrap();
        assert!(reason(Journal::open(&path, conditions())).contains("another program"));
    }
}
