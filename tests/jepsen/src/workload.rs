//! What is sent: queues and messages as the workload of a history says.

use leasehold_client::NewMessage;
use leasehold_client::v1::{QueueKind, QueueSettings};
use leasehold_histories::workload::{LEASE, RECEIVES_MAX, Workload, delay_of, group_of, stream_group_of};

pub const QUEUE: &str = "jepsen";
pub const DEAD_LETTER_QUEUE: &str = "jepsen-dead";
/// The queue with message groups of the workload of streams.
pub const GROUPS_QUEUE: &str = "jepsen-groups";
pub const DEAD_GROUPS_QUEUE: &str = "jepsen-groups-dead";
/// The most there is: a message dies by a rejection.
const STREAM_RECEIVES_MAX: u32 = 1_000;

pub fn settings(workload: Workload) -> QueueSettings {
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    match workload {
        Workload::Fifo => QueueSettings { kind: Some(QueueKind::Fifo as i32), ..settings },
        Workload::DeadLetter => QueueSettings {
            dead_letter_queue: Some(DEAD_LETTER_QUEUE.to_owned()),
            receives_max: Some(RECEIVES_MAX),
            ..settings
        },
        Workload::Streams => QueueSettings {
            dead_letter_queue: Some(DEAD_LETTER_QUEUE.to_owned()),
            receives_max: Some(STREAM_RECEIVES_MAX),
            ..settings
        },
        Workload::Queue
        | Workload::Delays
        | Workload::Deduplication
        | Workload::Leases
        | Workload::Queues => settings,
    }
}

/// The queues of a workload that hold messages at its end, those for dead messages, and all with their settings in the order in which
/// they can be made.
pub struct Queues {
    pub drained: &'static [&'static str],
    pub dead: &'static [&'static str],
    pub made: Vec<(&'static str, QueueSettings)>,
}

pub fn queues(workload: Workload) -> Queues {
    let (own, dead) = ((QUEUE, settings(workload)), (DEAD_LETTER_QUEUE, QueueSettings::default()));
    match workload {
        Workload::DeadLetter => {
            Queues { drained: &[QUEUE], dead: &[DEAD_LETTER_QUEUE], made: vec![dead, own] }
        }
        Workload::Streams => {
            let kind = Some(QueueKind::Fifo as i32);
            let fifo = QueueSettings { kind, ..QueueSettings::default() };
            let dead_letter_queue = Some(DEAD_GROUPS_QUEUE.to_owned());
            let groups = QueueSettings { kind, dead_letter_queue, ..settings(workload) };
            Queues {
                drained: &[QUEUE, GROUPS_QUEUE],
                dead: &[DEAD_LETTER_QUEUE, DEAD_GROUPS_QUEUE],
                made: vec![dead, own, (DEAD_GROUPS_QUEUE, fifo), (GROUPS_QUEUE, groups)],
            }
        }
        _ => Queues { drained: &[QUEUE], dead: &[], made: vec![own] },
    }
}

/// How long the bodies of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// The row alone.
    Short,
    /// Such that a cache holds few of them.
    Long,
}

const LONG_BODY_BYTES: usize = 16 * 1024;

pub fn message(workload: Workload, row: u64, bodies: Bodies) -> NewMessage {
    let message = NewMessage::new(match bodies {
        Bodies::Short => row.to_string(),
        Bodies::Long => body_of(row, LONG_BODY_BYTES),
    });
    match workload {
        Workload::Queue | Workload::DeadLetter | Workload::Leases | Workload::Queues => message,
        // Every send has an id: the groups repeat the retries of their senders otherwise.
        Workload::Fifo => message.group(group_of(row).to_string()).deduplication_id(row.to_string()),
        Workload::Delays => message.delay(delay_of(row)),
        Workload::Deduplication => message.deduplication_id(row.to_string()),
        Workload::Streams => match stream_group_of(row) {
            Some(group) => message.group(group.to_string()),
            None => message,
        },
    }
}

/// A row, and letters that follow from it and their place: another body, or a part of one, is not taken for it.
fn body_of(row: u64, len: usize) -> String {
    let letter = |at: usize| char::from(b'a' + (row.wrapping_mul(31) + at as u64 * 7) as u8 % 26);
    let digits = row.to_string();
    let letters = (digits.len()..len).map(letter);
    digits.chars().chain(letters).collect()
}

/// The row that a body was sent for; `None` when it is not as it was sent.
pub fn row_of(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let row = text.trim_end_matches(|letter: char| letter.is_ascii_lowercase()).parse().ok()?;
    (body_of(row, text.len()) == text).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_known_by_its_row_and_a_changed_one_is_not() {
        for (row, len) in [(0, 1), (7, 40), (123, 3), (99_999, 40)] {
            let body = body_of(row, len).into_bytes();
            assert_eq!(row_of(&body), Some(row));
            for at in 0..len {
                for bit in 0..8 {
                    let mut changed = body.clone();
                    changed[at] ^= 1 << bit;
                    // A digit that is another one is another row: its letters do not follow from it.
                    assert!(row_of(&changed) != Some(row) && (len < 40 || row_of(&changed).is_none()));
                }
            }
        }
        assert_eq!(row_of(b""), None);
        assert_eq!(row_of(&body_of(7, 40).as_bytes()[..30].repeat(2)), None);
    }
}
