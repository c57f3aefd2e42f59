//! The limits of a node that are not configuration, in one place.

/// Frames that travel in one batch between nodes.
pub const FRAME_BATCH_FRAMES_MAX: usize = 256;
/// Bytes after which a batch of frames is closed.
pub const FRAME_BATCH_BYTES_MAX: usize = 512 * 1024;
/// A lane reads this much at a time, or more when a batch is longer.
pub const LANE_READ_BYTES: usize = 32 * 1024;
/// The largest message that a peer may send.
pub const PEER_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest message that a client may send.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// The largest HTTP/2 frame that is taken: each costs a write and a read, and a batch of messages should be one.
pub const HTTP_FRAME_BYTES_MAX: u32 = 1024 * 1024;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A replica hears of a commit with the next entries, or after this time when none come.
pub const COMMIT_NEWS_WAIT_MS: u64 = 5;

pub const CONNECT_TIMEOUT_MS: u64 = 500;
pub const RECONNECT_PAUSE_MS_MIN: u64 = 20;
pub const RECONNECT_PAUSE_MS_MAX: u64 = 500;
/// A connection to a peer asks for a sign of life this often while a call is under way, and breaks when none comes for so long.
/// Lanes notice a silent peer before that.
pub const KEEP_ALIVE_INTERVAL_MS: u64 = 5_000;
pub const KEEP_ALIVE_TIMEOUT_MS: u64 = 5_000;
/// How often a node says that it lives.
pub const LIVENESS_INTERVAL_MS: u64 = 200;

/// Entries of one partition that its leader has proposed and not yet seen applied, however large they are.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 4;
/// Bytes after which an entry is closed; a single command may be larger.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Commands in one entry.
pub const ENTRY_COMMANDS_MAX: usize = 4096;

/// Messages of one send, and their bytes in all.
pub const SEND_MESSAGES_MAX: usize = 1_000;
pub const SEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Receipts of one ack, extend, release or reject.
pub const SETTLE_ITEMS_MAX: usize = 4_096;
/// Messages of one receive.
pub const RECEIVE_MESSAGES_MAX: u32 = 1_000;
/// Bodies of one receive, unless the caller asks for less.
pub const RECEIVE_BYTES_MAX: u64 = 4 * 1024 * 1024;
pub const RECEIVE_WAIT_MS_MAX: u64 = 20_000;
pub const CONSUMER_BYTES_MAX: usize = 64;

/// A leader writes a time mark after this long without an entry, while leases or delays are outstanding.
pub const MARK_INTERVAL_MS: u64 = 1_000;
/// Messages that one expiry entry touches at most.
pub const EXPIRE_ITEMS_MAX: u32 = 1_000;
/// What a new leader adds to the leases that it inherits: the most that a grant's answer may lag behind the grant's stamp.
pub const INHERITED_GRACE_MS: u64 = 1_000;
/// What an answer may take from the partition's leader to the wire.
pub const ANSWER_ALLOWANCE_MS: u64 = 50;

/// Who is told that messages are ready is waited for so long; then others are told of them.
pub const TOLD_PATIENCE_MS: u64 = 5;

/// How long a node looks for a leader before it gives a command back.
pub const LEADER_WAIT_MS_MAX: u64 = 5_000;
/// The hint that goes with a refusal that will pass.
pub const RETRY_AFTER_MS: u64 = 50;
/// A replica takes a snapshot when it has applied this many bytes since the last, or so many times the weight of that one
/// (`Partition::weight_bytes`) as [`SNAPSHOT_LOG_FACTOR`] says.
pub const SNAPSHOT_APPLIED_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Bytes of log for each byte of a snapshot's weight: a long backlog is gone through again with each, so the log has to grow by more
/// than that in between. It is also what a restart reads beside the snapshots.
pub const SNAPSHOT_LOG_FACTOR: u64 = 4;
/// Weight of the snapshots that are begun together. Each is whole in memory until it is written.
pub const SNAPSHOTS_TOGETHER_BYTES_MAX: u64 = 64 * 1024 * 1024;

const _: () = assert!(ENTRY_BYTES_MAX < PEER_MESSAGE_BYTES_MAX / 2);
const _: () = assert!(SEND_BYTES_MAX < CLIENT_MESSAGE_BYTES_MAX);
const _: () = assert!(ANSWER_ALLOWANCE_MS < INHERITED_GRACE_MS);
