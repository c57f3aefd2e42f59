//! Every setting of a node: its name, its default and what it may be. What is not in this table is not a setting.

use leasehold_partition::limits::MACHINE_VERSION_MAX;

use super::error::ConfigError;
use super::values;
use crate::limits::{CLIENT_MESSAGE_BYTES_MAX, LIVENESS_INTERVAL_MS, PEER_MESSAGE_BYTES_MAX};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Log segments are pre-zeroed and written in pages of this size.
pub(super) const SEGMENT_ALIGNMENT_BYTES: u64 = 4 * KIB;

pub(super) struct Key {
    pub name: &'static str,
    /// In the words of the environment; `None` when it must be given or follows from another.
    pub default: Option<&'static str>,
    pub kind: Kind,
}

/// What a value looks like. Bounds are inclusive.
pub(super) enum Kind {
    NodeName,
    Path,
    File,
    Listen,
    ListenOrOff,
    Address,
    Addresses,
    Flag,
    Bytes {
        min: u64,
        max: u64,
    },
    Millis {
        min: u64,
        max: u64,
    },
    Count {
        min: u64,
        max: u64,
    },
    Choice(&'static [&'static str]),
    LogLevel,
    AccountId,
    Region,
    /// Never shown.
    AccessKeys,
}

const fn key(name: &'static str, default: Option<&'static str>, kind: Kind) -> Key {
    Key { name, default, kind }
}

/// Settings on which others depend are named here, once.
pub(super) const NAME: &str = "name";
pub(super) const DATA_DIR: &str = "data_dir";
pub(super) const CLIENT_LISTEN: &str = "client_listen";
pub(super) const PEER_LISTEN: &str = "peer_listen";
pub(super) const ADMIN_LISTEN: &str = "admin_listen";
pub(super) const CLIENT_ADVERTISE: &str = "client_advertise";
pub(super) const PEER_ADVERTISE: &str = "peer_advertise";
pub(super) const PEERS: &str = "peers";
pub(super) const VERSION_MAX: &str = "version_max";
pub(super) const INSECURE: &str = "insecure";
pub(super) const TLS_CERTIFICATE: &str = "tls.certificate_file";
pub(super) const TLS_KEY: &str = "tls.key_file";
pub(super) const TLS_AUTHORITY: &str = "tls.authority_file";
pub(super) const TLS_CLIENT_AUTHORITY: &str = "tls.client_authority_file";
pub(super) const DISK_LOW: &str = "limits.disk_low_bytes";
pub(super) const CACHE: &str = "limits.cache_bytes";
pub(super) const PENDING: &str = "limits.pending_bytes_max";
pub(super) const CONNECTIONS: &str = "limits.connections_max";
pub(super) const WORKERS: &str = "limits.worker_threads";
pub(super) const SEGMENT: &str = "log.segment_bytes";
pub(super) const HISTORY_MODE: &str = "history.mode";
pub(super) const HISTORY_BYTES: &str = "history.bytes_max";
pub(super) const HEARTBEAT: &str = "raft.heartbeat_ms";
pub(super) const ELECTION_MIN: &str = "raft.election_min_ms";
pub(super) const ELECTION_MAX: &str = "raft.election_max_ms";
pub(super) const LIVENESS: &str = "raft.liveness_timeout_ms";
pub(super) const SQS_LISTEN: &str = "sqs.listen";
pub(super) const SQS_ACCOUNT: &str = "sqs.account_id";
pub(super) const SQS_REGION: &str = "sqs.region";
pub(super) const SQS_KEYS: &str = "sqs.access_keys";
pub(super) const SQS_KEYS_FILE: &str = "sqs.access_keys_file";
pub(super) const SQS_INSECURE: &str = "sqs.insecure";
pub(super) const SQS_SHARDS: &str = "sqs.shards";
pub(super) const SQS_PACING: &str = "sqs.pacing";
pub(super) const LOGGING_FORMAT: &str = "logging.format";
pub(super) const LOGGING_LEVEL: &str = "logging.level";

