//! What a queue can be told, with the limits and defaults of each setting.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

pub const LEASE_MS: RangeInclusive<u64> = 0..=12 * HOUR_MS;
/// The ceiling of adaptive leases; 0 switches them off.
pub const ADAPTIVE_LEASE_MS: RangeInclusive<u64> = 0..=12 * HOUR_MS;
/// Redeliveries for a hundred first deliveries; 0 switches the retry budget off.
pub const RETRY_PERCENT: RangeInclusive<u64> = 0..=1_000;
/// Redeliveries a second that a retry budget always allows.
pub const RETRY_FLOOR_PER_S: RangeInclusive<u64> = 1..=10_000;
pub const DELAY_MS: RangeInclusive<u64> = 0..=15 * MINUTE_MS;
pub const RETENTION_MS: RangeInclusive<u64> = MINUTE_MS..=14 * DAY_MS;
pub const RECEIVES: RangeInclusive<u64> = 1..=1_000;
pub const DEDUPLICATION_WINDOW_MS: RangeInclusive<u64> = 0..=DAY_MS;
pub const IN_FLIGHT: RangeInclusive<u64> = 1..=1_000_000;
pub const MESSAGE_BYTES: RangeInclusive<u64> = 1..=1_048_576;
pub const WAIT_MS: RangeInclusive<u64> = 0..=20_000;
/// The floor of a retry budget where the user gave none.
const RETRY_FLOOR_PER_S_USUAL: u64 = 10;
/// Queues that `redrive_allow` may name.
pub const REDRIVE_SOURCES_MAX: usize = 10;
pub const LABELS_MAX: usize = 32;
pub const LABEL_NAME_BYTES_MAX: usize = 64;
/// Names and values of all labels of a queue.
pub const LABELS_BYTES_MAX: usize = 32 * 1024;

/// What order a queue promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum QueueKind {
    Standard = 0,
    Fifo = 1,
}

/// Where messages go that were received too often.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DeadLetter {
    #[prost(uint64, tag = "1")]
    pub queue: u64,
    #[prost(uint32, tag = "2")]
    pub receives_max: u32,
}

/// Which queues may name this one as their dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum RedriveRule {
    Any = 0,
    Nobody = 1,
    Named = 2,
}

/// Whose dead messages a queue takes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RedriveAllow {
    #[prost(enumeration = "RedriveRule", tag = "1")]
    pub rule: i32,
    /// Names of queues, for `Named`; they need not exist yet.
    #[prost(string, repeated, tag = "2")]
    pub queues: Vec<String>,
}

impl RedriveAllow {
    pub fn allows(&self, source: &str) -> bool {
        match self.rule() {
            RedriveRule::Any => true,
            RedriveRule::Nobody => false,
            RedriveRule::Named => self.queues.iter().any(|queue| queue == source),
        }
    }

    fn fault(&self) -> Option<String> {
        if RedriveRule::try_from(self.rule).is_err() {
            return Some(format!(
                "redrive_allow is {}: it can be 0 (any), 1 (nobody) or 2 (named)",
                self.rule
            ));
        }
        let named = self.queues.len();
        let fits = match self.rule() {
            RedriveRule::Named => (1..=REDRIVE_SOURCES_MAX).contains(&named),
            RedriveRule::Any | RedriveRule::Nobody => named == 0,
        };
        (!fits).then(|| {
            format!("redrive_allow names {named} queues: it names 1 to {REDRIVE_SOURCES_MAX} when only those may, or none")
        })
    }
}

