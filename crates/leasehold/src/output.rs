//! What the command says, as text or as JSON, and how it ends.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget};
use leasehold_client::{Error, Outcome};
use serde_json::{Value, json};

/// Says something on stderr. Where nobody reads any more, it is not said, and that stops nothing.
pub fn say(line: impl fmt::Display) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(self) -> bool {
        self.json
    }

    /// One result: the text, or the object. It is written when this returns.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn line(self, text: impl fmt::Display, object: &Value) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        if self.json { writeln!(stdout, "{object}") } else { writeln!(stdout, "{text}") }?;
        Ok(stdout.flush()?)
    }

    /// As [`Output::line`], for what has changed something: when it cannot be told, it was done all the same.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn done(self, text: &str, object: &Value) -> Result<(), Failure> {
        self.line(text, object).map_err(|why| Failure::untold(text, &why, None))
    }

    /// A body as it is, or the object.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn bytes(self, body: &[u8], object: &Value) -> Result<(), Failure> {
        if self.json {
            return self.line("", object);
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(body)?;
        stdout.write_all(b"\n")?;
        Ok(stdout.flush()?)
    }

    /// A sign of life for long work: drawn on stderr when it is a terminal, and otherwise nowhere.
    pub fn progress(self, length: Option<u64>) -> ProgressBar {
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        if self.json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar
    }

    /// Says why it failed; returns the exit code.
    pub fn failed(self, failure: &Failure) -> ExitCode {
        self.tell(failure);
        ExitCode::from(failure.exit_code())
    }

    /// Says why something of it failed.
    pub fn tell(self, failure: &Failure) {
        if self.json {
            say(failure.to_json());
        } else {
            say(format_args!("error: {}", failure.detail));
        }
    }
}

/// The exit code when nobody knows whether it was done, or nobody could be told that it was.
const UNKNOWN: u8 = 3;

/// Why a command did not do what it was asked.
#[derive(Debug, Clone)]
pub struct Failure {
    outcome: &'static str,
    reason: String,
    detail: String,
    exit_code: u8,
}

impl Failure {
    /// Nothing was done.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { outcome: "NOT_DONE", reason: "NONE".to_owned(), detail: detail.into(), exit_code: 1 }
    }

    /// The user asked for something that makes no sense.
    pub fn usage(detail: impl Into<String>) -> Self {
        Self { reason: "INVALID_ARGUMENT".to_owned(), exit_code: 2, ..Self::new(detail) }
    }

    /// Nobody can say how it is.
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self { outcome: "UNKNOWN", exit_code: UNKNOWN, ..Self::new(detail) }
    }

    /// It was done, and only could not be told: whoever repeats it does it twice. What failed beside it keeps its outcome.
    pub fn untold(done: &str, why: &Self, beside: Option<Self>) -> Self {
        let detail = format!("{done}, which could not be told: {why}");
        match beside {
            None => Self { outcome: "DONE", exit_code: UNKNOWN, ..Self::new(detail) },
            Some(failure) => Self { exit_code: UNKNOWN, ..failure.in_front(&format!("{detail}; ")) },
        }
    }

    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Says first what it was about.
    pub fn in_front(self, what: &str) -> Self {
        Self { detail: format!("{what}{}", self.detail), ..self }
    }

    /// Says how many items of how many failed; what is unknown of one is unknown of all.
    pub fn of_items(self, failed: u64, all: u64, what: &str) -> Self {
        if all == 1 {
            self
        } else {
            Self { detail: format!("{failed} of {all} {what}: {}", self.detail), ..self }
        }
    }

    /// The one that says less for certain.
    pub fn or_less_certain(self, other: Self) -> Self {
        if other.exit_code == UNKNOWN && self.exit_code != UNKNOWN { other } else { self }
    }

    fn to_json(&self) -> Value {
        json!({ "outcome": self.outcome, "reason": self.reason, "detail": self.detail })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.detail)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (outcome, exit_code) = match error.outcome {
            Outcome::Unknown => ("UNKNOWN", UNKNOWN),
            Outcome::Done | Outcome::NotDone => ("NOT_DONE", 1),
        };
        Self { outcome, reason: error.reason.as_str_name().to_owned(), detail: error.to_string(), exit_code }
    }
}

impl From<leasehold::processes::ProcessError> for Failure {
    fn from(error: leasehold::processes::ProcessError) -> Self {
        Self::new(error.0)
    }
}

impl From<leasehold::backup::BackupError> for Failure {
    fn from(error: leasehold::backup::BackupError) -> Self {
        match error {
            leasehold::backup::BackupError::Client(error) => error.into(),
            error => Self::new(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_the_same_shape_whatever_it_is() {
        let failure = Failure::usage("no such thing").to_json();
        assert_eq!(
            failure,
            json!({"outcome": "NOT_DONE", "reason": "INVALID_ARGUMENT", "detail": "no such thing"})
        );
        assert_eq!(Failure::usage("").exit_code, 2);
        assert_eq!(Failure::new("").exit_code, 1);
        assert_eq!(Failure::unknown("").exit_code, 3);
    }

    #[test]
    fn what_was_done_and_cannot_be_told_is_not_called_undone() {
        let why = Failure::new("Broken pipe");
        let untold = Failure::untold("2 messages sent", &why, None);
        let detail = "2 messages sent, which could not be told: Broken pipe";
        assert_eq!(untold.to_json(), json!({"outcome": "DONE", "reason": "NONE", "detail": detail}));
        let mixed = Failure::untold("2 messages sent", &why, Some(Failure::usage("line 3: too large")));
        let detail = format!("{detail}; line 3: too large");
        let told = json!({"outcome": "NOT_DONE", "reason": "INVALID_ARGUMENT", "detail": detail});
        assert_eq!((mixed.to_json(), mixed.exit_code), (told, 3));
    }
}
