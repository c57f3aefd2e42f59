//! What the command says, as text or as JSON, and how it ends.

use std::fmt;
use std::process::ExitCode;

use leasehold_client::{Error, Outcome};
use serde_json::{Value, json};

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

    /// One result: the text, or the object.
    pub fn line(self, text: impl fmt::Display, object: &Value) {
        if self.json {
            println!("{object}");
        } else {
            println!("{text}");
        }
    }

    /// Says why it failed; returns the exit code.
    pub fn failed(self, failure: &Failure) -> ExitCode {
        if self.json {
            eprintln!("{}", failure.to_json());
        } else {
            eprintln!("error: {}", failure.detail);
        }
        ExitCode::from(failure.exit_code)
    }
}

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
            Outcome::Unknown => ("UNKNOWN", 3),
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
    }
}
