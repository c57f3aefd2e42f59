//! Has valgrind count the instructions of this program while it runs a path.

use std::env;
use std::io;
use std::process::Command;

use crate::{BATCH, Path};

/// Rounds of the shorter of the two runs: enough that arenas and tables have grown to their size.
const ROUNDS: u32 = 40;

#[derive(Debug)]
pub enum CountError {
    /// A program could not be run.
    Program(&'static str, io::Error),
    /// It ran, and did not say what was expected.
    Answer(&'static str, String),
    Baseline(String),
}

impl std::fmt::Display for CountError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program(program, error) => {
                write!(
                    formatter,
                    "{program} cannot be run ({error}): install it, and see that it is in the PATH"
                )
            }
            Self::Answer(program, output) => write!(formatter, "{program} failed: {output}"),
            Self::Baseline(what) => write!(formatter, "the baseline {what}"),
        }
    }
}

/// The version of the compiler, which decides what instructions there are.
///
/// # Errors
/// When `rustc` cannot be run.
pub fn compiler() -> Result<String, CountError> {
    let output = Command::new("rustc")
        .arg("--version")
        .output()
        .map_err(|error| CountError::Program("rustc", error))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// # Errors
/// When valgrind cannot be run, or the path fails.
pub fn instructions_a_message(path: Path) -> Result<u64, CountError> {
    let (short, long) = (instructions(path, ROUNDS)?, instructions(path, 2 * ROUNDS)?);
    Ok(long.saturating_sub(short) / u64::from(ROUNDS * BATCH))
}

fn instructions(path: Path, rounds: u32) -> Result<u64, CountError> {
    let program = env::current_exe().map_err(|error| CountError::Program("this program", error))?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    command.arg(program).args(["run", &path.name(), &rounds.to_string()]);
    let output = command.output().map_err(|error| CountError::Program("valgrind", error))?;
    let told = String::from_utf8_lossy(&output.stderr);
    counted(&told)
        .filter(|_| output.status.success())
        .ok_or_else(|| CountError::Answer("valgrind", told.into_owned()))
}

/// The number in `==7== I   refs:      1,234`.
fn counted(told: &str) -> Option<u64> {
    let line = told.lines().find(|line| line.contains(" refs:"))?;
    line.rsplit(':').next()?.trim().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_valgrind_tells_is_read() {
        assert_eq!(counted("==7== \n==7== I   refs:      1,234,567\n"), Some(1_234_567));
        assert_eq!(counted("==7== I refs:        99"), Some(99));
        assert_eq!(counted("valgrind: no such program"), None);
    }
}
