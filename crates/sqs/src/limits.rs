//! The limits of the gateway. Those that clients see are Amazon's ("Amazon SQS message quotas" and the API reference).

/// Entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 10;
/// Bodies and attributes of one batch.
pub const BATCH_BYTES_MAX: usize = 1_048_576;
pub const BATCH_ID_CHARACTERS_MAX: usize = 80;
pub const QUEUE_NAME_CHARACTERS_MAX: usize = 80;
pub const MESSAGE_ATTRIBUTES_MAX: usize = 10;
pub const ATTRIBUTE_NAME_CHARACTERS_MAX: usize = 256;
/// Digits of an attribute of type Number.
pub const NUMBER_DIGITS_MAX: usize = 38;
/// It does not count against the size of a message.
pub const TRACE_HEADER_BYTES_MAX: usize = 1_024;
pub const RECEIVE_MESSAGES_MAX: i64 = 10;
pub const VISIBILITY_S_MAX: i64 = 43_200;
pub const WAIT_S_MAX: i64 = 20;
pub const DELAY_S_MAX: i64 = 900;
/// Message groups, deduplication ids and receive attempts.
pub const TOKEN_CHARACTERS_MAX: usize = 128;
pub const LIST_MAX: i64 = 1_000;
pub const MOVE_TASKS_MAX: i64 = 10;
pub const MOVE_RATE_MAX: i64 = 500;
pub const PERMISSION_ACTIONS_MAX: usize = 7;
/// Between two purges of a queue, and from a deletion to a creation of the same name.
pub const PAUSE_MS: u64 = 60_000;

/// The body of a request: a batch of 1 MiB in which every character is escaped.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bodies that are read or answered at the same time, over all connections.
pub const REQUESTS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bodies up to this size are not counted against that; answers neither.
pub const SMALL_BYTES_MAX: usize = 16 * 1024;
/// Answers beyond that size that clients have not taken yet, over all connections.
pub const ANSWERS_BYTES_MAX: usize = 128 * 1024 * 1024;
/// An answer goes to its connection in pieces of this size: a frame of HTTP/2, unless the client takes larger ones.
pub const PIECE_BYTES_MAX: usize = 16 * 1024;
/// How long a body waits until there is room for it.
pub const ROOM_MS_MAX: u64 = 5_000;
/// Keys of a map in a request: more than attributes or tags can be.
pub const PAIRS_MAX: usize = 64;
/// Names in a list of a request.
pub const NAMES_MAX: usize = 1_024;
/// The value of an attribute of a queue. All that a queue keeps for SQS clients has no more.
pub const QUEUE_ATTRIBUTE_BYTES_MAX: usize = 32 * 1024;
/// Parameters of a Query request.
pub const PARAMETERS_MAX: usize = 1_024;
pub const PARAMETER_DEPTH_MAX: usize = 8;

pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a connection may say nothing between two requests; a head must be complete within it too.
pub const IDLE_MS_MAX: u64 = 75_000;
/// For what an HTTP/2 connection begins with, once a part of it is there.
pub const PREFACE_MS_MAX: u64 = 5_000;
/// For a whole body.
pub const BODY_MS_MAX: u64 = 30_000;
/// How long a client may take nothing of what is sent to it.
pub const STALL_MS_MAX: u64 = 30_000;
/// What a client must take of long answers beyond that time.
pub const ANSWER_BYTES_PER_S_MIN: u64 = 64 * 1024;
/// Requests under way on one HTTP/2 connection.
pub const STREAMS_MAX: u32 = 128;
/// What answers under way may take when the node stops.
pub const DRAIN_MS_MAX: u64 = 500;
/// After a failed accept, most likely for want of file descriptors.
pub const ACCEPT_PAUSE_MS: u64 = 50;

/// How far a client's clock may be off, and how long a presigned request may be valid.
pub const SKEW_S_MAX: i64 = 15 * 60;
pub const PRESIGNED_S_MAX: i64 = 7 * 24 * 60 * 60;
/// Signing keys that are kept.
pub const SIGNING_KEYS_MAX: usize = 256;

const _: () = {
    assert!(BATCH_BYTES_MAX * 6 < REQUEST_BYTES_MAX);
    assert!(MESSAGE_ATTRIBUTES_MAX < PAIRS_MAX && PARAMETERS_MAX <= NAMES_MAX);
    assert!(REQUEST_BYTES_MAX <= REQUESTS_BYTES_MAX && REQUESTS_BYTES_MAX <= u32::MAX as usize);
    assert!(REQUEST_BYTES_MAX.is_power_of_two() && ROOM_MS_MAX < BODY_MS_MAX);
    assert!(ANSWERS_BYTES_MAX <= u32::MAX as usize && SMALL_BYTES_MAX <= PIECE_BYTES_MAX);
};
