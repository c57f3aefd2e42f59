//! What the project asks of its own files, beyond what the compiler and clippy can see.
//!
//! ```text
//!   git ls-files ─▶ files ─▶ rules, functions over text ─▶ findings: "path:line: what is wrong, and what would be right"
//! ```
//!
//! Each rule has a unit test that shows that it fails on bad input; `tests/tidy.rs` runs all of them over the repository.

pub mod files;
pub mod rules;
pub mod source;

/// What is wrong somewhere: `path:line: text` or `path: text`.
pub type Finding = String;
