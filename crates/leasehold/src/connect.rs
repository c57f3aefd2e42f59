//! `leasehold connect`: hands the messages of a queue to something that is no consumer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold_client::{CancellationToken, Client, RetryPolicy};
use leasehold_connect::{Connector, Form, Kind, Numbers, Secrets, Settings, Tally};
use leasehold_node::config::LogFormat;
use leasehold_node::telemetry::start_logging;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::input::{duration, header};
use crate::output::{Failure, Output};
use crate::server::Stop;

#[derive(clap::Subcommand)]
pub enum Command {
    /// To an HTTP endpoint, in batches: docs/connect.md has the forms of requests and answers.
    Http(Arguments),
}

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    queue: String,
    /// Where requests go: http://host:port/path, or https.
    #[arg(long)]
    url: String,
    /// `batch` sends several messages as JSON, `raw` one with its body as it is.
    #[arg(long, value_enum, default_value_t = FormName::Batch)]
    form: FormName,
    /// Messages of a request at most: up to 1000; 10 unless told.
    #[arg(long)]
    batch_size: Option<usize>,
    /// Bytes of their bodies at most; 6 MiB unless told. A larger message goes alone.
    #[arg(long)]
    batch_bytes: Option<usize>,
    /// How long a request may wait for more messages: up to 5m.
    #[arg(long, value_parser = duration, default_value = "0")]
    batch_window: Duration,
    /// Requests at a time at the start; 4 unless told.
    #[arg(long)]
    concurrency: Option<u32>,
    /// Requests at a time while the endpoint keeps up: up to 1000; 16 unless told.
    #[arg(long)]
    concurrency_max: Option<u32>,
    /// For a request and its answer: up to 15m; 30s unless told.
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// When a message comes again that failed once; it doubles with each receive.
    #[arg(long, value_parser = duration, default_value = "1s")]
    retry_first: Duration,
    /// The longest that a message waits to come again.
    #[arg(long, value_parser = duration, default_value = "5m")]
    retry_longest: Duration,
    /// A status that moves a message to the dead-letter queue; repeat it for several.
    #[arg(long = "reject-status", value_delimiter = ',')]
    reject_statuses: Vec<u16>,
    /// A header of every request, as `name: value`; repeat it for several.
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A file with the certificate authorities (PEM) that an https endpoint is checked against, instead of the system's.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// A file with what requests are signed with, one `whsec_...` a line.
    #[arg(long)]
    secrets_file: Option<PathBuf>,
    /// How far leases reach; the queue's own unless told.
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// Who receives, for `why` and for the processing times of `queue describe`.
    #[arg(long)]
    name: Option<String>,
    /// How long requests may still take after a signal; 30s unless told.
    #[arg(long, value_parser = duration)]
    stop_within: Option<Duration>,
    /// How often to tell what was done, if anything was.
    #[arg(long, value_parser = duration, default_value = "10s")]
    report: Duration,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FormName {
    Batch,
    Raw,
}

