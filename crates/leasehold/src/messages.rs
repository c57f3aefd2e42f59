//! `leasehold send`, `receive`, `peek`, `why`.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use leasehold_client::{Client, Lease, Message, MessageId, NewMessage, ReceiveOptions};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::input::{duration, lines, message_id, pair};
use crate::output::{Failure, Output};

/// Messages of one send.
const BATCH: usize = 500;
const WAIT: Duration = Duration::from_secs(20);
/// How long a message waits whose command failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Send {
    queue: String,
    /// The body; without it, every line of the file or of stdin is a message.
    body: Option<String>,
    /// One message a line; may be compressed with gzip.
    #[arg(long, conflicts_with = "body")]
    file: Option<PathBuf>,
    #[arg(long)]
    group: Option<String>,
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    #[arg(long = "attribute", value_parser = pair)]
    attributes: Vec<(String, String)>,
    /// For a single message.
    #[arg(long, requires = "body")]
    deduplication_id: Option<String>,
}

impl Send {
    fn message(&self, body: String) -> NewMessage {
        let mut message = NewMessage::new(body);
        for (name, value) in &self.attributes {
            message = message.attribute(name.clone(), "String", value.clone());
        }
        if let Some(group) = &self.group {
            message = message.group(group.clone());
        }
        if let Some(delay) = self.delay {
            message = message.delay(delay);
        }
        if let Some(id) = &self.deduplication_id {
            message = message.deduplication_id(id.clone());
        }
        message
    }
}

pub async fn send(arguments: Send, client: &Client, output: Output) -> Result<(), Failure> {
    if let Some(body) = arguments.body.clone() {
        let id = send_batch(client, &arguments.queue, vec![arguments.message(body)], output).await?;
        return if id == 1 { Ok(()) } else { Err(Failure::new("the message was not sent")) };
    }
    let bodies: Box<dyn Iterator<Item = std::io::Result<String>>> = match &arguments.file {
        Some(path) => lines(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?,
        None => Box::new(std::io::stdin().lock().lines()),
    };
    let bar = indicatif::ProgressBar::new_spinner();
    if output.is_json() || !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let (mut batch, mut sent, mut all) = (Vec::with_capacity(BATCH), 0, 0);
    for body in bodies {
        batch.push(arguments.message(body?));
        all += 1;
        if batch.len() == BATCH {
            sent += send_batch(client, &arguments.queue, std::mem::take(&mut batch), output).await?;
            bar.set_message(format!("{sent} sent"));
            bar.tick();
        }
    }
    if !batch.is_empty() {
        sent += send_batch(client, &arguments.queue, batch, output).await?;
    }
    bar.finish_and_clear();
    if !output.is_json() {
        println!("{sent} messages sent");
    }
    if sent == all {
        Ok(())
    } else {
        Err(Failure::new(format!("{} of {all} messages were not sent", all - sent)))
    }
}

/// Sends a batch and tells of each message; returns how many were sent.
async fn send_batch(
    client: &Client,
    queue: &str,
    batch: Vec<NewMessage>,
    output: Output,
) -> Result<u64, Failure> {
    let is_single = batch.len() == 1;
    let mut sent = 0;
    for outcome in client.send(queue, batch).await? {
        match outcome {
            Ok(done) => {
                sent += 1;
                let id = format!("{}:{}", done.id.partition, done.id.sequence);
                if output.is_json() || is_single {
                    output.line(&id, &json!({ "id": id, "duplicate": done.duplicate }));
                }
            }
            Err(error) => drop(output.failed(&error.into())),
        }
    }
    Ok(sent)
}

#[derive(clap::Args)]
pub struct Receive {
    queue: String,
    /// Messages to receive before it ends.
    #[arg(long, default_value_t = 1)]
    max: u64,
    /// Goes on until it is stopped.
    #[arg(long)]
    follow: bool,
    /// Acknowledges each message once it is printed.
    #[arg(long, conflicts_with = "exec")]
    ack: bool,
    /// Runs this with `sh -c` for each message, the body on its stdin; acknowledges when it exits with 0, gives back otherwise.
    #[arg(long)]
    exec: Option<String>,
    /// The queue's own when absent.
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// How long to wait for the first message.
    #[arg(long, value_parser = duration, default_value = "0")]
    wait: Duration,
}

pub async fn receive(arguments: Receive, client: &Client, output: Output) -> Result<(), Failure> {
    let mut left = if arguments.follow { u64::MAX } else { arguments.max };
    while left > 0 {
        let options = ReceiveOptions {
            messages_max: if arguments.exec.is_some() { 1 } else { left.min(100) as u32 },
            lease: arguments.lease,
            wait: if arguments.follow { WAIT } else { arguments.wait.min(WAIT) },
            consumer: "leasehold receive".to_owned(),
            ..ReceiveOptions::default()
        };
        let messages = client.receive(&arguments.queue, options).await?;
        if messages.is_empty() && !arguments.follow {
            return Ok(());
        }
        for message in messages {
            left -= 1;
            handle(&arguments, client, &message, output).await?;
        }
    }
    Ok(())
}

async fn handle(
    arguments: &Receive,
    client: &Client,
    message: &Message,
    output: Output,
) -> Result<(), Failure> {
    let queue = &arguments.queue;
    if let Some(command) = &arguments.exec {
        let is_done = execute(command, queue, message).await?;
        return if is_done {
            ack(client, queue, message).await
        } else {
            give_back(client, queue, message).await
        };
    }
    if output.is_json() {
        output.line("", &message_json(message));
    } else {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&message.body)?;
        stdout.write_all(b"\n")?;
    }
    if arguments.ack { ack(client, queue, message).await } else { Ok(()) }
}

