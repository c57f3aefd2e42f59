//! Every metric of a node: its name, its kind and what it means, in one table.
//!
//! All carry the label `node`, which the caller puts, because several nodes may live in one process. Handles are made once
//! and kept: looking one up by its name hashes all its labels.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// The label with the node's name.
pub const NODE: &str = "node";
/// The label with a queue's name.
pub const QUEUE: &str = "queue";

pub const MESSAGES_SENT: &str = "leasehold_messages_sent_total";
pub const MESSAGES_RECEIVED: &str = "leasehold_messages_received_total";
pub const MESSAGES_ACKED: &str = "leasehold_messages_acked_total";
pub const MESSAGES_RELEASED: &str = "leasehold_messages_released_total";
pub const MESSAGES_EXPIRED: &str = "leasehold_messages_expired_total";
pub const MESSAGES_DEAD_LETTERED: &str = "leasehold_messages_dead_lettered_total";
pub const LEASES_EXTENDED: &str = "leasehold_leases_extended_total";
pub const ACKS_LATE: &str = "leasehold_acks_late_total";
pub const ACKS_LAST_TENTH: &str = "leasehold_acks_last_tenth_total";
pub const REDELIVERIES_HELD: &str = "leasehold_redeliveries_held_total";
pub const MESSAGES_SPARED: &str = "leasehold_messages_spared_total";
pub const LEASES_LOST: &str = "leasehold_leases_lost_total";
pub const SEND_LATENCY: &str = "leasehold_send_latency_seconds";
pub const RECEIVE_LATENCY: &str = "leasehold_receive_latency_seconds";
pub const SQS_REQUESTS: &str = "leasehold_sqs_requests_total";
pub const SQS_LATENCY: &str = "leasehold_sqs_latency_seconds";
pub const LOG_SYNCS: &str = "leasehold_log_syncs_total";
pub const LOG_APPENDED_BYTES: &str = "leasehold_log_appended_bytes_total";
pub const LEADERS: &str = "leasehold_leaders";
pub const PENDING_BYTES: &str = "leasehold_pending_bytes";

/// From a sync of a fast disk to the longest wait for a leader.
const SEND_BUCKETS_S: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0];
/// As for sends, and on to the longest poll.
const RECEIVE_BUCKETS_S: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0,
    10.0, 20.0, 30.0,
];

pub(super) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    unit: Unit,
    description: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

const fn metric(name: &'static str, kind: Kind, unit: Unit, description: &'static str) -> Metric {
    Metric { name, kind, unit, description }
}

use Kind::{Counter, Gauge, Histogram};

#[rustfmt::skip]
pub(super) const METRICS: &[Metric] = &[
    metric(MESSAGES_SENT, Counter, Unit::Count, "Messages accepted and on the disks of a quorum, without recognised repeats."),
    metric(MESSAGES_RECEIVED, Counter, Unit::Count, "Leases granted to consumers."),
    metric(MESSAGES_ACKED, Counter, Unit::Count, "Messages acknowledged."),
    metric(MESSAGES_RELEASED, Counter, Unit::Count, "Leases that consumers gave back."),
    metric(MESSAGES_EXPIRED, Counter, Unit::Count, "Leases that ended without an acknowledgement."),
    metric(MESSAGES_DEAD_LETTERED, Counter, Unit::Count, "Messages that reached their receive limit."),
    metric(LEASES_EXTENDED, Counter, Unit::Count, "Leases that consumers gave a new end."),
    metric(ACKS_LATE, Counter, Unit::Count, "Acknowledgements that came after their lease had ended, or again."),
    metric(ACKS_LAST_TENTH, Counter, Unit::Count, "Acknowledgements in the last tenth of their lease."),
    metric(REDELIVERIES_HELD, Counter, Unit::Count, "Times that a message came back and had to wait for the retry budget."),
    metric(MESSAGES_SPARED, Counter, Unit::Count, "Times that a message met its receive limit in a storm and was held instead of being dead."),
    metric(LEASES_LOST, Counter, Unit::Count, "Leases that ended with their consumer, in queues that isolate suspects; they are among the expired."),
    metric(SEND_LATENCY, Histogram(SEND_BUCKETS_S), Unit::Seconds, "From a send's arrival to its answer."),
    metric(RECEIVE_LATENCY, Histogram(RECEIVE_BUCKETS_S), Unit::Seconds, "From a receive's arrival to its answer, waiting included."),
    metric(SQS_REQUESTS, Counter, Unit::Count, "Requests of SQS clients, by operation and by error code, which is OK for those that were done."),
    metric(SQS_LATENCY, Histogram(RECEIVE_BUCKETS_S), Unit::Seconds, "From the arrival of an SQS client's request to its answer, by operation, waiting included."),
    metric(LOG_SYNCS, Counter, Unit::Count, "Syncs of the write-ahead log: one may carry entries of many partitions."),
    metric(LOG_APPENDED_BYTES, Counter, Unit::Bytes, "Bytes appended to the write-ahead log."),
    metric(LEADERS, Gauge, Unit::Count, "Partitions led by this node."),
    metric(PENDING_BYTES, Gauge, Unit::Bytes, "Requests that were read and not yet answered."),
];

/// Explicit buckets, for without them a histogram becomes a summary, which cannot be added over nodes.
pub(super) fn with_buckets(mut builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    for metric in METRICS {
        if let Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    Ok(builder)
}

/// Tells the installed recorder what each metric means.
pub(super) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Counter => describe_counter!(metric.name, metric.unit, metric.description),
            Gauge => describe_gauge!(metric.name, metric.unit, metric.description),
            Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.description),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_metric() {
        let text = include_str!("../../../../docs/operating.md");
        for metric in METRICS {
            assert!(text.contains(&format!("`{}`", metric.name)), "{}", metric.name);
        }
    }

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(metric.name.starts_with("leasehold_"));
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Counter, "{}", metric.name);
            assert!(metric.description.ends_with('.'));
            assert!(METRICS[..i].iter().all(|other| other.name != metric.name));
            if let Histogram(buckets) = metric.kind {
                assert!(buckets.is_sorted_by(|left, right| left < right));
            }
        }
    }
}