pub(super) const KEYS: &[Key] = &[
    key(NAME, None, Kind::NodeName),
    key(DATA_DIR, None, Kind::Path),
    key(CLIENT_LISTEN, Some("127.0.0.1:7400"), Kind::Listen),
    key(PEER_LISTEN, Some("127.0.0.1:7401"), Kind::Listen),
    key(ADMIN_LISTEN, Some("127.0.0.1:7402"), Kind::ListenOrOff),
    key(CLIENT_ADVERTISE, None, Kind::Address),
    key(PEER_ADVERTISE, None, Kind::Address),
    key(PEERS, Some(""), Kind::Addresses),
    key(VERSION_MAX, Some("0"), Kind::Count { min: 0, max: MACHINE_VERSION_MAX as u64 }),
    key(INSECURE, Some("false"), Kind::Flag),
    key(TLS_CERTIFICATE, None, Kind::File),
    key(TLS_KEY, None, Kind::File),
    key(TLS_AUTHORITY, None, Kind::File),
    key(TLS_CLIENT_AUTHORITY, None, Kind::File),
    key(DISK_LOW, Some("512MiB"), Kind::Bytes { min: 32 * MIB, max: 1024 * GIB }),
    key(CACHE, Some("64MiB"), Kind::Bytes { min: MIB, max: 1024 * GIB }),
    key(PENDING, Some("64MiB"), Kind::Bytes { min: PENDING_BYTES_MIN, max: 64 * GIB }),
    key(CONNECTIONS, Some("4096"), Kind::Count { min: 8, max: 1_000_000 }),
    key(WORKERS, Some("0"), Kind::Count { min: 0, max: 1_024 }),
    key(SEGMENT, Some("64MiB"), Kind::Bytes { min: SEGMENT_BYTES_MIN, max: GIB }),
    key(HISTORY_MODE, Some("unusual"), Kind::Choice(&["off", "unusual", "all"])),
    key(HISTORY_BYTES, Some("256MiB"), Kind::Bytes { min: MIB, max: 1024 * GIB }),
    key(HEARTBEAT, Some("1s"), Kind::Millis { min: 10, max: 10_000 }),
    key(ELECTION_MIN, Some("3s"), Kind::Millis { min: 50, max: 60_000 }),
    key(ELECTION_MAX, Some("5s"), Kind::Millis { min: 100, max: 120_000 }),
    key(LIVENESS, Some("1s"), Kind::Millis { min: LIVENESS_MS_MIN, max: 60_000 }),
    key(SQS_LISTEN, Some("off"), Kind::ListenOrOff),
    key(SQS_ACCOUNT, Some("000000000000"), Kind::AccountId),
    key(SQS_REGION, Some("us-east-1"), Kind::Region),
    key(SQS_KEYS, Some(""), Kind::AccessKeys),
    key(SQS_KEYS_FILE, None, Kind::File),
    key(SQS_INSECURE, Some("false"), Kind::Flag),
    key(SQS_SHARDS, Some("1"), Kind::Count { min: 1, max: 1_024 }),
    key(SQS_PACING, Some("true"), Kind::Flag),
    key(LOGGING_FORMAT, Some("human"), Kind::Choice(&["human", "json"])),
    key(LOGGING_LEVEL, Some("info"), Kind::LogLevel),
];

/// A segment holds the largest message of a peer, and so every entry.
const SEGMENT_BYTES_MIN: u64 = 16 * MIB;
/// The largest request of a client fits twice.
const PENDING_BYTES_MIN: u64 = 16 * MIB;
/// A late sign of life is no death.
const LIVENESS_MS_MIN: u64 = 2 * LIVENESS_INTERVAL_MS;

