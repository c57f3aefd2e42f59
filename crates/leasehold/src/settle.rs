//! `leasehold ack`, `extend`, `release`, `postpone` and `reject`: settle what `receive` leased, by its receipts.

use std::time::Duration;

use bytes::Bytes;
use leasehold_client::{Client, Error, ItemResults, Lease, Rejection};
use serde_json::json;

use crate::input::{duration, receipt};
use crate::output::{Failure, Output};

#[derive(clap::Args)]
pub struct Receipts {
    queue: String,
    /// As `receive --json` prints them.
    #[arg(required = true, value_parser = receipt)]
    receipts: Vec<Bytes>,
}

#[derive(clap::Args)]
pub struct Ack {
    #[command(flatten)]
    of: Receipts,
}

#[derive(clap::Args)]
pub struct Extend {
    #[command(flatten)]
    of: Receipts,
    /// When the leases end from now on: up to 12h after their receive.
    #[arg(long, value_parser = duration)]
    lease: Duration,
}

#[derive(clap::Args)]
pub struct Release {
    #[command(flatten)]
    of: Receipts,
    /// How long the messages wait until they are ready again: up to 12h.
    #[arg(long, value_parser = duration, default_value = "0")]
    delay: Duration,
}

#[derive(clap::Args)]
pub struct Postpone {
    #[command(flatten)]
    of: Receipts,
    /// How long the messages wait until they are ready again: up to 12h.
    #[arg(long, value_parser = duration)]
    delay: Duration,
}

#[derive(clap::Args)]
pub struct Reject {
    #[command(flatten)]
    of: Receipts,
    /// Why: the attribute `leasehold-rejected` of the dead letters. Up to 1024 bytes.
    #[arg(long)]
    reason: String,
}

/// Removes messages that are done.
pub async fn ack(arguments: Ack, client: &Client, output: Output) -> Result<(), Failure> {
    let Receipts { queue, receipts } = &arguments.of;
    told(client.ack(queue, receipts).await, "acknowledged", output)
}

/// Makes leases end later, or sooner.
pub async fn extend(arguments: Extend, client: &Client, output: Output) -> Result<(), Failure> {
    let leases = arguments.of.leases(arguments.lease);
    told(client.extend(&arguments.of.queue, &leases).await, "extended", output)
}

/// Gives messages back.
pub async fn release(arguments: Release, client: &Client, output: Output) -> Result<(), Failure> {
    let leases = arguments.of.leases(arguments.delay);
    told(client.release(&arguments.of.queue, &leases).await, "released", output)
}

/// Puts messages off.
pub async fn postpone(arguments: Postpone, client: &Client, output: Output) -> Result<(), Failure> {
    let leases = arguments.of.leases(arguments.delay);
    told(client.postpone(&arguments.of.queue, &leases).await, "postponed", output)
}

/// Moves messages to the dead-letter queue.
pub async fn reject(arguments: Reject, client: &Client, output: Output) -> Result<(), Failure> {
    let rejections =
        arguments.of.receipts.iter().map(|receipt| Rejection::new(receipt.clone(), &arguments.reason));
    let rejections = rejections.collect::<Vec<_>>();
    told(client.reject(&arguments.of.queue, &rejections).await, "rejected", output)
}

impl Receipts {
    fn leases(&self, duration: Duration) -> Vec<Lease> {
        self.receipts.iter().map(|receipt| Lease::new(receipt.clone(), duration)).collect()
    }
}

/// Says how many were settled, and why the others were not.
fn told(results: Result<ItemResults<()>, Error>, what: &str, output: Output) -> Result<(), Failure> {
    let results = results?;
    let (all, mut failed, mut last) = (results.len() as u64, 0, None);
    for (number, error) in (1..).zip(results).filter_map(|(number, result)| Some((number, result.err()?))) {
        failed += 1;
        let mut failure = Failure::from(error);
        // Alone, it is told at the end.
        if all > 1 {
            failure = failure.in_front(&format!("receipt {number}: "));
            output.tell(&failure);
        }
        last = Some(last.map_or(failure.clone(), |known: Failure| known.or_less_certain(failure)));
    }
    let failure = last.map(|failure| failure.of_items(failed, all, &format!("messages were not {what}")));
    let settled = all - failed;
    if settled > 0 {
        let noun = if settled == 1 { "message" } else { "messages" };
        let text = format!("{settled} {noun} {what}");
        if let Err(why) = output.line(&text, &json!({ what: settled })) {
            return Err(Failure::untold(&text, &why, failure));
        }
    }
    failure.map_or(Ok(()), Err)
}
