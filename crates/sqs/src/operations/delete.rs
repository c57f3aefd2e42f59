//! DeleteMessage and DeleteMessageBatch.
//!
//! To delete twice is to delete once. A receipt whose lease ended deletes nothing: on a standard queue SQS says that all is well
//! ("the request succeeds, but the message will not be deleted"), on a FIFO queue it says that the receipt is old.

use bytes::Bytes;
use leasehold_node::QueueInfo;
use leasehold_proto::v1::{AckRequest, Reason, SettleOutcome};
use serde::Deserialize;

use super::Done;
use super::batch::{self, DoneEntry, Outcome};
use super::settle::{Entries, error_of, handle, result_of};
use crate::absent::{Batch, or_default};
use crate::error::Error;
use crate::gateway::Call;
use crate::text::Text;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Delete<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow)]
    receipt_handle: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteBatch<'a> {
    #[serde(borrow)]
    queue_url: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "or_default")]
    entries: Batch<Entry<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    receipt_handle: Option<Text<'a>>,
}

pub async fn delete(call: Call<'_>, request: Delete<'_>) -> Result<Done, Error> {
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let receipt = handle(request.receipt_handle.as_deref())?;
    let outcomes = delete_all(call, &queue, vec![receipt]).await?;
    outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Done {})
}

pub async fn delete_batch<'a>(
    call: Call<'_>,
    request: DeleteBatch<'a>,
) -> Result<Outcome<'a, DoneEntry<'a>>, Error> {
    let sent = batch::checked(request.entries, |entry| entry.id.as_deref())?;
    let queue = call.queue(request.queue_url.as_deref()).await?;
    let mut entries = Entries::read(
        sent.into_iter().map(|entry| (entry.id.unwrap_or_default(), handle(entry.receipt_handle.as_deref()))),
    );
    let settled = delete_all(call, &queue, std::mem::take(&mut entries.receipts)).await?;
    let mut outcome = Outcome::of(entries.ids.len());
    for (id, settled) in entries.with(settled) {
        outcome.add(id, settled, |id, ()| DoneEntry { id });
    }
    Ok(outcome)
}

async fn delete_all(
    call: Call<'_>,
    queue: &QueueInfo,
    receipts: Vec<Bytes>,
) -> Result<Vec<Result<(), Error>>, Error> {
    if receipts.is_empty() {
        return Ok(Vec::new());
    }
    let request = AckRequest { queue: queue.name().to_owned(), receipts, request: None };
    let outcomes = call.service().ack(&request).await?;
    Ok(outcomes.into_iter().map(|outcome| judged(queue, outcome)).collect())
}

fn judged(queue: &QueueInfo, outcome: SettleOutcome) -> Result<(), Error> {
    result_of(outcome).or_else(|outcome| match outcome.reason() {
        Reason::MessageGone => Ok(()),
        Reason::ReceiptStale if queue.is_fifo() => {
            Err(Error::value("ReceiptHandle", "given", "The receipt handle has expired."))
        }
        Reason::ReceiptStale => Ok(()),
        _ => Err(error_of(outcome)),
    })
}
