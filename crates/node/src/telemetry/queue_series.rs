//! Gauges by queue, bounded: a node may hold a million queues, a scrape may not.
//!
//! The `QUEUE_SERIES_MAX` busiest queues of a node have series of their own, the rest are summed as `queue="_other"`. They do
//! not go through the recorder, because it keeps every series that it has ever seen; what is published here replaces what the
//! node published before.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::names::{NODE, QUEUE};

/// Queues of a node with series of their own.
pub const QUEUE_SERIES_MAX: usize = 200;
/// The name under which the rest are summed. A queue that is really named so is part of the rest.
pub const OTHER: &str = "_other";

/// What a node knows of one queue: the sum over the shards that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueSample<'a> {
    /// Messages sent, received and settled since the last publication: what makes a queue busy. Must stay the first field.
    pub activity: u64,
    pub ready: u64,
    pub leased: u64,
    pub delayed: u64,
    /// Zero when it holds no message.
    pub oldest_age_ms: u64,
    /// None when nothing was acknowledged lately.
    pub processing: Option<Processing>,
    /// None without a retry budget.
    pub damping: Option<Damping>,
    pub queue: &'a str,
}

/// What a retry budget does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damping {
    /// Messages that wait for it.
    pub held: u64,
    /// Shards in which most messages fail.
    pub storms: u64,
}

impl Damping {
    pub fn plus(self, other: Self) -> Self {
        Self { held: self.held + other.held, storms: self.storms + other.storms }
    }
}

/// How long consumers take, and the lease they have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Processing {
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub p999_ms: u64,
    /// The lease over p99.
    pub ratio_permille: u64,
}

impl Processing {
    /// The worst of both.
    fn worst(self, other: Self) -> Self {
        Self {
            p50_ms: self.p50_ms.max(other.p50_ms),
            p99_ms: self.p99_ms.max(other.p99_ms),
            p999_ms: self.p999_ms.max(other.p999_ms),
            ratio_permille: self.ratio_permille.min(other.ratio_permille),
        }
    }
}

/// What is shown of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gauges {
    ready: u64,
    leased: u64,
    delayed: u64,
    oldest_age_ms: u64,
    processing: Option<Processing>,
    damping: Option<Damping>,
}

impl Gauges {
    /// Counts add up; of ages the oldest is the age of all, of processing times and ratios the worst.
    fn add(&mut self, sample: &QueueSample<'_>) {
        self.ready += sample.ready;
        self.leased += sample.leased;
        self.delayed += sample.delayed;
        self.oldest_age_ms = self.oldest_age_ms.max(sample.oldest_age_ms);
        let both = self.processing.zip(sample.processing).map(|(left, right)| left.worst(right));
        self.processing = both.or(self.processing).or(sample.processing);
        let both = self.damping.zip(sample.damping).map(|(left, right)| left.plus(right));
        self.damping = both.or(self.damping).or(sample.damping);
    }
}

struct Family {
    name: &'static str,
    description: &'static str,
    /// None where there is nothing to show.
    text: fn(&Gauges) -> Option<String>,
}

/// Thousandths of a unit as the unit.
fn thousandths(number: u64) -> String {
    format!("{}.{:03}", number / 1000, number % 1000)
}

