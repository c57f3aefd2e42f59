//! The configuration of one node: a TOML file, under the environment, under flags.
//!
//! Nothing is guessed: an unknown key, a value out of its bounds or two values that do not fit stop the node before it
//! touches its data, with an error that names the key, where it came from and what is allowed. Listeners stay on loopback
//! until they have TLS, or somebody writes `insecure = true`.

mod address;
mod error;
mod keys;
mod read;
mod sources;
mod sqs;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use address::{Address, AddressError};
pub use error::{ConfigError, Origin, Told};
pub use sqs::{AccessKey, Pacing, Secret, Sqs};

/// All settings, checked: `Config::load` returns only what satisfies every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Unique in the cluster; it goes with the data for ever.
    pub name: String,
    pub data_dir: PathBuf,
    pub client_listen: SocketAddr,
    pub peer_listen: SocketAddr,
    pub admin_listen: Option<SocketAddr>,
    /// Where clients are sent. Without one it is the address that the listener has got: see `client_advertised`.
    pub client_advertise: Option<Address>,
    pub peer_advertise: Option<Address>,
    /// Peer listeners of nodes that may know the cluster.
    pub peers: Vec<Address>,
    /// The highest version that this node lets its cluster go to.
    pub version_max: u32,
    pub security: Security,
    pub tls: Option<TlsFiles>,
    pub limits: Limits,
    pub log: Log,
    pub history: History,
    pub raft: RaftTiming,
    /// The listener for clients of Amazon SQS, if there is one.
    pub sqs: Option<Sqs>,
    pub logging: Logging,
}

/// How far the node may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Every listener and every advertised address is this host's own, or has TLS and knows who asks.
    Secure,
    /// `insecure = true`: anyone on the network may read, send and administer.
    Insecure,
}

/// Certificates and keys as PEM. With them every listener speaks TLS and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This node's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates of nodes: peers show one each way.
    pub authority: PathBuf,
    /// Who signs the certificates of clients; without it they are not asked for one.
    pub client_authority: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Below this much free disk, everything but settling is refused.
    pub disk_low_bytes: u64,
    /// Message contents kept in memory.
    pub cache_bytes: u64,
    /// Requests that were read and not yet answered; beyond it callers are told to come back.
    pub pending_bytes_max: u64,
    /// Client connections.
    pub connections_max: u64,
    /// Of the runtime that the node runs on, which whoever starts the node makes; 0 for one a processor.
    pub worker_threads: u64,
}

/// The write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    pub segment_bytes: u64,
}

/// What is kept for `leasehold why`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    pub mode: HistoryMode,
    pub bytes_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryMode {
    Off,
    /// Expiries, releases, deaths and drops, but not the plain life of a message that was sent, granted once and acked.
    Unusual,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTiming {
    pub heartbeat_ms: u64,
    /// An election timeout is drawn from `election_min_ms..election_max_ms`. At least three heartbeats.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    /// A peer that was silent for so long is taken for dead.
    pub liveness_timeout_ms: u64,
}

/// What the node writes to stderr; not to be confused with `Log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    pub format: LogFormat,
    /// A level, or levels by module: `info,leasehold_node=debug`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}

impl Config {
    /// Reads the file, lays the environment and then the flags over it, and checks everything.
    ///
    /// `environment` may be the whole environment of the process (see `process_environment`): only `LEASEHOLD_...` is looked
    /// at, with `__` between a section and its key. `overrides` are the pairs of `--set key=value`.
    pub fn load(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        read::config(&sources::Settings::gather(path, environment, overrides)?)
    }

    /// The defaults, for a node on loopback.
    pub fn with_defaults(name: &str, data_dir: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::load(
            None,
            std::iter::empty(),
            &[("name".into(), name.into()), ("data_dir".into(), ".".into())],
        )?;
        // Set afterwards, for a path need not be text.
        config.data_dir = data_dir.to_owned();
        Ok(config)
    }

    /// Where clients reach this node whose client listener is bound to `bound`.
    pub fn client_advertised(&self, bound: SocketAddr) -> Result<Address, AddressError> {
        self.client_advertise.clone().map_or_else(|| Address::try_from(bound), Ok)
    }

    /// Where peers reach this node whose peer listener is bound to `bound`.
    pub fn peer_advertised(&self, bound: SocketAddr) -> Result<Address, AddressError> {
        self.peer_advertise.clone().map_or_else(|| Address::try_from(bound), Ok)
    }

    /// What an operator should know at every start.
    pub fn warnings(&self) -> Vec<String> {
        let exposed = self.listeners().into_iter().filter_map(|(key, listen)| {
            let listen = listen.filter(|listen| !read::is_loopback(*listen))?;
            let lack = self.lack(key)?;
            Some(format!(
                "`{key}` = {listen} is open to the network, and {lack}: anyone there may read, send and administer"
            ))
        });
        let unsigned = self.sqs.as_ref().filter(|sqs| sqs.access_keys.is_empty()).map(|sqs| {
            format!(
                "SQS clients on {} are not asked who they are: any credentials are taken (`sqs.insecure`)",
                sqs.listen
            )
        });
        exposed.chain(unsigned).collect()
    }

    fn listeners(&self) -> [(&'static str, Option<SocketAddr>); 4] {
        [
            (keys::CLIENT_LISTEN, Some(self.client_listen)),
            (keys::PEER_LISTEN, Some(self.peer_listen)),
            (keys::ADMIN_LISTEN, self.admin_listen),
            (keys::SQS_LISTEN, self.sqs.as_ref().map(|sqs| sqs.listen)),
        ]
    }

    /// What a listener or an advertised address lacks to be safe beyond this host. What the administration's listener
    /// tells is for everybody.
    fn lack(&self, key: &str) -> Option<&'static str> {
        let Some(tls) = &self.tls else { return Some("TLS is not configured") };
        match key {
            keys::CLIENT_LISTEN | keys::CLIENT_ADVERTISE if tls.client_authority.is_none() => {
                Some("clients are not asked for certificates (`tls.client_authority_file`)")
            }
            keys::SQS_LISTEN if self.sqs.as_ref().is_some_and(|sqs| sqs.access_keys.is_empty()) => {
                Some("SQS clients are not asked who they are (`sqs.insecure`)")
            }
            _ => None,
        }
    }

    /// Says the warnings in the log.
    pub fn log_warnings(&self) {
        for warning in self.warnings() {
            tracing::warn!(node = %self.name, "{warning}");
        }
    }
}

/// The variables of this process that are text; others cannot be settings.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