/// All settings of a queue. Durations are milliseconds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct QueueSettings {
    #[prost(enumeration = "QueueKind", tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub lease_ms: u64,
    #[prost(uint64, tag = "3")]
    pub delay_ms: u64,
    #[prost(uint64, tag = "4")]
    pub retention_ms: u64,
    #[prost(message, tag = "5")]
    pub dead_letter: Option<DeadLetter>,
    #[prost(bool, tag = "6")]
    pub content_deduplication: bool,
    #[prost(uint64, tag = "7")]
    pub deduplication_window_ms: u64,
    #[prost(uint64, tag = "8")]
    pub in_flight_max: u64,
    /// 0 means unbounded.
    #[prost(uint64, tag = "9")]
    pub length_max: u64,
    /// 0 means unbounded.
    #[prost(uint64, tag = "10")]
    pub bytes_max: u64,
    #[prost(uint64, tag = "11")]
    pub message_bytes_max: u64,
    /// How long leases may become when the work takes longer than they last; 0 means that they stay as they are.
    #[prost(uint64, tag = "20")]
    pub adaptive_lease_ms_max: u64,
    /// Redeliveries for a hundred first deliveries; 0 means that they are not limited.
    #[prost(uint64, tag = "21")]
    pub retry_percent: u64,
    /// Redeliveries a second that are allowed whatever the share; 0 where the user gave none.
    #[prost(uint64, tag = "22")]
    pub retry_floor_per_s: u64,
    /// Messages whose consumer died with them are tried apart.
    #[prost(bool, tag = "23")]
    pub isolate_suspects: bool,
    /// How long a receive waits that names no time, where its interface can leave it out.
    #[prost(uint64, tag = "12")]
    pub wait_ms: u64,
    /// Absent means any.
    #[prost(message, optional, tag = "13")]
    pub redrive_allow: Option<RedriveAllow>,
    /// What interfaces and users keep with the queue; it means nothing here.
    #[prost(btree_map = "string, string", tag = "14")]
    pub labels: BTreeMap<String, String>,
}

impl QueueSettings {
    pub fn standard() -> Self {
        Self {
            kind: QueueKind::Standard as i32,
            lease_ms: 30_000,
            retention_ms: 4 * DAY_MS,
            deduplication_window_ms: 5 * MINUTE_MS,
            in_flight_max: 120_000,
            message_bytes_max: *MESSAGE_BYTES.end(),
            ..Self::default()
        }
    }

    /// The floor of the retry budget, if the queue has one.
    pub fn retry_floor_per_s(&self) -> u64 {
        match self.retry_floor_per_s {
            0 => RETRY_FLOOR_PER_S_USUAL,
            floor_per_s => floor_per_s,
        }
    }
}

/// The settings that are present change; queues are named as users name them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct QueueChange {
    #[prost(enumeration = "QueueKind", optional, tag = "1")]
    pub kind: Option<i32>,
    #[prost(uint64, optional, tag = "2")]
    pub lease_ms: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub delay_ms: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub retention_ms: Option<u64>,
    /// "" takes the dead-letter queue away.
    #[prost(string, optional, tag = "5")]
    pub dead_letter_queue: Option<String>,
    #[prost(uint32, optional, tag = "6")]
    pub receives_max: Option<u32>,
    #[prost(bool, optional, tag = "7")]
    pub content_deduplication: Option<bool>,
    #[prost(uint64, optional, tag = "8")]
    pub deduplication_window_ms: Option<u64>,
    #[prost(uint64, optional, tag = "9")]
    pub in_flight_max: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    pub length_max: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub bytes_max: Option<u64>,
    #[prost(uint64, optional, tag = "12")]
    pub message_bytes_max: Option<u64>,
    #[prost(uint64, optional, tag = "20")]
    pub adaptive_lease_ms_max: Option<u64>,
    #[prost(uint64, optional, tag = "21")]
    pub retry_percent: Option<u64>,
    #[prost(uint64, optional, tag = "22")]
    pub retry_floor_per_s: Option<u64>,
    #[prost(bool, optional, tag = "23")]
    pub isolate_suspects: Option<bool>,
    #[prost(uint64, optional, tag = "13")]
    pub wait_ms: Option<u64>,
    #[prost(message, optional, tag = "14")]
    pub redrive_allow: Option<RedriveAllow>,
    /// "" takes the label away.
    #[prost(btree_map = "string, string", tag = "15")]
    pub labels: BTreeMap<String, String>,
}