const FAMILIES: [Family; 10] = [
    Family {
        name: "leasehold_queue_ready",
        description: "Messages that a receive would be given now.",
        text: |gauges| Some(gauges.ready.to_string()),
    },
    Family {
        name: "leasehold_queue_leased",
        description: "Messages leased to consumers.",
        text: |gauges| Some(gauges.leased.to_string()),
    },
    Family {
        name: "leasehold_queue_delayed",
        description: "Messages whose delay has not ended.",
        text: |gauges| Some(gauges.delayed.to_string()),
    },
    Family {
        name: "leasehold_queue_oldest_age_seconds",
        description: "Age of the oldest message.",
        text: |gauges| Some(thousandths(gauges.oldest_age_ms)),
    },
    Family {
        name: "leasehold_queue_processing_p50_seconds",
        description: "Median time from grant to ack.",
        text: |gauges| gauges.processing.map(|processing| thousandths(processing.p50_ms)),
    },
    Family {
        name: "leasehold_queue_processing_p99_seconds",
        description: "Time from grant to ack that 99 % do not exceed.",
        text: |gauges| gauges.processing.map(|processing| thousandths(processing.p99_ms)),
    },
    Family {
        name: "leasehold_queue_processing_p999_seconds",
        description: "Time from grant to ack that 99.9 % do not exceed.",
        text: |gauges| gauges.processing.map(|processing| thousandths(processing.p999_ms)),
    },
    Family {
        name: "leasehold_queue_headroom_ratio",
        description: "The queue's lease over the 99th percentile from grant to ack.",
        text: |gauges| gauges.processing.map(|processing| thousandths(processing.ratio_permille)),
    },
    Family {
        name: "leasehold_queue_held",
        description: "Messages that came back and wait for the retry budget.",
        text: |gauges| gauges.damping.map(|damping| damping.held.to_string()),
    },
    Family {
        name: "leasehold_queue_storms",
        description: "Shards of the queue in which most messages fail.",
        text: |gauges| gauges.damping.map(|damping| damping.storms.to_string()),
    },
];

/// The series of all nodes of the process, by node and queue.
#[derive(Default)]
pub(super) struct QueueSeries(Mutex<BTreeMap<String, BTreeMap<String, Gauges>>>);

impl QueueSeries {
    pub fn publish<'a>(&self, node: &str, samples: impl IntoIterator<Item = QueueSample<'a>>) {
        let series = busiest(samples, QUEUE_SERIES_MAX);
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.to_owned(), series);
    }

    pub fn forget(&self, node: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// In the text format of Prometheus, in which all series of a family stand together.
    pub fn render(&self, out: &mut String) {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for family in FAMILIES {
            let name = family.name;
            let mut put =
                |line: std::fmt::Arguments<'_>| out.write_fmt(line).expect("a string takes everything");
            put(format_args!("# HELP {name} {}\n# TYPE {name} gauge\n", family.description));
            for (node, series) in nodes.iter() {
                let node = escape(node);
                for (queue, gauges) in series {
                    if let Some(value) = (family.text)(gauges) {
                        let queue = escape(queue);
                        put(format_args!("{name}{{{NODE}=\"{node}\",{QUEUE}=\"{queue}\"}} {value}\n"));
                    }
                }
            }
        }
    }
}

/// The busiest by name, and the rest as one. Memory is bounded by `max`, whatever the number of samples.
fn busiest<'a>(samples: impl IntoIterator<Item = QueueSample<'a>>, max: usize) -> BTreeMap<String, Gauges> {
    let mut kept = BinaryHeap::with_capacity(max + 1);
    let mut other: Option<Gauges> = None;
    for sample in samples {
        let mut least = Some(sample);
        if sample.queue != OTHER {
            kept.push(Reverse(sample));
            least = if kept.len() > max { kept.pop().map(|Reverse(least)| least) } else { None };
        }
        if let Some(least) = least {
            other.get_or_insert_default().add(&least);
        }
    }
    let named = kept.into_iter().map(|Reverse(sample)| {
        let mut gauges = Gauges::default();
        gauges.add(&sample);
        (sample.queue.to_owned(), gauges)
    });
    named.chain(other.map(|gauges| (OTHER.to_owned(), gauges))).collect()
}

