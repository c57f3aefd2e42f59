//! What is sent: queues and messages as the workload of a history says.

use leasehold_client::NewMessage;
use leasehold_client::v1::{QueueKind, QueueSettings};
use leasehold_histories::workload::{LEASE, RECEIVES_MAX, Workload, delay_of, group_of};

pub const QUEUE: &str = "jepsen";
pub const DEAD_LETTER_QUEUE: &str = "jepsen-dead";

pub fn settings(workload: Workload) -> QueueSettings {
    let settings = QueueSettings { lease_ms: Some(LEASE.as_millis() as u64), ..QueueSettings::default() };
    match workload {
        Workload::Fifo => QueueSettings { kind: Some(QueueKind::Fifo as i32), ..settings },
        Workload::DeadLetter => QueueSettings {
            dead_letter_queue: Some(DEAD_LETTER_QUEUE.to_owned()),
            receives_max: Some(RECEIVES_MAX),
            ..settings
        },
        Workload::Queue
        | Workload::Delays
        | Workload::Deduplication
        | Workload::Leases
        | Workload::Queues => settings,
    }
}

pub fn message(workload: Workload, row: u64) -> NewMessage {
    let message = NewMessage::new(row.to_string());
    match workload {
        Workload::Queue | Workload::DeadLetter | Workload::Leases | Workload::Queues => message,
        // Every send has an id: the groups repeat the retries of their senders otherwise.
        Workload::Fifo => message.group(group_of(row).to_string()).deduplication_id(row.to_string()),
        Workload::Delays => message.delay(delay_of(row)),
        Workload::Deduplication => message.deduplication_id(row.to_string()),
    }
}
