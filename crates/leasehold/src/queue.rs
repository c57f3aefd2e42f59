//! `leasehold queue`: making and managing queues.

use std::time::Duration;

use leasehold_client::v1::{DescribeQueueResponse, QueueCounters, QueueSettings};
use leasehold_client::{Client, QueueKind};
use serde_json::{Value, json};

use crate::endings;
use crate::headroom;
use crate::input::{duration, pair};
use crate::output::{Failure, Output};
use crate::storms;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Makes a queue; does nothing when an equal one is there.
    Create {
        queue: String,
        /// First in, first out within each message group.
        #[arg(long)]
        fifo: bool,
        /// Partitions that the queue spreads over.
        #[arg(long, default_value_t = 1)]
        shards: u32,
        #[command(flatten)]
        settings: Settings,
    },
    /// Lists queues by name.
    List {
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Shows settings and counters.
    Describe { queue: String },
    /// Changes the settings that are given.
    Set {
        queue: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Removes every message, leased ones too.
    Purge { queue: String },
    /// Deletes the queue and all its messages.
    Delete { queue: String },
    /// Moves the messages of a dead-letter queue back.
    Redrive {
        queue: String,
        /// Where to; without it, each message goes back to the queue it came from.
        #[arg(long)]
        target: Option<String>,
        /// Messages a second; 0 is as fast as it goes.
        #[arg(long, default_value_t = 0)]
        rate: u32,
        /// Stops the redrive that is running.
        #[arg(long)]
        cancel: bool,
        /// Returns at once instead of when all is moved.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(clap::Args)]
pub struct Settings {
    /// How long a consumer has for a message: up to 12h.
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// Up to where leases grow when the work takes longer than they last: up to 12h; 0 switches it off.
    #[arg(long, value_parser = duration)]
    adaptive_lease_max: Option<Duration>,
    /// Redeliveries for a hundred first deliveries, beyond which messages that come back wait: up to 1000; 0 switches it off.
    #[arg(long, value_name = "PERCENT")]
    retry_budget: Option<u64>,
    /// Redeliveries a second that the retry budget always allows: 1 to 10000.
    #[arg(long, value_name = "PER_SECOND")]
    retry_floor: Option<u64>,
    /// Whether messages whose consumer died with them are tried apart, until it is known which one kills.
    #[arg(long, value_name = "true|false")]
    isolate_suspects: Option<bool>,
    /// How long a new message waits: up to 15m.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// How long a message is kept: 1m to 14d.
    #[arg(long, value_parser = duration)]
    retention: Option<Duration>,
    /// Where messages go that were received too often; "" for nowhere.
    #[arg(long)]
    dead_letter_queue: Option<String>,
    /// Receives after which a message goes there, 1 to 1000.
    #[arg(long)]
    receives_max: Option<u32>,
    /// Whether messages without a deduplication id get one from their content.
    #[arg(long, value_name = "true|false")]
    content_deduplication: Option<bool>,
    /// How long a deduplication id is remembered; 0 switches it off.
    #[arg(long, value_parser = duration)]
    deduplication_window: Option<Duration>,
    /// Messages that may be leased at a time.
    #[arg(long)]
    in_flight_max: Option<u64>,
    /// Messages; 0 is without bound.
    #[arg(long)]
    length_max: Option<u64>,
    /// Bytes; 0 is without bound.
    #[arg(long)]
    bytes_max: Option<u64>,
    /// Bytes of one message with its attributes, up to 1 MiB.
    #[arg(long)]
    message_bytes_max: Option<u64>,
    /// How long a receive waits that leaves it to the queue: up to 20s.
    #[arg(long, value_parser = duration)]
    wait: Option<Duration>,
    /// A label, which means nothing to the queue; without a value it is taken away. Repeat it for several.
    #[arg(long, value_name = "name=value", value_parser = pair)]
    label: Vec<(String, String)>,
    /// A tag, as SQS has them. Repeat it for several.
    #[arg(long, value_name = "key=value", value_parser = pair)]
    tag: Vec<(String, String)>,
}

impl Settings {
    fn to_wire(&self, kind: Option<QueueKind>) -> QueueSettings {
        let ms = |duration: Option<Duration>| duration.map(|duration| duration.as_millis() as u64);
        QueueSettings {
            kind: kind.map(|kind| kind as i32),
            lease_ms: ms(self.lease),
            delay_ms: ms(self.delay),
            retention_ms: ms(self.retention),
            dead_letter_queue: self.dead_letter_queue.clone(),
            receives_max: self.receives_max,
            content_deduplication: self.content_deduplication,
            deduplication_window_ms: ms(self.deduplication_window),
            in_flight_max: self.in_flight_max,
            length_max: self.length_max,
            bytes_max: self.bytes_max,
            message_bytes_max: self.message_bytes_max,
            adaptive_lease_ms_max: ms(self.adaptive_lease_max),
            retry_percent: self.retry_budget,
            retry_floor_per_s: self.retry_floor,
            isolate_suspects: self.isolate_suspects,
            wait_ms: ms(self.wait),
            labels: self.label.iter().cloned().collect(),
            tags: self.tag.iter().cloned().collect(),
            ..QueueSettings::default()
        }
    }
}

pub async fn run(command: Command, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        Command::Create { queue, fifo, shards, settings } => {
            let kind = if fifo { QueueKind::Fifo } else { QueueKind::Standard };
            let created = client.create_queue(&queue, settings.to_wire(Some(kind)), shards).await?;
            let text =
                if created { format!("{queue} is created") } else { format!("{queue} was there already") };
            output.done(&text, &json!({ "queue": queue, "created": created }))?;
        }
        Command::List { prefix } => list(client, &prefix, output).await?,
        Command::Describe { queue } => describe(&client.describe_queue(&queue).await?, output)?,
        Command::Set { queue, settings } => {
            client.set_queue(&queue, settings.to_wire(None)).await?;
            done(output, &queue, "is changed")?;
        }
        Command::Purge { queue } => {
            client.purge_queue(&queue).await?;
            done(output, &queue, "is empty")?;
        }
        Command::Delete { queue } => {
            client.delete_queue(&queue).await?;
            done(output, &queue, "is deleted")?;
        }
        Command::Redrive { queue, cancel: true, .. } => {
            client.cancel_redrive(&queue).await?;
            done(output, &queue, "is no longer redriven")?;
        }
        Command::Redrive { queue, target, rate, no_wait, .. } => {
            client.start_redrive(&queue, target.as_deref(), rate).await?;
            if no_wait {
                done(output, &queue, "is being redriven")?;
            } else {
                watch_redrive(client, &queue, output).await?;
            }
        }
    }
    Ok(())
}

fn done(output: Output, queue: &str, what: &str) -> Result<(), Failure> {
    output.done(&format!("{queue} {what}"), &json!({ "queue": queue, "done": true }))
}

async fn list(client: &Client, prefix: &str, output: Output) -> Result<(), Failure> {
    let mut after = String::new();
    loop {
        let page = client.list_queues(prefix, 1_000, &after).await?;
        for queue in &page.queues {
            output.line(queue, &json!({ "queue": queue }))?;
        }
        match page.queues.last() {
            Some(last) if page.more => after.clone_from(last),
            _ => return Ok(()),
        }
    }
}

async fn watch_redrive(client: &Client, queue: &str, output: Output) -> Result<(), Failure> {
    let bar = output.progress(Some(0));
    loop {
        let described = client.describe_queue(queue).await?;
        let waiting = described.counters.unwrap_or_default().dead;
        let redrive = described.redrive.unwrap_or_default();
        bar.set_length(redrive.total);
        bar.set_position(redrive.moved.saturating_sub(waiting));
        if !redrive.running && waiting == 0 {
            bar.finish_and_clear();
            let text = format!("{} messages of {queue} are moved", redrive.moved);
            output.done(&text, &json!({ "queue": queue, "moved": redrive.moved }))?;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn settings_json(settings: &QueueSettings) -> Value {
    let kind = if settings.kind == Some(QueueKind::Fifo as i32) { "fifo" } else { "standard" };
    json!({
        "kind": kind, "lease_ms": settings.lease_ms, "delay_ms": settings.delay_ms, "retention_ms": settings.retention_ms,
        "dead_letter_queue": settings.dead_letter_queue, "receives_max": settings.receives_max,
        "content_deduplication": settings.content_deduplication,
        "deduplication_window_ms": settings.deduplication_window_ms, "in_flight_max": settings.in_flight_max,
        "length_max": settings.length_max, "bytes_max": settings.bytes_max,
        "message_bytes_max": settings.message_bytes_max, "adaptive_lease_ms_max": settings.adaptive_lease_ms_max,
        "retry_percent": settings.retry_percent, "retry_floor_per_s": settings.retry_floor_per_s,
        "isolate_suspects": settings.isolate_suspects,
        "wait_ms": settings.wait_ms, "labels": settings.labels, "tags": settings.tags,
    })
}

fn describe(described: &DescribeQueueResponse, output: Output) -> Result<(), Failure> {
    let counters = described.counters.unwrap_or_default();
    let settings = settings_json(&described.settings.clone().unwrap_or_default());
    let shards =
        described.shards.iter().map(|shard| json!({ "partition": shard.partition, "leader": shard.leader }));
    let redrive = described
        .redrive
        .as_ref()
        .map(|redrive| json!({ "running": redrive.running, "moved": redrive.moved, "total": redrive.total }));
    let (headroom, versions) = headroom::objects(described);
    let object = json!({
        "queue": described.queue, "settings": settings, "ready": counters.ready, "leased": counters.leased,
        "delayed": counters.delayed, "dead": counters.dead, "bytes": counters.bytes,
        "oldest_age_ms": counters.oldest_age_ms, "shards": shards.collect::<Vec<_>>(), "redrive": redrive,
        "created_wall_ms": described.created_wall_ms, "headroom": headroom, "versions": versions,
        "retry_budget": storms::object(described), "endings": endings::object(described), "advice": headroom::advice(described),
    });
    output.line(describe_text(described, &settings), &object)
}

fn describe_text(described: &DescribeQueueResponse, settings: &Value) -> String {
    let QueueCounters { ready, leased, delayed, dead, bytes, oldest_age_ms } =
        described.counters.unwrap_or_default();
    let mut lines = vec![
        described.queue.clone(),
        format!("  ready {ready}, leased {leased}, delayed {delayed}, dead {dead}"),
        format!("  {bytes} bytes, the oldest is {oldest_age_ms} ms old"),
    ];
    if let Some(redrive) = &described.redrive {
        let state = if redrive.running { "running" } else { "over" };
        lines.push(format!("  redrive {state}, {} of {} moved", redrive.moved, redrive.total));
    }
    lines.extend(headroom::lines(described));
    lines.extend(storms::lines(described));
    lines.extend(endings::lines(described));
    lines.extend(described.advice.iter().map(|advice| format!("  advice: {}", advice.text)));
    let given = settings.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    lines.extend(given.map(|(name, value)| format!("  {name:<24} {value}")));
    for shard in &described.shards {
        lines.push(format!("  shard on partition {}, led by {}", shard.partition, shard.leader));
    }
    lines.join("\n")
}
