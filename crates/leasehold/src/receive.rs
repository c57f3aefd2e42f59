//! `leasehold receive`: prints messages, or runs a command for each.

use std::time::Duration;

use leasehold_client::{Client, Error, Lease, Message, Outcome, Reason, ReceiveOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::exec::{Group, attend};
use crate::input::duration;
use crate::messages::{id_text, message_json};
use crate::output::{Failure, Output};
use crate::server::Stop;

const WAIT: Duration = Duration::from_secs(20);
/// Messages of one receive.
const BATCH: u64 = 100;
/// How long a message waits whose command failed or did not start, and a follower after an error.
const RETRY_DELAY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Arguments {
    queue: String,
    /// Messages to receive before it ends.
    #[arg(long, default_value_t = 1)]
    max: u64,
    /// Goes on until it is stopped.
    #[arg(long, conflicts_with = "max")]
    follow: bool,
    /// Acknowledges messages once they are printed.
    #[arg(long, conflicts_with = "exec")]
    ack: bool,
    /// Runs this with `sh -c` for each message, the body on its stdin and LEASEHOLD_QUEUE, _MESSAGE_ID, _RECEIVE_COUNT,
    /// _FENCING_TOKEN, _GROUP and _ATTRIBUTE_name in its environment, but for a variable over 100 KiB, and what is over 1 MiB in
    /// all; keeps the lease while it runs; acknowledges when it exits with 0, gives back otherwise. A signal lets it finish, a
    /// second one kills it.
    #[arg(long)]
    exec: Option<String>,
    /// The queue's own when absent.
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// How long to wait for the first message: up to 20s.
    #[arg(long, value_parser = duration, default_value = "0")]
    wait: Duration,
}

/// Receives and handles messages.
///
/// # Errors
/// When messages cannot be received, or one of them was not handled and settled.
pub async fn run(arguments: Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    let group = Group::default();
    let mut stopping = watch_signals(&group)?;
    if arguments.exec.is_some() {
        group.end_with_the_terminal()?;
    }
    let mut left = if arguments.follow { u64::MAX } else { arguments.max };
    let (mut failed, mut all, mut last) = (0, 0, None);
    while left > 0 && !*stopping.borrow() {
        let options = options(&arguments, left);
        let received = tokio::select! {
            received = client.receive(&arguments.queue, options) => received,
            _ = stopping.changed() => break,
        };
        let messages = match received {
            Ok(messages) => messages,
            Err(error) if arguments.follow && may_pass(&error) => {
                output.tell(&error.into());
                sleep(RETRY_DELAY).await;
                continue;
            }
            Err(error) => {
                return Err(with_earlier(error.into(), last));
            }
        };
        if messages.is_empty() && !arguments.follow {
            break;
        }
        left -= (messages.len() as u64).min(left);
        all += messages.len() as u64;
        let failures = match &arguments.exec {
            Some(command) => execute_all(&arguments, client, &group, command, &messages).await,
            None => match print_all(&arguments, client, &messages, output).await {
                Ok(failures) => failures,
                Err(failure) => return Err(with_earlier(failure, last)),
            },
        };
        for failure in failures {
            failed += 1;
            // Alone, it is told at the end.
            if arguments.follow || arguments.max > 1 {
                output.tell(&failure);
            }
            last = Some(last.map_or(failure.clone(), |known: Failure| known.or_less_certain(failure)));
        }
    }
    last.map_or(Ok(()), |failure| Err(failure.of_items(failed, all, "messages were not handled")))
}

/// What ended it, unless an earlier failure leaves more open.
fn with_earlier(failure: Failure, earlier: Option<Failure>) -> Failure {
    match earlier {
        Some(earlier) => failure.or_less_certain(earlier),
        None => failure,
    }
}

fn options(arguments: &Arguments, left: u64) -> ReceiveOptions {
    ReceiveOptions {
        messages_max: if arguments.exec.is_some() { 1 } else { left.min(BATCH) as u32 },
        lease: arguments.lease,
        wait: if arguments.follow { WAIT } else { arguments.wait.min(WAIT) },
        consumer: "leasehold receive".to_owned(),
        ..ReceiveOptions::default()
    }
}

/// A follower outlives what is not its own fault.
pub fn may_pass(error: &Error) -> bool {
    let is_final = matches!(
        error.reason,
        Reason::UnknownQueue | Reason::InvalidArgument | Reason::LeaseTooLong | Reason::NotInitialised
    );
    error.outcome == Outcome::Unknown || !is_final
}

/// True after the first signal: what is in hand is brought to its end. The second ends the process, and the command that runs.
fn watch_signals(group: &Group) -> Result<watch::Receiver<bool>, Failure> {
    let mut stop = Stop::new()?;
    let (is_stopping, stopping) = watch::channel(false);
    let group = group.clone();
    tokio::spawn(async move {
        stop.asked().await;
        is_stopping.send_replace(true);
        stop.asked().await;
        group.end_process();
    });
    Ok(stopping)
}

/// Prints messages, and then acknowledges those that shall be; returns the failures of single ones.
async fn print_all(
    arguments: &Arguments,
    client: &Client,
    messages: &[Message],
    output: Output,
) -> Result<Vec<Failure>, Failure> {
    let mut printed = Ok(());
    for message in messages {
        printed = printed.and_then(|()| output.bytes(&message.body, &message_json(message)));
    }
    if !arguments.ack {
        return printed.map(|()| Vec::new());
    }
    let queue = &arguments.queue;
    if let Err(failure) = printed {
        // Nobody has read them: they go back at once, as far as that is possible.
        let leases = messages.iter().map(|message| Lease::new(message.receipt.clone(), Duration::ZERO));
        let _ = client.release(queue, &leases.collect::<Vec<_>>()).await;
        return Err(failure);
    }
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect::<Vec<_>>();
    let results = client.ack(queue, &receipts).await?;
    let failures = messages.iter().zip(results).filter_map(|(message, result)| {
        Some(Failure::from(result.err()?).in_front(&format!("{} is printed, but: ", id_text(message.id))))
    });
    Ok(failures.collect())
}

async fn execute_all(
    arguments: &Arguments,
    client: &Client,
    group: &Group,
    command: &str,
    messages: &[Message],
) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        let handled = handle(arguments, client, group, command, message).await;
        failures.extend(handled.err().map(|failure| failure.in_front(&format!("{}: ", id_text(message.id)))));
    }
    failures
}

