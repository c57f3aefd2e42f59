//! From settings as text to a `Config`: each value against its own bounds, then against the others.

use std::net::SocketAddr;
use std::path::PathBuf;

use leasehold_partition::limits::MACHINE_VERSION_MAX;

use super::address::Address;
use super::error::{ConfigError, Origin, Told};
use super::keys::{self, Key, Kind};
use super::sources::{Given, Settings};
use super::sqs::{self, AccessKey};
use super::values;
use super::{
    Config, History, HistoryMode, Limits, Log, LogFormat, Logging, Pacing, RaftTiming, Security, Sqs,
    TlsFiles,
};

const NAME_BYTES_MAX: usize = 64;
/// An election needs several missed heartbeats: one lost packet is no reason for it.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 3;
/// Acks need room after everything else is refused: one segment being written and one being compacted.
const SEGMENTS_BELOW_DISK_LOW: u64 = 2;

pub(super) fn config(settings: &Settings) -> Result<Config, ConfigError> {
    let reader = Reader { settings };
    let config = Config {
        name: reader.name()?,
        data_dir: PathBuf::from(
            reader.text(keys::DATA_DIR, |text| (!text.is_empty()).then(|| text.to_owned()))?,
        ),
        client_listen: reader.listen(keys::CLIENT_LISTEN)?,
        peer_listen: reader.listen(keys::PEER_LISTEN)?,
        admin_listen: reader.listen_or_off(keys::ADMIN_LISTEN)?,
        client_advertise: reader.advertise(keys::CLIENT_ADVERTISE)?,
        peer_advertise: reader.advertise(keys::PEER_ADVERTISE)?,
        peers: reader.addresses(keys::PEERS)?,
        version_max: reader.version_max()?,
        security: reader.security()?,
        tls: reader.tls()?,
        limits: Limits {
            disk_low_bytes: reader.number(keys::DISK_LOW)?,
            cache_bytes: reader.number(keys::CACHE)?,
            pending_bytes_max: reader.number(keys::PENDING)?,
            connections_max: reader.number(keys::CONNECTIONS)?,
            worker_threads: reader.number(keys::WORKERS)?,
        },
        log: Log { segment_bytes: reader.number(keys::SEGMENT)? },
        history: History { mode: reader.history_mode()?, bytes_max: reader.number(keys::HISTORY_BYTES)? },
        raft: RaftTiming {
            heartbeat_ms: reader.number(keys::HEARTBEAT)?,
            election_min_ms: reader.number(keys::ELECTION_MIN)?,
            election_max_ms: reader.number(keys::ELECTION_MAX)?,
            liveness_timeout_ms: reader.number(keys::LIVENESS)?,
        },
        sqs: reader.sqs()?,
        logging: Logging { format: reader.log_format()?, level: reader.log_level()? },
    };
    reader.check_relations(&config)?;
    reader.check_addresses(&config)?;
    reader.check_security(&config)?;
    Ok(config)
}

/// Whether only this host can reach a listener.
pub(super) fn is_loopback(listen: SocketAddr) -> bool {
    listen.ip().to_canonical().is_loopback()
}

struct Reader<'a> {
    settings: &'a Settings,
}

/// Every name asked for is one of the table's own constants.
fn known(name: &str) -> &'static Key {
    keys::find(name).expect("a key of the table")
}

