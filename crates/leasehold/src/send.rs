//! `leasehold send`: one message, or the lines of a file or of stdin.

use std::io::{BufReader, stdin};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use leasehold_client::{Client, NewMessage};
use serde_json::json;
use tokio::sync::mpsc;

use crate::input::{Lines, duration, lines, lines_of, pair};
use crate::messages::id_text;
use crate::output::{Failure, Output};

/// Messages and bytes of one send; a single message may have more bytes, and is refused alone.
const BATCH: usize = 500;
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(clap::Args)]
pub struct Arguments {
    queue: String,
    /// The body; without it, every line of the file or of stdin is a message.
    body: Option<String>,
    /// One message a line; may be compressed with gzip.
    #[arg(long, conflicts_with = "body")]
    file: Option<PathBuf>,
    /// The message group of a FIFO queue.
    #[arg(long)]
    group: Option<String>,
    /// How long the message waits until it can be received: up to 15m.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// An attribute, as name=value; repeat it for several.
    #[arg(long = "attribute", value_parser = pair)]
    attributes: Vec<(String, String)>,
    /// For a single message.
    #[arg(long, requires = "body")]
    deduplication_id: Option<String>,
}

impl Arguments {
    fn message(&self, body: Bytes) -> NewMessage {
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

/// What became of the messages so far.
#[derive(Default)]
struct Tally {
    sent: u64,
    failed: u64,
    failure: Option<Failure>,
}

impl Tally {
    fn note(&mut self, failed: u64, failure: Failure) {
        self.failed += failed;
        self.failure = Some(match self.failure.take() {
            Some(earlier) => earlier.or_less_certain(failure),
            None => failure,
        });
    }

    /// Why not everything is known to be sent, if so; `ended` is what broke it off.
    fn take_failure(&mut self, ended: Result<(), Failure>) -> Option<Failure> {
        let all = self.sent + self.failed;
        match (ended, self.failure.take()) {
            // What is not known of an earlier message is not known of all.
            (Err(failure), Some(earlier)) => Some(failure.or_less_certain(earlier)),
            (Err(failure), None) => Some(failure),
            (Ok(()), earlier) => {
                earlier.map(|failure| failure.of_items(self.failed, all, "messages are not known to be sent"))
            }
        }
    }

    /// What was sent cannot be told for this reason.
    fn untold(&mut self, why: &Failure, ended: Result<(), Failure>) -> Failure {
        let done = format!("{} messages are sent of lines 1 to {}", self.sent, self.sent + self.failed);
        Failure::untold(&done, why, self.take_failure(ended))
    }

    fn end(mut self, ended: Result<(), Failure>) -> Result<(), Failure> {
        self.take_failure(ended).map_or(Ok(()), Err)
    }
}

/// Sends what the arguments say.
///
/// # Errors
/// When a message is not known to be sent, or the input cannot be read.
pub async fn run(arguments: Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let mut tally = Tally::default();
    if let Some(body) = arguments.body.clone() {
        let sent = send_batch(&arguments, client, vec![body.into()], &mut tally, output).await;
        return tally.end(sent);
    }
    let input = match &arguments.file {
        Some(path) => lines(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?,
        None => lines_of(BufReader::new(stdin())),
    };
    let sent = send_lines(&arguments, client, input, &mut tally, output).await;
    let told = match output.is_json() {
        true => Ok(()),
        false => output.line(format!("{} messages sent", tally.sent), &json!({})),
    };
    match told {
        Err(why) if tally.sent > 0 => Err(tally.untold(&why, sent)),
        told => tally.end(sent.and(told)),
    }
}

/// Sends lines as they come: what is there goes, without waiting for a batch to be full.
async fn send_lines(
    arguments: &Arguments,
    client: &Client,
    input: Lines,
    tally: &mut Tally,
    output: Output,
) -> Result<(), Failure> {
    let (lines, mut read) = mpsc::channel(BATCH);
    // A thread of its own, since a read of stdin cannot be interrupted.
    std::thread::spawn(move || {
        input.take_while(|line| lines.blocking_send(line_or_failure(line)).is_ok()).count()
    });
    let bar = output.progress(None);
    let mut waiting = Vec::new();
    while read.recv_many(&mut waiting, BATCH).await > 0 {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for line in waiting.drain(..) {
            let body: Bytes = line?;
            if !batch.is_empty() && bytes + body.len() > BATCH_BYTES_MAX {
                send_batch(arguments, client, std::mem::take(&mut batch), tally, output).await?;
                bytes = 0;
            }
            bytes += body.len();
            batch.push(body);
        }
        send_batch(arguments, client, batch, tally, output).await?;
        bar.set_message(format!("{} sent", tally.sent));
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(())
}

fn line_or_failure(line: &std::io::Result<Bytes>) -> Result<Bytes, Failure> {
    match line {
        Ok(line) => Ok(line.clone()),
        Err(error) => Err(Failure::new(format!("the input cannot be read: {error}"))),
    }
}

/// Sends a batch and tells of each message. When nobody can be told what is sent, that ends it.
async fn send_batch(
    arguments: &Arguments,
    client: &Client,
    batch: Vec<Bytes>,
    tally: &mut Tally,
    output: Output,
) -> Result<(), Failure> {
    let first = tally.sent + tally.failed + 1;
    let count = batch.len() as u64;
    let messages = batch.into_iter().map(|body| arguments.message(body)).collect();
    let is_alone = arguments.body.is_some();
    let results = client.send(&arguments.queue, messages).await.map_err(|error| {
        // The lines before were sent, those behind were not tried.
        let failure = Failure::from(error);
        if is_alone {
            failure
        } else {
            failure.in_front(&format!("lines {first} to {}: ", first + count - 1))
        }
    })?;
    let mut told = Ok(());
    for (number, result) in (first..).zip(results) {
        match result {
            Ok(sent) => {
                tally.sent += 1;
                let id = id_text(sent.id);
                let object = json!({ "id": id, "duplicate": sent.duplicate });
                if is_alone {
                    let untold = |why| Failure::untold(&format!("message {id} is sent"), &why, None);
                    output.line(&id, &object).map_err(untold)?;
                } else if output.is_json() {
                    told = told.and_then(|()| output.line(&id, &object));
                }
            }
            Err(error) if is_alone => tally.note(1, error.into()),
            Err(error) => {
                let failure = Failure::from(error).in_front(&format!("line {number}: "));
                output.tell(&failure);
                tally.note(1, failure);
            }
        }
    }
    told.map_err(|why| tally.untold(&why, Ok(())))
}