/// As a label's value.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_series() {
        let text = include_str!("../../../../docs/operating.md");
        for family in &FAMILIES {
            assert!(text.contains(&format!("`{}`", family.name)), "{}", family.name);
        }
    }

    fn sample(queue: &str, activity: u64) -> QueueSample<'_> {
        let (processing, damping) = (None, None);
        QueueSample {
            activity,
            ready: 10,
            leased: 1,
            delayed: 2,
            oldest_age_ms: activity,
            processing,
            damping,
            queue,
        }
    }

    fn measured(queue: &str, activity: u64, p99_ms: u64) -> QueueSample<'_> {
        let processing =
            Processing { p50_ms: 1, p99_ms, p999_ms: 9_000, ratio_permille: 30_000_000 / p99_ms };
        QueueSample { processing: Some(processing), ..sample(queue, activity) }
    }

    #[test]
    fn the_rest_shows_the_worst_of_processing_times() {
        let series = QueueSeries::default();
        series.publish("worst", [measured(OTHER, 1, 2_000), sample(OTHER, 1), measured(OTHER, 1, 500)]);
        let mut text = String::new();
        series.render(&mut text);
        let labels = "{node=\"worst\",queue=\"_other\"}";
        assert!(text.contains(&format!("leasehold_queue_processing_p50_seconds{labels} 0.001\n")), "{text}");
        assert!(text.contains(&format!("leasehold_queue_processing_p99_seconds{labels} 2.000\n")), "{text}");
        assert!(text.contains(&format!("leasehold_queue_processing_p999_seconds{labels} 9.000\n")), "{text}");
        assert!(text.contains(&format!("leasehold_queue_headroom_ratio{labels} 15.000\n")), "{text}");
        series.publish("worst", [sample("q", 1)]);
        text.clear();
        series.render(&mut text);
        assert!(
            !text.contains("_seconds{node=\"worst\",queue=\"_other"),
            "what was not measured is not shown"
        );
        assert!(!text.contains("ratio{"), "{text}");
    }

    #[test]
    fn retry_budgets_are_shown_where_there_are_some_and_add_up() {
        let series = QueueSeries::default();
        let damped =
            |held, storms| QueueSample { damping: Some(Damping { held, storms }), ..sample(OTHER, 1) };
        series.publish("budget", [sample(OTHER, 1), damped(3, 1), sample("q", 1), damped(4, 0)]);
        let mut text = String::new();
        series.render(&mut text);
        assert!(text.contains("leasehold_queue_held{node=\"budget\",queue=\"_other\"} 7\n"), "{text}");
        assert!(text.contains("leasehold_queue_storms{node=\"budget\",queue=\"_other\"} 1\n"), "{text}");
        assert!(!text.contains("held{node=\"budget\",queue=\"q\"}"), "{text}");
    }

    #[test]
    fn the_busiest_are_named_and_the_rest_are_summed() {
        let samples = [sample("a", 1), sample("b", 5), sample("c", 9), sample("d", 3), sample("e", 7)];
        let series = busiest(samples, 2);
        assert_eq!(series.keys().collect::<Vec<_>>(), [OTHER, "c", "e"]);
        assert_eq!(
            series[OTHER],
            Gauges { ready: 30, leased: 3, delayed: 6, oldest_age_ms: 5, ..Gauges::default() }
        );
        assert_eq!(
            series["c"],
            Gauges { ready: 10, leased: 1, delayed: 2, oldest_age_ms: 9, ..Gauges::default() }
        );
    }

    #[test]
    fn without_a_rest_there_is_no_series_of_it() {
        assert_eq!(busiest([sample("a", 1), sample("b", 5)], 2).len(), 2);
        assert!(busiest([], 2).is_empty());
    }

    #[test]
    fn a_queue_with_the_name_of_the_rest_makes_no_second_series() {
        let series = busiest([sample(OTHER, 100), sample("a", 1), sample("b", 2)], 1);
        assert_eq!(series.keys().collect::<Vec<_>>(), [OTHER, "b"]);
        assert_eq!(series[OTHER].ready, 20);
    }

    #[test]
    fn a_publication_replaces_the_one_before_and_nodes_stand_beside_each_other() {
        let series = QueueSeries::default();
        series.publish("n1", [sample("old", 1)]);
        series.publish("n1", [sample("a\"\\\n", 1500)]);
        series.publish("n2", [sample("a", 1)]);
        let mut text = String::new();
        series.render(&mut text);
        assert!(!text.contains("\"old\""));
        assert!(text.contains("leasehold_queue_ready{node=\"n1\",queue=\"a\\\"\\\\\\n\"} 10\n"));
        assert!(
            text.contains("leasehold_queue_oldest_age_seconds{node=\"n1\",queue=\"a\\\"\\\\\\n\"} 1.500\n")
        );
        assert!(text.contains("leasehold_queue_leased{node=\"n2\",queue=\"a\"} 1\n"));
        assert_eq!(text.matches("# TYPE leasehold_queue_ready gauge\n").count(), 1);
        series.forget("n1");
        series.forget("n2");
        text.clear();
        series.render(&mut text);
        assert!(!text.contains("node="));
    }
}
