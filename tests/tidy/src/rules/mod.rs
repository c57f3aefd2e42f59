//! The rules, by what they look at.

pub mod dependencies;
pub mod determinism;
pub mod documents;
pub mod examples;
pub mod licences;
pub mod patches;
pub mod settings;
pub mod sources;
pub mod words;

use crate::Finding;

/// `path:line: text`, for the line that holds byte `at`.
fn at_byte(path: &str, text: &str, at: usize, what: &str) -> Finding {
    let line = text[..at].matches('\n').count() + 1;
    format!("{path}:{line}: {what}")
}
