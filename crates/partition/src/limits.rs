//! Every bound of a partition, in one place, with the relations that must hold between them.
//!
//! The bounds that clients can see follow the Amazon SQS documentation ("Amazon SQS message quotas", "SetQueueAttributes"),
//! so that its clients meet the limits they know. The others bound the work or the memory of one log entry.

/// The longest single step of log time, in milliseconds: one absurd stamp moves a partition's clock by no more than this.
pub const STAMP_STEP_MS_MAX: u64 = 10 * 60 * 1000;
/// How much faster than log time the wall clock may catch up, as a factor.
pub const WALL_CATCH_UP_MAX: u64 = 1000;
/// The longest single step of wall time, in milliseconds, once a partition has seen its first entry.
pub const WALL_STEP_MS_MAX: u64 = 60 * 60 * 1000;
/// How far the stamp of an entry may be ahead of the wall time that is believed, for the messages it brings: longer than a partition
/// is quiet. An absurd clock lets them live so much too long.
pub const WALL_LEAD_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;
/// The latest first wall time that is believed (the year 2286).
pub const WALL_MS_MAX: u64 = 10_000_000_000_000;

/// The longest lease, and the longest total of its extensions counted from its grant: twelve hours.
pub const LEASE_MS_MAX: u32 = 43_200_000;
/// The longest delay of a message.
pub const DELAY_MS_MAX: u32 = 900_000;
/// The longest delay a consumer may ask for when it releases a message.
pub const RELEASE_DELAY_MS_MAX: u32 = LEASE_MS_MAX;
/// The shortest retention.
pub const RETENTION_MS_MIN: u64 = 60_000;
/// The longest retention: fourteen days.
pub const RETENTION_MS_MAX: u64 = 14 * 24 * 60 * 60 * 1000;
/// The longest time to live of a single message.
pub const EXPIRY_MS_MAX: u64 = RETENTION_MS_MAX;
/// The highest receive limit before a message is dead.
pub const RECEIVES_MAX: u32 = 1000;
/// The longest deduplication window: one day.
pub const DEDUP_WINDOW_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// How long a receive attempt is remembered.
pub const ATTEMPT_WINDOW_MS: u64 = 5 * 60 * 1000;
/// Receive attempts remembered in a partition; beyond it the oldest are forgotten early.
pub const ATTEMPTS_MAX: usize = 16_384;
/// Receipts of remembered attempts in a partition, 24 bytes each; beyond it the oldest attempts are forgotten early.
pub const ATTEMPT_RECEIPTS_MAX: usize = 1_000_000;
/// How long forgetting may lag behind a window's end, so that many ends share one expiry entry.
pub const WINDOW_SLACK_MS: u64 = 30_000;

/// The longest message group name, deduplication id and attempt id, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest consumer name, in bytes.
pub const CONSUMER_BYTES_MAX: usize = 64;
/// The longest reason for which a consumer rejects a message, in bytes.
pub const REJECT_REASON_BYTES_MAX: usize = 1024;
/// The largest attributes blob of a message.
pub const ATTRIBUTES_BYTES_MAX: usize = 1024 * 1024;
/// The largest body of a message.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest payload of one log entry.
pub const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Commands in one log entry.
pub const BATCH_COMMANDS_MAX: usize = 65_536;
/// Messages in one send or transfer.
pub const SEND_MESSAGES_MAX: usize = 4096;
/// Messages granted by one receive.
pub const RECEIVE_MESSAGES_MAX: u32 = 1000;
/// Receipts in one acknowledgement, extension, release or rejection.
pub const SETTLE_ITEMS_MAX: usize = 10_000;

/// Garbage swept by every command after a purge or a deletion.
pub const SWEEP_MAX: u32 = 256;
/// Garbage swept by the commands of one entry.
pub const SWEEP_ENTRY_MAX: u32 = 4096;
/// Items ended by one expiry command.
pub const EXPIRE_MAX: u32 = 4096;
/// Outbox items confirmed, or returned, by one command.
pub const TRANSFER_MAX: u32 = 4096;
/// Messages moved by one redrive step.
pub const REDRIVE_STEP_MAX: u32 = 1024;
/// Messages of a FIFO group, or suspects, that a redrive looks through for one that it can move; what stands behind so many that stay, stays.
pub const REDRIVE_PASSED_MAX: usize = 1024;
/// Messages looked at by one page of a peek.
pub const PEEK_SCAN_MAX: usize = 4096;

/// Replies remembered for one session.
pub const SESSION_REPLIES_MAX: usize = 128;
/// Sessions remembered in a partition; beyond it the idlest is forgotten.
pub const SESSIONS_MAX: usize = 65_536;
/// Bytes of remembered replies in a partition; beyond it the idlest session is forgotten.
pub const SESSION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an idle session is remembered, in log time.
pub const SESSION_IDLE_MS_MAX: u64 = 60 * 60 * 1000;

/// How long what is measured of processing times belongs together, in log time; two such windows are shown.
pub const HEADROOM_WINDOW_MS: u64 = 60 * 60 * 1000;
/// Versions of consumers whose processing times a shard keeps apart.
pub const HEADROOM_VERSIONS_MAX: usize = 4;

/// The largest share of a retry budget: redeliveries for a hundred first deliveries.
pub const RETRY_PERCENT_MAX: u32 = 1_000;
/// The largest floor of a retry budget: redeliveries a second.
pub const RETRY_FLOOR_PER_S_MAX: u32 = 10_000;
/// So many seconds of its floor a retry budget saves up at most.
pub const RETRY_SAVED_S_MAX: u64 = 10;
/// What is added to the time of a message that waits for the retry budget is below this, by lot.
pub const RETRY_JITTER_MS_MAX: u64 = 5_000;
/// Outcomes of messages after which older ones count half.
pub const OUTCOMES_MAX: u32 = 64;
/// Failed messages below which nothing is called a storm.
pub const STORM_MESSAGES_MIN: u32 = 16;

/// Sequences, grants and numbers that the second life of a copy leaves to the first: what a partition gives out in 12 days at a million a
/// second.
pub const LIFE_GAP: u64 = 1 << 40;

/// Allocations without values that an arena keeps for the next ones.
pub(crate) const SPARE_BOXES_MAX: usize = 64;
/// The highest machine version this code can execute. What came with each: 1 is the first; 2 has `Postpone`.
pub const MACHINE_VERSION_MAX: u32 = 2;
/// From this version on messages can be put off.
pub const POSTPONE_VERSION_MIN: u32 = 2;

const _: () = {
    assert!(DELAY_MS_MAX <= LEASE_MS_MAX);
    assert!(RETENTION_MS_MIN < RETENTION_MS_MAX);
    assert!(WALL_STEP_MS_MAX < RETENTION_MS_MAX);
    assert!(BODY_BYTES_MAX + ATTRIBUTES_BYTES_MAX + 1024 < BATCH_BYTES_MAX);
    assert!(BATCH_BYTES_MAX < u32::MAX as usize);
    assert!((RECEIVE_MESSAGES_MAX as usize) <= SETTLE_ITEMS_MAX);
    assert!((RECEIVE_MESSAGES_MAX as usize) < ATTEMPT_RECEIPTS_MAX);
    assert!(SWEEP_MAX <= SWEEP_ENTRY_MAX);
    assert!(SESSION_IDLE_MS_MAX > STAMP_STEP_MS_MAX);
    assert!(HEADROOM_WINDOW_MS >= STAMP_STEP_MS_MAX);
    assert!(STORM_MESSAGES_MIN * 2 <= OUTCOMES_MAX);
    assert!(REDRIVE_STEP_MAX <= TRANSFER_MAX);
};
