//! What is measured, in which unit, and which way is better.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::system::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Metric {
    MessagesPerS,
    P50Ms,
    P99Ms,
    P999Ms,
    ServersCpuUs,
    ClientsCpuUs,
    WrittenBytes,
    ResidentMib,
    SendGapMs,
    ReceiveGapMs,
    Duplicates,
    Lost,
    OnTimePercent,
    LastedS,
    QueuesPerS,
    KibPerQueue,
    IdlePercent,
    RestartMs,
    MibPerS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Metric {
    const ALL: [Self; 19] = [
        Self::MessagesPerS,
        Self::P50Ms,
        Self::P99Ms,
        Self::P999Ms,
        Self::ServersCpuUs,
        Self::ClientsCpuUs,
        Self::WrittenBytes,
        Self::ResidentMib,
        Self::SendGapMs,
        Self::ReceiveGapMs,
        Self::Duplicates,
        Self::Lost,
        Self::OnTimePercent,
        Self::LastedS,
        Self::QueuesPerS,
        Self::KibPerQueue,
        Self::IdlePercent,
        Self::RestartMs,
        Self::MibPerS,
    ];

    /// In JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::MessagesPerS => "messages_per_s",
            Self::P50Ms => "p50_ms",
            Self::P99Ms => "p99_ms",
            Self::P999Ms => "p99_9_ms",
            Self::ServersCpuUs => "servers_cpu_us_per_message",
            Self::ClientsCpuUs => "clients_cpu_us_per_message",
            Self::WrittenBytes => "written_bytes_per_message",
            Self::ResidentMib => "resident_mib_max",
            Self::SendGapMs => "send_gap_ms_max",
            Self::ReceiveGapMs => "receive_gap_ms_max",
            Self::Duplicates => "duplicates",
            Self::Lost => "lost",
            Self::OnTimePercent => "on_time_percent",
            Self::LastedS => "lasted_s",
            Self::QueuesPerS => "queues_per_s",
            Self::KibPerQueue => "kib_per_queue_and_node",
            Self::IdlePercent => "idle_percent_of_a_core",
            Self::RestartMs => "restart_ms",
            Self::MibPerS => "mib_per_s",
        }
    }

    /// In the head of a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::MessagesPerS => "messages/s",
            Self::P50Ms => "p50, ms",
            Self::P99Ms => "p99, ms",
            Self::P999Ms => "p99.9, ms",
            Self::ServersCpuUs => "servers' CPU, µs/message",
            Self::ClientsCpuUs => "clients' CPU, µs/message",
            Self::WrittenBytes => "written, bytes/message",
            Self::ResidentMib => "largest node, MiB",
            Self::SendGapMs => "longest gap of sends, ms",
            Self::ReceiveGapMs => "longest gap of receives, ms",
            Self::Duplicates => "duplicates",
            Self::Lost => "lost",
            Self::OnTimePercent => "done when the time was over, %",
            Self::LastedS => "lasted, s",
            Self::QueuesPerS => "queues created/s",
            Self::KibPerQueue => "KiB a queue and node",
            Self::IdlePercent => "idle, % of a core",
            Self::RestartMs => "restart, ms",
            Self::MibPerS => "MiB/s",
        }
    }

    pub fn better(self) -> Better {
        match self {
            Self::MessagesPerS | Self::OnTimePercent | Self::LastedS | Self::QueuesPerS | Self::MibPerS => {
                Better::Higher
            }
            _ => Better::Lower,
        }
    }

    /// How many times as good `ours` is as `theirs`; `None` where one of them is nothing.
    pub fn ratio(self, ours: f64, theirs: f64) -> Option<f64> {
        let ratio = match self.better() {
            Better::Higher => ours / theirs,
            Better::Lower => theirs / ours,
        };
        (ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> Self {
        metric.key().to_owned()
    }
}

impl TryFrom<String> for Metric {
    type Error = Failure;

    fn try_from(key: String) -> Result<Self, Failure> {
        let known = Self::ALL.into_iter().find(|metric| metric.key() == key);
        known.ok_or_else(|| Failure::new(format!("{key} is not measured by this program")))
    }
}

/// One figure of one run.
pub type Reading = (Metric, f64);

/// The middle of some runs, and how far they went apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// In the order of the runs.
    pub values: Vec<f64>,
}

impl Summary {
    /// `None` of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max, values: values.to_vec() })
    }

    pub fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "runs": self.values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_and_of_an_even_number() {
        let summary =
            |values: &[f64]| Summary::of(values).map(|summary| (summary.median, summary.min, summary.max));
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 9.0]), Some((3.0, 1.0, 9.0)));
        assert_eq!(summary(&[]), None);
        assert_eq!(Summary::of(&[3.0, 1.0]).map(|summary| summary.values), Some(vec![3.0, 1.0]));
    }

    #[test]
    fn every_metric_comes_back_by_its_key() {
        for metric in Metric::ALL {
            let written = serde_json::to_string(&metric).unwrap();
            assert_eq!(written, format!("\"{}\"", metric.key()));
            assert_eq!(serde_json::from_str::<Metric>(&written).unwrap(), metric);
        }
        assert!(Metric::ALL.is_sorted() && serde_json::from_str::<Metric>("\"speed\"").is_err());
    }

    #[test]
    fn a_ratio_above_one_is_good_whichever_way_is_better() {
        assert_eq!(Metric::MessagesPerS.ratio(300.0, 100.0), Some(3.0));
        assert_eq!(Metric::P99Ms.ratio(2.0, 10.0), Some(5.0));
        assert_eq!(Metric::Lost.ratio(0.0, 0.0), None);
        assert_eq!(Metric::Duplicates.ratio(0.0, 5.0), None);
    }
}