/// Puts a change over settings; the dead-letter queue is the caller's to look up.
pub fn merge(settings: &mut QueueSettings, change: &QueueChange) -> Result<(), String> {
    let set = |name: &str, field: &mut u64, value: Option<u64>, range: RangeInclusive<u64>| match value {
        None => Ok(()),
        Some(value) if range.contains(&value) => {
            *field = value;
            Ok(())
        }
        Some(value) => Err(format!("{name} is {value}: it can be {} to {}", range.start(), range.end())),
    };
    set("lease_ms", &mut settings.lease_ms, change.lease_ms, LEASE_MS)?;
    let ceiling = &mut settings.adaptive_lease_ms_max;
    set("adaptive_lease_ms_max", ceiling, change.adaptive_lease_ms_max, ADAPTIVE_LEASE_MS)?;
    if let Some(fault) = ceiling_fault(settings) {
        return Err(fault);
    }
    set("retry_percent", &mut settings.retry_percent, change.retry_percent, RETRY_PERCENT)?;
    set("retry_floor_per_s", &mut settings.retry_floor_per_s, change.retry_floor_per_s, RETRY_FLOOR_PER_S)?;
    settings.isolate_suspects = change.isolate_suspects.unwrap_or(settings.isolate_suspects);
    if let Some(fault) = fifo_fault(settings) {
        return Err(fault);
    }
    set("delay_ms", &mut settings.delay_ms, change.delay_ms, DELAY_MS)?;
    set("retention_ms", &mut settings.retention_ms, change.retention_ms, RETENTION_MS)?;
    let window = &mut settings.deduplication_window_ms;
    set("deduplication_window_ms", window, change.deduplication_window_ms, DEDUPLICATION_WINDOW_MS)?;
    set("in_flight_max", &mut settings.in_flight_max, change.in_flight_max, IN_FLIGHT)?;
    set("message_bytes_max", &mut settings.message_bytes_max, change.message_bytes_max, MESSAGE_BYTES)?;
    set("wait_ms", &mut settings.wait_ms, change.wait_ms, WAIT_MS)?;
    settings.length_max = change.length_max.unwrap_or(settings.length_max);
    settings.bytes_max = change.bytes_max.unwrap_or(settings.bytes_max);
    settings.content_deduplication = change.content_deduplication.unwrap_or(settings.content_deduplication);
    if let Some(receives_max) = change.receives_max
        && !RECEIVES.contains(&u64::from(receives_max))
    {
        return Err(format!(
            "receives_max is {receives_max}: it can be {} to {}",
            RECEIVES.start(),
            RECEIVES.end()
        ));
    }
    if let Some(allow) = &change.redrive_allow {
        if let Some(fault) = allow.fault() {
            return Err(fault);
        }
        settings.redrive_allow = Some(allow.clone());
    }
    merge_labels(&mut settings.labels, &change.labels)
}

fn merge_labels(
    labels: &mut BTreeMap<String, String>,
    change: &BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, value) in change {
        if name.is_empty() || name.len() > LABEL_NAME_BYTES_MAX {
            return Err(format!(
                "the label {name:?} does not fit: a name has 1 to {LABEL_NAME_BYTES_MAX} bytes"
            ));
        }
        match value.as_str() {
            "" => labels.remove(name),
            value => labels.insert(name.clone(), value.to_owned()),
        };
    }
    if labels.len() > LABELS_MAX {
        return Err(format!("a queue has at most {LABELS_MAX} labels: these are {}", labels.len()));
    }
    let bytes = labels.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    if bytes > LABELS_BYTES_MAX {
        return Err(format!("the labels of a queue have {bytes} bytes: they can have {LABELS_BYTES_MAX}"));
    }
    Ok(())
}

/// What is held back in a message group holds back what is behind it, first deliveries too.
fn fifo_fault(settings: &QueueSettings) -> Option<String> {
    let QueueSettings { retry_percent, isolate_suspects, .. } = settings;
    match settings.kind() {
        QueueKind::Standard => None,
        QueueKind::Fifo if *retry_percent > 0 => Some(format!(
            "retry_percent is {retry_percent}: a FIFO queue has no retry budget (0), because a message that waits holds back \
             its group"
        )),
        QueueKind::Fifo => isolate_suspects.then(|| {
            "isolate_suspects is true: a FIFO queue isolates none (false), because a message that waits holds back its group"
                .to_owned()
        }),
    }
}

/// Leases are only ever lengthened, so a ceiling below the lease would be none.
fn ceiling_fault(settings: &QueueSettings) -> Option<String> {
    let QueueSettings { lease_ms, adaptive_lease_ms_max: ceiling_ms, .. } = settings;
    let end = ADAPTIVE_LEASE_MS.end();
    (*ceiling_ms > 0 && ceiling_ms < lease_ms).then(|| {
        format!("adaptive_lease_ms_max is {ceiling_ms}: it can be 0 (off), or lease_ms ({lease_ms}) to {end}")
    })
}
