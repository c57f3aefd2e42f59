//! ChangeMessageVisibility and ChangeMessageVisibilityBatch: a lease ends so many seconds from now, or now.

use leasehold_node::QueueInfo;
use leasehold_proto::v1::{ExtendItem, ExtendRequest, Reason, SettleOutcome};
use serde::Deserialize;

use super::batch::{self, DoneEntry, Outcome};
use super::settle::{Entries, error_of, handle, result_of};
use super::{Done, required};
use crate::absent::{Batch, or_default};
use crate::error::{Error, Kind};
use crate::gateway::Call;
use crate::limits::VISIBILITY_S_MAX;
use crate::numbers::{Int, within};
use crate::text::Text;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChangeBatch<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    entries: Batch<Entry<'a>>,
}

/// A request by itself, with the queue, or an entry of a batch, with an id.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    receipt_handle: Option<Text<'a>>,
    visibility_timeout: Option<Int>,
}

pub async fn change(call: Call<'_>, request: Entry<'_>) -> Result<Done, Error> {
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let outcomes = change_all(call, &queue, vec![item(&request)?]).await?;
    outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Done {})
}

pub async fn change_batch<'a>(
    call: Call<'_>,
    request: ChangeBatch<'a>,
) -> Result<Outcome<'a, DoneEntry<'a>>, Error> {
    let sent = batch::checked(request.entries, |entry| entry.id.as_deref())?;
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let items = sent.iter().map(|entry| (entry.id.clone().unwrap_or_default(), item(entry)));
    let mut entries = Entries::read(items);
    let settled = change_all(call, &queue, std::mem::take(&mut entries.receipts)).await?;
    let mut outcome = Outcome::of(entries.ids.len());
    for (id, settled) in entries.with(settled) {
        outcome.add(id, settled, |id, ()| DoneEntry { id });
    }
    Ok(outcome)
}

fn item(entry: &Entry<'_>) -> Result<ExtendItem, Error> {
    let receipt = handle(entry.receipt_handle.as_deref())?;
    let seconds = within("VisibilityTimeout", entry.visibility_timeout, 0, VISIBILITY_S_MAX)?;
    Ok(ExtendItem { receipt, lease_ms: required(seconds, "VisibilityTimeout")? * 1_000 })
}

async fn change_all(
    call: Call<'_>,
    queue: &QueueInfo,
    items: Vec<ExtendItem>,
) -> Result<Vec<Result<(), Error>>, Error> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let seconds = items.iter().map(|item| item.lease_ms / 1_000).collect::<Vec<_>>();
    let request = ExtendRequest { queue: queue.name().to_owned(), items, request: None };
    let outcomes = call.service().extend(&request).await?;
    Ok(outcomes.into_iter().zip(seconds).map(|(outcome, seconds)| judged(outcome, seconds)).collect())
}

fn judged(outcome: SettleOutcome, seconds: u64) -> Result<(), Error> {
    result_of(outcome).map_err(|outcome| match outcome.reason() {
        Reason::MessageGone => {
            let reason = "Message does not exist or is not available for visibility timeout change.";
            Error::value("ReceiptHandle", "given", reason)
        }
        Reason::ReceiptStale => Error::new(
            Kind::MessageNotInflight,
            "The lease of the message has ended: it is not in flight under this receipt handle.",
        ),
        Reason::LeaseTooLong => {
            let reason = "Total VisibilityTimeout for the message is beyond the limit [43200 seconds].";
            Error::value("VisibilityTimeout", seconds, reason)
        }
        _ => error_of(outcome),
    })
}