impl Arguments {
    fn settings(&self) -> Result<Settings, Failure> {
        let defaults = Settings::new(&self.queue, &self.url);
        let concurrency = self.concurrency.unwrap_or(defaults.concurrency);
        let secrets = self.secrets_file.as_ref().map(|path| {
            let told = |invalid| Failure::usage(format!("{}: {invalid}", path.display()));
            Secrets::parse(&String::from_utf8_lossy(&read(path)?)).map_err(told)
        });
        Ok(Settings {
            form: match self.form {
                FormName::Batch => Form::Batch,
                FormName::Raw => Form::Raw,
            },
            batch_messages: self.batch_size.unwrap_or(defaults.batch_messages),
            batch_bytes: self.batch_bytes.unwrap_or(defaults.batch_bytes),
            batch_window: self.batch_window,
            concurrency,
            concurrency_max: self.concurrency_max.unwrap_or(defaults.concurrency_max.max(concurrency)),
            timeout: self.timeout.unwrap_or(defaults.timeout),
            retry: RetryPolicy::new(self.retry_first, self.retry_longest),
            reject_statuses: self.reject_statuses.clone(),
            headers: self.headers.clone(),
            authorities: self.ca_file.as_ref().map(|path| read(path)).transpose()?,
            secrets: secrets.transpose()?,
            lease: self.lease,
            name: self.name.clone().unwrap_or(defaults.name.clone()),
            stop_within: self.stop_within.unwrap_or(defaults.stop_within),
            ..defaults
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// Connects until a signal comes.
///
/// # Errors
/// When an argument is wrong, or the queue cannot be consumed.
pub async fn run(command: Command, client: Client, output: Output) -> Result<(), Failure> {
    let Command::Http(arguments) = command;
    let mut signals = Stop::new()?;
    let format = if output.is_json() { LogFormat::Json } else { LogFormat::Human };
    start_logging(format, "warn").map_err(|error| Failure::new(error.to_string()))?;
    let stop = CancellationToken::new();
    let connector = Connector::new(client, arguments.settings()?, &stop)
        .map_err(|invalid| Failure::usage(invalid.to_string()))?;
    let numbers = connector.numbers();
    let mut running = std::pin::pin!(connector.run());
    let mut report = Report::new(&arguments, output);
    let mut ticks = interval(arguments.report.max(REPORT_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut running => {
                let told = report.tell(&numbers);
                return ended.map_err(Failure::from).and(told);
            }
            _ = ticks.tick() => {
                // Without anybody who reads them, messages are handed out all the same.
                if let Err(failure) = report.tell(&numbers) {
                    tracing::warn!(%failure, "the report cannot be written");
                }
            }
            () = signals.asked() => {
                if stop.is_cancelled() {
                    return Err(Failure::new("stopped before everything was given back"));
                }
                eprintln!("finishes what is under way and stops; a second signal stops it at once");
                stop.cancel();
            }
        }
    }
}

const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Tells what was done, when something was.
struct Report<'a> {
    arguments: &'a Arguments,
    output: Output,
    told: Tally,
}

impl<'a> Report<'a> {
    fn new(arguments: &'a Arguments, output: Output) -> Self {
        Self { arguments, output, told: Tally::default() }
    }

    fn tell(&mut self, numbers: &Numbers) -> Result<(), Failure> {
        let tally = numbers.now();
        if tally == self.told {
            return Ok(());
        }
        self.output.line(text(&tally), &object(&self.arguments.queue, &tally))?;
        self.told = tally;
        Ok(())
    }
}

/// Since the start, but for the times, which are those of the last thousand requests.
fn text(tally: &Tally) -> String {
    let failed = Kind::ALL.iter().zip(tally.failed).filter(|(_, count)| *count > 0);
    let failed = failed.map(|(kind, count)| format!(", {count} {}", kind.name())).collect::<String>();
    format!(
        "{} requests (p50 {} ms, p99 {} ms{failed}, {} halved); {} messages acked, {} retried, {} rejected, {} returned, {} unsettled",
        tally.requests,
        tally.p50.as_millis(),
        tally.p99.as_millis(),
        tally.halved,
        tally.acked,
        tally.retried,
        tally.rejected,
        tally.returned,
        tally.unsettled,
    )
}

fn object(queue: &str, tally: &Tally) -> Value {
    let failed =
        Kind::ALL.iter().zip(tally.failed).map(|(kind, count)| (kind.name().to_owned(), count.into()));
    json!({
        "queue": queue, "requests": tally.requests, "failed": failed.collect::<serde_json::Map<_, _>>(),
        "halved": tally.halved, "p50_ms": tally.p50.as_millis() as u64, "p99_ms": tally.p99.as_millis() as u64,
        "acked": tally.acked, "retried": tally.retried, "rejected": tally.rejected,
        "returned": tally.returned, "unsettled": tally.unsettled,
    })
}