const _: () = {
    assert!(SEGMENT_BYTES_MIN >= PEER_MESSAGE_BYTES_MAX as u64);
    assert!(SEGMENT_BYTES_MIN.is_multiple_of(SEGMENT_ALIGNMENT_BYTES));
    assert!(PENDING_BYTES_MIN >= 2 * CLIENT_MESSAGE_BYTES_MAX as u64);
};

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// What the value may be, in words.
    pub fn allowed(&self) -> String {
        match &self.kind {
            Kind::NodeName => "1 to 64 of a-z, 0-9 and -".into(),
            Kind::Path => "the path of a directory".into(),
            Kind::File => "the path of a file".into(),
            Kind::Listen => "an IP address and a port, such as 127.0.0.1:7400".into(),
            Kind::ListenOrOff => "an IP address and a port, such as 127.0.0.1:7402, or off".into(),
            Kind::Address => "the host:port under which others reach this node, such as a.internal:7400".into(),
            Kind::Addresses => "a list of host:port, such as [\"b.internal:7401\"], comma-separated outside of files".into(),
            Kind::Flag => "true or false".into(),
            Kind::Bytes { min, max } => {
                let (min, max) = (values::format_bytes(*min), values::format_bytes(*max));
                let whole = if self.name == SEGMENT { ", in whole pages of 4KiB" } else { "" };
                format!("a size from {min} to {max}{whole}, such as 64MiB or 67108864")
            }
            Kind::Millis { min, max } => format!("a duration from {min}ms to {max}ms, such as 250ms, 30s or 250"),
            Kind::Count { min, max } => format!("a number from {min} to {max}"),
            Kind::Choice(choices) => choices.join(", "),
            Kind::AccountId => "12 digits".into(),
            Kind::Region => "1 to 32 of a-z, 0-9 and -, such as us-east-1".into(),
            Kind::AccessKeys => {
                "a list of id:secret, such as [\"AKEXAMPLE:0123abcd\"], comma-separated outside of files; both of 1 to 128 \
                 printable characters without spaces, the id of letters, digits, - and _"
                    .into()
            }
            Kind::LogLevel => {
                "error, warn, info, debug or trace, or such levels by module, such as info,leasehold_node=debug".into()
            }
        }
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("{}{}", super::sources::VARIABLE_PREFIX, self.name.replace('.', "__").to_ascii_uppercase())
    }

    /// `why` it is needed: "every node has one", say.
    pub fn missing(&self, why: &'static str) -> ConfigError {
        ConfigError::Missing { key: self.name, why, variable: self.variable(), allowed: self.allowed() }
    }
}

/// Names further apart than this are not taken for each other's misspelling.
const DISTANCE_MAX: usize = 3;

/// What to say about a name that is not in the table.
pub(super) fn advice(unknown: &str) -> String {
    let leaf = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let same_leaf = KEYS.iter().find(|key| leaf(key.name) == leaf(unknown));
    let distances = KEYS.iter().map(|key| (edit_distance(unknown, key.name), key));
    let nearest =
        distances.min_by_key(|(distance, _)| *distance).filter(|(distance, _)| *distance <= DISTANCE_MAX);
    match same_leaf.or(nearest.map(|(_, key)| key)) {
        Some(key) => format!("did you mean `{}`? allowed there: {}", key.name, key.allowed()),
        None => {
            let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            format!("allowed: {}", names.join(", "))
        }
    }
}

/// Single-character insertions, deletions and replacements between two names.
fn edit_distance(left: &str, right: &str) -> usize {
    // Cost is the product of the lengths: a name far longer than any key is far from all of them anyway.
    if left.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, left_byte) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right_byte) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(left_byte != right_byte);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_setting_is_suggested() {
        for (unknown, meant) in [
            ("nmae", "name"),
            ("raft.heartbeat", "raft.heartbeat_ms"),
            ("heartbeat_ms", "raft.heartbeat_ms"),
            ("limits.segment_bytes", "log.segment_bytes"),
            ("client_listn", "client_listen"),
        ] {
            assert!(advice(unknown).contains(&format!("`{meant}`")), "{unknown}: {}", advice(unknown));
        }
        assert!(advice("colour").starts_with("allowed: name, data_dir"));
        assert!(advice(&"x".repeat(100_000)).starts_with("allowed: "));
    }

    #[test]
    fn names_are_unique_and_no_name_is_a_section() {
        for (i, key) in KEYS.iter().enumerate() {
            for other in &KEYS[i + 1..] {
                assert_ne!(key.name, other.name);
                assert!(!other.name.starts_with(&format!("{}.", key.name)));
            }
        }
    }
}
