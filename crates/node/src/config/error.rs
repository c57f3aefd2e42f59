//! What can be wrong with a configuration. Every variant names the key, where its value came from, and what would be right.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given. Later variants win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    /// The name of the environment variable.
    Environment(String),
    /// A `--set key=value` flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("the default"),
            Self::File(path) => write!(formatter, "file {}", path.display()),
            Self::Environment(variable) => write!(formatter, "environment variable {variable}"),
            Self::Flag => formatter.write_str("flag --set"),
        }
    }
}

/// A setting as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub key: &'static str,
    /// As it was written.
    pub given: String,
    pub origin: Origin,
}

impl fmt::Display for Told {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` = {} (from {})", self.key, self.given, self.origin)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {}: {error}; give the path of a readable TOML file of at most {bytes_max} bytes", path.display())]
    Unreadable { path: PathBuf, bytes_max: u64, error: std::io::Error },

    #[error("configuration file {}: not TOML: {detail}", path.display())]
    Syntax { path: PathBuf, detail: String },

    #[error("`{key}` (from {origin}) is not a setting; {advice}")]
    Unknown { key: String, origin: Origin, advice: String },

    #[error(
        "`{key}` is missing: {why}; set it in the file, as {variable} in the environment, or with --set {key}=...; \
         allowed: {allowed}"
    )]
    Missing { key: &'static str, why: &'static str, variable: String, allowed: String },

    #[error("{told} is not allowed; allowed: {allowed}")]
    Invalid { told: Told, allowed: String },

    #[error("the access keys in {} cannot be used: {detail}; give one id:secret a line", path.display())]
    AccessKeys { path: PathBuf, detail: String },

    /// Each value is fine by itself, but not beside another.
    #[error("{told} does not fit {other}; allowed: {rule}")]
    Conflict { told: Box<Told>, other: Box<Told>, rule: &'static str },

    /// An address beyond loopback that is not safe there, and that nobody asked for.
    #[error(
        "{told} is reachable beyond this host and {lack}; allowed: a loopback address such as 127.0.0.1:7400, any address \
         with TLS (`tls.certificate_file` and the keys beside it), or any address together with `insecure = true` on a \
         network that you trust"
    )]
    Insecure { told: Told, lack: &'static str },
}