async fn ack(client: &Client, queue: &str, message: &Message) -> Result<(), Failure> {
    let outcomes = client.ack(queue, std::slice::from_ref(&message.receipt)).await?;
    outcomes.into_iter().try_for_each(|outcome| outcome.map_err(Failure::from))
}

async fn give_back(client: &Client, queue: &str, message: &Message) -> Result<(), Failure> {
    let outcomes = client.release(queue, &[Lease::new(message.receipt.clone(), RETRY_DELAY)]).await?;
    outcomes.into_iter().try_for_each(|outcome| outcome.map_err(Failure::from))
}

/// Runs the user's command on a message; true when it exits with 0.
async fn execute(command: &str, queue: &str, message: &Message) -> Result<bool, Failure> {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .env("LEASEHOLD_QUEUE", queue)
        .env("LEASEHOLD_MESSAGE_ID", id_text(message.id))
        .env("LEASEHOLD_RECEIVE_COUNT", message.receive_count.to_string())
        .env("LEASEHOLD_FENCING_TOKEN", message.fencing_token.to_string())
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input may still succeed.
        let _ = stdin.write_all(&message.body).await;
    }
    Ok(child.wait().await?.success())
}

fn id_text(id: MessageId) -> String {
    format!("{}:{}", id.partition, id.sequence)
}

fn message_json(message: &Message) -> Value {
    let sent_ms = message.sent_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let attributes = message.attributes.iter().map(|attribute| {
        (attribute.name.clone(), Value::from(String::from_utf8_lossy(&attribute.value).into_owned()))
    });
    json!({
        "id": id_text(message.id), "body": String::from_utf8_lossy(&message.body), "group": message.group,
        "attributes": attributes.collect::<serde_json::Map<_, _>>(), "receive_count": message.receive_count,
        "sent_wall_ms": sent_ms, "fencing_token": message.fencing_token,
    })
}

#[derive(clap::Args)]
pub struct Peek {
    queue: String,
    #[arg(long, default_value_t = 10)]
    max: u32,
}

pub async fn peek(arguments: Peek, client: &Client, output: Output) -> Result<(), Failure> {
    for message in client.peek(&arguments.queue, arguments.max).await? {
        let state = message.state().as_str_name().to_lowercase();
        let id = id_text(message.id.unwrap_or_default());
        let body = String::from_utf8_lossy(&message.body).into_owned();
        let text = format!("{id} {state:<8} received {} times: {body}", message.receive_count);
        let object =
            json!({ "id": id, "state": state, "receive_count": message.receive_count, "body": body });
        output.line(text, &object);
    }
    Ok(())
}

#[derive(clap::Args)]
pub struct Why {
    queue: String,
    /// partition:sequence, as `send` and `receive --json` print it.
    #[arg(value_parser = message_id)]
    id: MessageId,
}

pub async fn why(arguments: Why, client: &Client, output: Output) -> Result<(), Failure> {
    let life = client.why(&arguments.queue, arguments.id).await?;
    for event in &life.events {
        let text = format!("{:>14} {:<12} {}", event.wall_ms, event.event, event.detail);
        let object = json!({
            "wall_ms": event.wall_ms, "log_time_ms": event.log_time_ms, "log_index": event.log_index,
            "event": event.event, "detail": event.detail, "fencing_token": event.fencing_token,
        });
        output.line(text, &object);
    }
    output.line(format!("now: {}", life.state), &json!({ "state": life.state }));
    Ok(())
}
