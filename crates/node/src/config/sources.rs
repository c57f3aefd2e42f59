//! The three sources of settings, flattened to `section.key` and laid over each other.
//!
//! ```text
//!   file (TOML tables)      raft = { heartbeat_ms = "250ms" }   --+
//!   environment             LEASEHOLD_RAFT__HEARTBEAT_MS=250ms  --+-->  raft.heartbeat_ms -> (value, origin)
//!   flags                   --set raft.heartbeat_ms=250ms       --+     the last one given wins
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::Value;

use super::error::{ConfigError, Origin};
use super::keys::{self, Key};

pub(super) const VARIABLE_PREFIX: &str = "LEASEHOLD_";
/// Variables of that prefix that the commands read themselves.
pub(super) const VARIABLES_OF_COMMANDS: &[&str] = &[
    "LEASEHOLD_CONFIG",
    "LEASEHOLD_ENDPOINT",
    "LEASEHOLD_CLIENT_TLS_AUTHORITY_FILE",
    "LEASEHOLD_CLIENT_TLS_CERTIFICATE_FILE",
    "LEASEHOLD_CLIENT_TLS_KEY_FILE",
];
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A value as it was given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    /// From the environment, a flag, or a string of the file.
    Text(String),
    /// A list of the file, all strings.
    List(Vec<String>),
    /// Any other type of the file, as it is written there.
    Other(String),
}

impl fmt::Display for Given {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::List(items) => write!(formatter, "{items:?}"),
            Self::Other(text) => formatter.write_str(text),
        }
    }
}

/// All that was given, by the name of the setting.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<&'static str, (Given, Origin)>);

impl Settings {
    pub fn gather(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        if let Some(path) = path {
            let origin = Origin::File(path.to_owned());
            settings.add_table("", read_file(path)?, &origin)?;
        }
        // In order of their names, so that the same mistake is reported first each time.
        let mut variables: Vec<(String, String)> = environment.filter(|(name, _)| is_setting(name)).collect();
        variables.sort_unstable();
        for (variable, text) in variables {
            let name = variable[VARIABLE_PREFIX.len()..].replace("__", ".").to_ascii_lowercase();
            settings.add(&name, Given::Text(text), Origin::Environment(variable))?;
        }
        for (name, text) in overrides {
            settings.add(name, Given::Text(text.clone()), Origin::Flag)?;
        }
        Ok(settings)
    }

    /// What was given for the key, or its default.
    pub fn get(&self, key: &Key) -> Option<(Given, Origin)> {
        let default = || Some((Given::Text(key.default?.to_owned()), Origin::Default));
        self.0.get(key.name).cloned().or_else(default)
    }

    fn add(&mut self, name: &str, given: Given, origin: Origin) -> Result<(), ConfigError> {
        match keys::find(name) {
            Some(key) => {
                self.0.insert(key.name, (given, origin));
                Ok(())
            }
            None => Err(ConfigError::Unknown { key: name.to_owned(), origin, advice: keys::advice(name) }),
        }
    }

    /// Depth is bounded by the parser.
    fn add_table(&mut self, section: &str, table: toml::Table, origin: &Origin) -> Result<(), ConfigError> {
        for (name, value) in table {
            let name = if section.is_empty() { name } else { format!("{section}.{name}") };
            match value {
                Value::Table(inner) if keys::find(&name).is_none() => self.add_table(&name, inner, origin)?,
                value => self.add(&name, given_in_file(value), origin.clone())?,
            }
        }
        Ok(())
    }
}

fn given_in_file(value: Value) -> Given {
    let other = Given::Other(value.to_string());
    match value {
        Value::String(text) => Given::Text(text),
        Value::Integer(number) => Given::Text(number.to_string()),
        Value::Boolean(flag) => Given::Text(flag.to_string()),
        Value::Array(items) => {
            let texts = items.into_iter().map(|item| match item {
                Value::String(text) => Some(text),
                _ => None,
            });
            texts.collect::<Option<Vec<String>>>().map_or(other, Given::List)
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => other,
    }
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let unreadable =
        |error| ConfigError::Unreadable { path: path.to_owned(), bytes_max: FILE_BYTES_MAX, error };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    toml::from_str(&text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        // Not the line itself: it may hold a secret.
        detail: format!("line {}: {}", line_of(&text, error.span()), error.message()),
    })
}

fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count()
}

/// Whether a variable is meant for the configuration. Besides those of the commands, Kubernetes sets variables such as
/// `LEASEHOLD_PORT_7400_TCP` and `LEASEHOLD_SERVICE_HOST` in every pod beside a service named `leasehold`.
fn is_setting(variable: &str) -> bool {
    let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else { return false };
    let of_kubernetes = ["PORT", "SERVICE_HOST", "SERVICE_PORT"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')));
    !of_kubernetes && !VARIABLES_OF_COMMANDS.contains(&variable)
}