impl Reader<'_> {
    fn given(&self, name: &str) -> Option<(Given, Origin)> {
        self.settings.get(known(name))
    }

    fn told(&self, name: &str) -> Option<Told> {
        let (given, origin) = self.given(name)?;
        let given = match known(name).kind {
            Kind::AccessKeys => "(not shown)".to_owned(),
            _ => given.to_string(),
        };
        Some(Told { key: known(name).name, given, origin })
    }

    fn invalid(&self, name: &str) -> ConfigError {
        let key = known(name);
        match self.told(name) {
            None => key.missing("it has no default"),
            Some(told) => ConfigError::Invalid { told, allowed: key.allowed() },
        }
    }

    /// Both settings have been read.
    fn conflict(&self, name: &str, other: &str, rule: &'static str) -> ConfigError {
        let told = |name: &str| Box::new(self.told(name).expect("a setting that was read"));
        ConfigError::Conflict { told: told(name), other: told(other), rule }
    }

    /// A setting that is text, through `parse`.
    fn text<T>(&self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, ConfigError> {
        match self.given(name) {
            Some((Given::Text(text), _)) => parse(&text).ok_or_else(|| self.invalid(name)),
            _ => Err(self.invalid(name)),
        }
    }

    fn name(&self) -> Result<String, ConfigError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = |text: &str| (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        self.text(keys::NAME, |text| fits(text).then(|| text.to_owned()))
    }

    fn number(&self, name: &str) -> Result<u64, ConfigError> {
        let within =
            |number: Option<u64>, min: u64, max: u64| number.filter(|number| (min..=max).contains(number));
        self.text(name, |text| match known(name).kind {
            Kind::Bytes { min, max } => within(values::parse_bytes(text), min, max)
                .filter(|bytes| name != keys::SEGMENT || bytes.is_multiple_of(keys::SEGMENT_ALIGNMENT_BYTES)),
            Kind::Millis { min, max } => within(values::parse_millis(text), min, max),
            Kind::Count { min, max } => within(values::parse_count(text), min, max),
            _ => None,
        })
    }

    fn version_max(&self) -> Result<u32, ConfigError> {
        match self.number(keys::VERSION_MAX)? {
            0 => Ok(MACHINE_VERSION_MAX),
            held => u32::try_from(held).map_err(|_| self.invalid(keys::VERSION_MAX)),
        }
    }

    fn listen(&self, name: &str) -> Result<SocketAddr, ConfigError> {
        self.text(name, |text| text.parse().ok())
    }

    fn listen_or_off(&self, name: &str) -> Result<Option<SocketAddr>, ConfigError> {
        self.text(name, |text| if text == "off" { Some(None) } else { text.parse().ok().map(Some) })
    }

    fn advertise(&self, name: &str) -> Result<Option<Address>, ConfigError> {
        match self.given(name) {
            None => Ok(None),
            Some(_) => self.text(name, |text| text.parse().ok().map(Some)),
        }
    }

    fn addresses(&self, name: &str) -> Result<Vec<Address>, ConfigError> {
        let texts = self.list(name)?;
        texts.iter().map(|text| text.parse().map_err(|_| self.invalid(name))).collect()
    }

    fn list(&self, name: &str) -> Result<Vec<String>, ConfigError> {
        match self.given(name) {
            Some((Given::List(texts), _)) => Ok(texts),
            Some((Given::Text(text), _)) if text.trim().is_empty() => Ok(Vec::new()),
            Some((Given::Text(text), _)) => Ok(text.split(',').map(|part| part.trim().to_owned()).collect()),
            _ => Err(self.invalid(name)),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        self.text(name, |text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// Checked also where the listener is off: a wrong value should not wait for the day on which it is on.
    fn sqs(&self) -> Result<Option<Sqs>, ConfigError> {
        let listen = self.listen_or_off(keys::SQS_LISTEN)?;
        let access_keys = self.access_keys()?;
        let account_id =
            self.text(keys::SQS_ACCOUNT, |text| sqs::is_account_id(text).then(|| text.to_owned()))?;
        let region = self.text(keys::SQS_REGION, |text| sqs::is_region(text).then(|| text.to_owned()))?;
        let insecure = self.flag(keys::SQS_INSECURE)?;
        let shards = self.number(keys::SQS_SHARDS)? as u32;
        let pacing = if self.flag(keys::SQS_PACING)? { Pacing::On } else { Pacing::Off };
        let Some(listen) = listen else { return Ok(None) };
        if insecure && !access_keys.is_empty() {
            let given =
                if self.given(keys::SQS_KEYS_FILE).is_some() { keys::SQS_KEYS_FILE } else { keys::SQS_KEYS };
            return Err(self.conflict(
                keys::SQS_INSECURE,
                given,
                "keys, or clients that nobody asks for one",
            ));
        }
        if !insecure && access_keys.is_empty() {
            let why = "SQS clients are known by their signatures; without keys anybody may ask, which needs `sqs.insecure = true`";
            return Err(known(keys::SQS_KEYS).missing(why));
        }
        Ok(Some(Sqs { listen, account_id, region, access_keys, shards, pacing }))
    }

    fn access_keys(&self) -> Result<Vec<AccessKey>, ConfigError> {
        let texts = self.list(keys::SQS_KEYS)?;
        let read = texts.iter().map(|text| AccessKey::read(text).ok_or_else(|| self.invalid(keys::SQS_KEYS)));
        let mut access_keys = read.collect::<Result<Vec<_>, _>>()?;
        if let Some((Given::Text(path), _)) = self.given(keys::SQS_KEYS_FILE) {
            access_keys.extend(sqs::read_file(&PathBuf::from(path))?);
        }
        let mut ids = access_keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(self.invalid(keys::SQS_KEYS));
        }
        Ok(access_keys)
    }

    fn security(&self) -> Result<Security, ConfigError> {
        Ok(if self.flag(keys::INSECURE)? { Security::Insecure } else { Security::Secure })
    }

    /// Half of it would be none: a node shows a certificate and asks for one.
    fn tls(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let needed = [keys::TLS_CERTIFICATE, keys::TLS_KEY, keys::TLS_AUTHORITY];
        let of_clients = self.file(keys::TLS_CLIENT_AUTHORITY)?;
        if of_clients.is_none() && needed.iter().all(|name| self.given(name).is_none()) {
            return Ok(None);
        }
        let file = |name: &str| {
            let why =
                "a node with TLS has a certificate, its key, and the authority of the nodes' certificates";
            self.file(name)?.ok_or_else(|| known(name).missing(why))
        };
        let [certificate, key, authority] = needed;
        let (certificate, key, authority) = (file(certificate)?, file(key)?, file(authority)?);
        Ok(Some(TlsFiles { certificate, key, authority, client_authority: of_clients }))
    }

    fn file(&self, name: &str) -> Result<Option<PathBuf>, ConfigError> {
        match self.given(name) {
            None => Ok(None),
            Some(_) => self.text(name, |text| (!text.is_empty()).then(|| Some(PathBuf::from(text)))),
        }
    }

    fn history_mode(&self) -> Result<HistoryMode, ConfigError> {
        self.text(keys::HISTORY_MODE, |text| match text {
            "off" => Some(HistoryMode::Off),
            "unusual" => Some(HistoryMode::Unusual),
            "all" => Some(HistoryMode::All),
            _ => None,
        })
    }

    fn log_format(&self) -> Result<LogFormat, ConfigError> {
        self.text(keys::LOGGING_FORMAT, |text| match text {
            "human" => Some(LogFormat::Human),
            "json" => Some(LogFormat::Json),
            _ => None,
        })
    }

    fn log_level(&self) -> Result<String, ConfigError> {
        self.text(keys::LOGGING_LEVEL, |text| values::is_log_level(text).then(|| text.to_owned()))
    }

    fn check_relations(&self, config: &Config) -> Result<(), ConfigError> {
        let raft = &config.raft;
        if raft.election_min_ms < HEARTBEATS_PER_ELECTION_MIN * raft.heartbeat_ms {
            return Err(self.conflict(
                keys::ELECTION_MIN,
                keys::HEARTBEAT,
                "at least three times the heartbeat",
            ));
        }
        if raft.election_max_ms <= raft.election_min_ms {
            return Err(self.conflict(
                keys::ELECTION_MAX,
                keys::ELECTION_MIN,
                "more than the least election timeout",
            ));
        }
        if config.limits.disk_low_bytes < SEGMENTS_BELOW_DISK_LOW * config.log.segment_bytes {
            return Err(self.conflict(
                keys::DISK_LOW,
                keys::SEGMENT,
                "at least two segments, so that acks still have room",
            ));
        }
        Ok(())
    }

    /// Two listeners cannot share a port, and a listener on every interface does not say where it can be reached.
    fn check_addresses(&self, config: &Config) -> Result<(), ConfigError> {
        let rule = "a listener's port must be its own";
        let listeners = config.listeners();
        for (i, (name, listen)) in listeners.iter().enumerate() {
            for (other, other_listen) in &listeners[..i] {
                if let (Some(listen), Some(other_listen)) = (listen, other_listen)
                    && overlap(*listen, *other_listen)
                {
                    return Err(self.conflict(name, other, rule));
                }
            }
        }
        let advertised = [
            (keys::CLIENT_ADVERTISE, &config.client_advertise, config.client_listen),
            (keys::PEER_ADVERTISE, &config.peer_advertise, config.peer_listen),
        ];
        for (name, advertise, listen) in advertised {
            if advertise.is_none() && listen.ip().is_unspecified() {
                return Err(
                    known(name).missing("a listener on every interface does not say where others reach it")
                );
            }
        }
        Ok(())
    }

    fn check_security(&self, config: &Config) -> Result<(), ConfigError> {
        if config.security == Security::Insecure {
            return Ok(());
        }
        let is_within = |address: &Option<Address>| address.as_ref().is_none_or(Address::is_loopback);
        let listeners = config.listeners().map(|(name, listen)| (name, listen.is_none_or(is_loopback)));
        let advertised = [
            (keys::CLIENT_ADVERTISE, is_within(&config.client_advertise)),
            (keys::PEER_ADVERTISE, is_within(&config.peer_advertise)),
        ];
        let beyond = listeners.into_iter().chain(advertised).filter(|(_, is_within)| !is_within);
        let mut exposed = beyond.filter_map(|(name, _)| Some((self.told(name)?, config.lack(name)?)));
        exposed.next().map_or(Ok(()), |(told, lack)| Err(ConfigError::Insecure { told, lack }))
    }
}

/// Whether two listeners would want the same port. Port 0 asks for any free one.
fn overlap(left: SocketAddr, right: SocketAddr) -> bool {
    let same_host = left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
    left.port() != 0 && left.port() == right.port() && same_host
}
