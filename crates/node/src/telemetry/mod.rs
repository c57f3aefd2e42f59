//! What a node tells about itself while it runs: log lines on stderr, and metrics for Prometheus.
//!
//! ```text
//!   tracing   --> start_logging: human or JSON lines on stderr
//!   counters, gauges, histograms --> recorder --+
//!   gauges by queue --> QueueSeries ------------+--> Metrics::render --> admin_http's /metrics
//! ```
//!
//! Both are of the process, not of a node: `dev` runs three nodes in one, which share the recorder and tell themselves apart by
//! the label `node`.

pub mod names;
mod queue_series;

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

pub use queue_series::{Damping, OTHER, Processing, QUEUE_SERIES_MAX, QueueSample};

/// How often observations are moved into their histograms; in between each costs memory.
const UPKEEP_INTERVAL_MS: u64 = 5_000;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`logging.level` = {level:?} is not a log level: {detail}")]
    Level { level: String, detail: String },
    #[error("another logger was started in this process before")]
    LoggerTaken,
    #[error("another metrics recorder was installed in this process before")]
    RecorderTaken,
}

/// Starts logging to stderr, once in a process. `level` is a level, or levels by module as in `info,leasehold_node=debug`.
pub fn start_logging(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let ansi = if io::stderr().is_terminal() { Ansi::Colours } else { Ansi::Plain };
    let subscriber = subscriber(format, ansi, level, io::stderr)?;
    subscriber.try_init().map_err(|_| TelemetryError::LoggerTaken)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ansi {
    Colours,
    Plain,
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber<W>(format: LogFormat, ansi: Ansi, level: &str, writer: W) -> Result<Subscriber, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The Raft library tells much of what is normal here: it is heard when it is named.
    let quiet = if level.contains("openraft") { "" } else { ",openraft=off" };
    let filter = EnvFilter::try_new(format!("{level}{quiet}"))
        .map_err(|error| TelemetryError::Level { level: level.to_owned(), detail: error.to_string() })?;
    // What tells of a line that could not be written would write to the same place, and panic.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(writer);
    Ok(match format {
        LogFormat::Human => Box::new(builder.with_ansi(ansi == Ansi::Colours).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_span_list(false).finish()),
    })
}

/// The metrics of this process.
pub struct Metrics {
    recorded: PrometheusHandle,
    queues: queue_series::QueueSeries,
}

/// Installs the recorder at the first call, and returns the same metrics at every one.
pub fn metrics() -> Result<&'static Metrics, TelemetryError> {
    static METRICS: OnceLock<Option<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| install().ok()).as_ref().ok_or(TelemetryError::RecorderTaken)
}

fn install() -> Result<Metrics, metrics_exporter_prometheus::BuildError> {
    let recorded = names::with_buckets(PrometheusBuilder::new())?.install_recorder()?;
    names::describe();
    Ok(Metrics { recorded, queues: queue_series::QueueSeries::default() })
}

impl Metrics {
    /// All metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = self.recorded.render();
        self.queues.render(&mut text);
        text
    }

    /// Replaces the gauges by queue of a node. Give every queue of which it leads a shard; the busiest get their own series.
    pub fn publish_queues<'a>(&self, node: &str, samples: impl IntoIterator<Item = QueueSample<'a>>) {
        self.queues.publish(node, samples);
    }

    /// Takes the gauges by queue of a node away, when it stops.
    pub fn forget_queues(&self, node: &str) {
        self.queues.forget(node);
    }

    /// Keeps the memory of the histograms bounded. Runs for ever: one task of a process is enough, more do no harm.
    pub async fn run_upkeep(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(UPKEEP_INTERVAL_MS)).await;
            self.recorded.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(format, Ansi::Plain, level, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(node = "a", "listening");
            tracing::debug!("hidden");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_are_human_or_json() {
        let human = logged(LogFormat::Human, "info");
        assert!(
            human.contains("INFO") && human.contains("listening") && human.contains("node=\"a\""),
            "{human}"
        );
        assert!(!human.contains("hidden") && !human.contains('\u{1b}'));
        let json: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, "info")).unwrap();
        assert_eq!(
            (&json["message"], &json["node"], &json["level"]),
            (&"listening".into(), &"a".into(), &"INFO".into())
        );
        assert_eq!(logged(LogFormat::Json, "warn"), "");
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        let error = start_logging(LogFormat::Human, "a=b=c").unwrap_err();
        assert!(error.to_string().contains("a=b=c"), "{error}");
    }

    #[test]
    fn all_nodes_of_a_process_share_one_recorder() {
        let (first, second) = (metrics().unwrap(), metrics().unwrap());
        assert!(std::ptr::eq(first, second));
        for node in ["a", "b"] {
            metrics::counter!(names::MESSAGES_SENT, names::NODE => node).increment(3);
            metrics::histogram!(names::SEND_LATENCY, names::NODE => node).record(0.003);
        }
        first.publish_queues(
            "a",
            [QueueSample {
                activity: 1,
                ready: 7,
                leased: 0,
                delayed: 0,
                oldest_age_ms: 0,
                processing: None,
                damping: None,
                queue: "q",
            }],
        );
        let text = second.render();
        for line in [
            "# TYPE leasehold_messages_sent_total counter",
            "leasehold_messages_sent_total{node=\"a\"} 3",
            "leasehold_messages_sent_total{node=\"b\"} 3",
            "# TYPE leasehold_send_latency_seconds histogram",
            "leasehold_send_latency_seconds_bucket{node=\"a\",le=\"0.002\"} 0",
            "leasehold_send_latency_seconds_bucket{node=\"a\",le=\"0.004\"} 1",
            "leasehold_queue_ready{node=\"a\",queue=\"q\"} 7",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
    }
}
