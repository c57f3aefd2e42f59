//! `leasehold connect`: hands the messages of a queue to something that is no consumer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold_client::{CancellationToken, Client, RetryPolicy};
use leasehold_connect::{Connector, Form, Kind, Numbers, Secrets, Settings, Tally};
use leasehold_node::config::LogFormat;
use leasehold_node::telemetry::start_logging;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::input::{duration, header};
use crate::output::{Failure, Output, say};
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
    #[arg(long = "header")]
    headers: Vec<String>,
    /// A file with the certificate authorities (PEM) that an https endpoint is checked against, instead of the system's.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// A file with what requests are signed with, one `whsec_...` a line.
    #[arg(long)]
    secrets_file: Option<PathBuf>,
    /// How far leases reach; the queue's own unless told.
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// How long a message may be in hand while the endpoint is away; 1h unless told, up to 12h. Then it goes back to the queue.
    #[arg(long, value_parser = duration)]
    keep_for: Option<Duration>,
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
        // What is wrong is named by its place: a header may be a secret.
        let headers = (1..).zip(&self.headers).map(|(number, text)| {
            header(text).map_err(|wrong| Failure::usage(format!("header {number}: {wrong}")))
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
            headers: headers.collect::<Result<_, _>>()?,
            authorities: self.ca_file.as_ref().map(|path| read(path)).transpose()?,
            secrets: secrets.transpose()?,
            lease: self.lease,
            keep_for: self.keep_for.unwrap_or(defaults.keep_for),
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
    let reports = Reports::start(arguments.queue.clone(), output)?;
    let mut ticks = interval(arguments.report.max(REPORT_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut running => {
                let told = reports.end(&numbers).await;
                return ended.map_err(Failure::from).and(told);
            }
            _ = ticks.tick() => reports.tell(&numbers),
            () = signals.asked() => {
                if stop.is_cancelled() {
                    return Err(Failure::new("stopped before everything was given back"));
                }
                stop.cancel();
                say("finishes what is under way and stops; a second signal stops it at once");
            }
        }
    }
}

const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How long the last report may take: the one before it may still wait to be read.
const LAST_REPORT_WITHIN: Duration = Duration::from_secs(1);

/// Tells what was done, when something was, on a thread of its own: who does not read holds up nothing.
struct Reports {
    tallies: mpsc::Sender<Tally>,
    /// How telling the last of them ended.
    ended: oneshot::Receiver<Result<(), Failure>>,
}

impl Reports {
    fn start(queue: String, output: Output) -> Result<Self, Failure> {
        let (tallies, mut to_tell) = mpsc::channel::<Tally>(1);
        let (end, ended) = oneshot::channel();
        let tell = move || {
            let (mut told, mut last) = (Tally::default(), Ok(()));
            while let Some(tally) = to_tell.blocking_recv() {
                if tally == told {
                    continue;
                }
                last = output.line(text(&tally), &object(&queue, &tally));
                match &last {
                    Ok(()) => told = tally,
                    // Without anybody who reads them, messages are handed out all the same.
                    Err(failure) => tracing::warn!(%failure, "the report cannot be written"),
                }
            }
            // Nobody may wait for it any more.
            let _ = end.send(last);
        };
        std::thread::Builder::new().name("reports".to_owned()).spawn(tell)?;
        Ok(Self { tallies, ended })
    }

    /// Tells what is counted now. While earlier reports still wait to be read, it does not: the next one tells more anyway.
    fn tell(&self, numbers: &Numbers) {
        let _ = self.tallies.try_send(numbers.now());
    }

    /// Tells the last of it.
    async fn end(self, numbers: &Numbers) -> Result<(), Failure> {
        let Self { tallies, ended } = self;
        let last = async {
            let sent = tallies.send(numbers.now()).await;
            drop(tallies);
            sent.ok()?;
            ended.await.ok()
        };
        let told = timeout(LAST_REPORT_WITHIN, last).await.ok().flatten();
        let told = told.unwrap_or_else(|| Err(Failure::new("nobody reads the reports")));
        told.map_err(|why| Failure::untold("everything was finished or given back", &why, None))
    }
}

/// Since the start, but for the times, which are those of the last thousand requests.
fn text(tally: &Tally) -> String {
    let failed = Kind::ALL.iter().zip(tally.failed).filter(|(_, count)| *count > 0);
    let failed = failed.map(|(kind, count)| format!(", {count} {}", kind.name())).collect::<String>();
    format!(
        "{} requests (p50 {} ms, p99 {} ms{failed}, {} halved); {} messages acked, {} retried, {} postponed, {} rejected, {} returned, {} unsettled",
        tally.requests,
        tally.p50.as_millis(),
        tally.p99.as_millis(),
        tally.halved,
        tally.acked,
        tally.retried,
        tally.postponed,
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
        "acked": tally.acked, "retried": tally.retried, "postponed": tally.postponed, "rejected": tally.rejected,
        "returned": tally.returned, "unsettled": tally.unsettled,
    })
}