/// Runs the command on a message, and settles it by how that ended.
async fn handle(
    arguments: &Arguments,
    client: &Client,
    group: &Group,
    command: &str,
    message: &Message,
) -> Result<(), Failure> {
    let queue = &arguments.queue;
    let lease =
        arguments.lease.unwrap_or_else(|| message.lease_until.saturating_duration_since(Instant::now()));
    let child = match group.start(command, queue, message) {
        Ok(child) => child,
        Err(error) => return Err(put_off(client, queue, message, &error).await),
    };
    let ended = attend(child, client, queue, message, lease).await;
    group.forget();
    let status = ended?;
    let (results, failed) = if status.success() {
        (client.ack(queue, std::slice::from_ref(&message.receipt)).await?, None)
    } else {
        let failure = Failure::new(format!("the command ended with {status}; the message goes back"));
        (client.release(queue, &[Lease::new(message.receipt.clone(), RETRY_DELAY)]).await?, Some(failure))
    };
    results.into_iter().try_for_each(|result| result.map_err(Failure::from))?;
    failed.map_or(Ok(()), Err)
}

/// Gives back a message whose command could not be started, and pauses: the next one would fare no better. It is not the fault of the
/// message, so the receive does not count.
async fn put_off(client: &Client, queue: &str, message: &Message, error: &std::io::Error) -> Failure {
    let postponed = client.postpone(queue, &[Lease::new(message.receipt.clone(), RETRY_DELAY)]).await;
    sleep(RETRY_DELAY).await;
    let why = format!("the command cannot be started ({error})");
    match postponed.and_then(|results| results.into_iter().collect::<Result<(), Error>>()) {
        Ok(()) => Failure::new(format!("{why}; the message is put off")),
        Err(error) => Failure::from(error).in_front(&format!("{why}, and the message is not put off: ")),
    }
}
