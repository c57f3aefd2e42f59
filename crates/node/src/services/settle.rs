//! Ack, extend, release, reject: receipts are opened, grouped by partition, and every one gets its own outcome.

use std::collections::BTreeMap;

use bytes::Bytes;
use leasehold_catalogue::PartitionId;
use leasehold_partition::limits::POSTPONE_VERSION_MIN;
use leasehold_partition::{self as partition, Command, QueueId, Receipt, Reply, Request};
use leasehold_proto::v1::{ExtendItem, Outcome, Reason, RejectItem, ReleaseItem, RequestId, SettleOutcome};

use super::{each, lookup, place, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::queue_info::QueueInfo;
use crate::receipt_token::{self, ReceiptToken};
use crate::replica::refusal;
use crate::router::{Answered, Repeat};

/// What is to be done with the lease of each receipt.
pub enum Settle<'a> {
    Ack(&'a [Bytes]),
    Extend(&'a [ExtendItem]),
    Release(&'a [ReleaseItem]),
    Reject(&'a [RejectItem]),
}

impl Settle<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Ack(receipts) => receipts.len(),
            Self::Extend(items) => items.len(),
            Self::Release(items) => items.len(),
            Self::Reject(items) => items.len(),
        }
    }

    /// The receipt at a place, and the duration that goes with it, 0 where none does.
    fn item(&self, at: usize) -> Result<(&[u8], u32), Failure> {
        Ok(match self {
            Self::Ack(receipts) => (&receipts[at], 0),
            Self::Extend(items) => (&items[at].receipt, validate::lease(items[at].lease_ms)?),
            Self::Release(items) => (&items[at].receipt, validate::release_delay(items[at].delay_ms)?),
            Self::Reject(items) => (&items[at].receipt, validate::reject_reason(&items[at].why)?),
        })
    }

    /// What a consumer has had to do with the message at a place.
    fn touch(&self, at: usize) -> Touch {
        match self {
            Self::Release(items) => Touch::of(&items[at]),
            _ => Touch::Worked,
        }
    }

    /// A command for items that are touched alike, which a cluster of this version can execute.
    fn command(&self, queue: QueueId, items: &[Item], version: u32) -> Command<'_> {
        let receipts = || items.iter().map(|item| item.receipt).collect();
        let pairs = || items.iter().map(|item| (item.receipt, item.duration_ms)).collect();
        match self {
            Self::Ack(_) => Command::Ack { queue, receipts: receipts() },
            Self::Extend(_) => Command::Extend { queue, items: pairs() },
            Self::Release(_) => match items.first().map(|item| item.touch) {
                Some(Touch::None) => Command::GiveBack { queue, receipts: receipts() },
                // A cluster that is being upgraded has another kind of waiting: the receive counts.
                Some(Touch::PutOff) if version >= POSTPONE_VERSION_MIN => {
                    Command::Postpone { queue, items: pairs() }
                }
                _ => Command::Release { queue, items: pairs() },
            },
            Self::Reject(rejected) => {
                let why = |item: &Item| (item.receipt, rejected[item.at].why.as_bytes());
                Command::Reject { queue, items: items.iter().map(why).collect() }
            }
        }
    }
}

/// What a consumer has had to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Touch {
    None,
    /// It did not want it yet.
    PutOff,
    Worked,
}

impl Touch {
    fn of(item: &ReleaseItem) -> Self {
        match (item.untouched, item.put_off, item.delay_ms) {
            (false, false, _) => Self::Worked,
            (_, _, 0) => Self::None,
            // The first clients that put messages off had no other word for it than untouched.
            _ => Self::PutOff,
        }
    }
}

struct Item {
    at: usize,
    touch: Touch,
    receipt: Receipt,
    duration_ms: u32,
}

/// Settles a batch; one outcome for each receipt, in order.
///
/// # Errors
/// When the queue is unknown, or there are too many or no receipts.
pub async fn settle(
    core: &Core,
    queue: &str,
    settle: Settle<'_>,
    request: Option<&RequestId>,
) -> Result<Vec<SettleOutcome>, Failure> {
    validate::settle(settle.len())?;
    let mut queue = lookup::queue(core, queue).await?;
    let mut sorted = sort(core, &queue, &settle);
    // This node may not have heard that the queue was made again.
    if !sorted.strangers.is_empty() {
        match lookup::successor(core, &queue).await {
            Ok(None) => {}
            Ok(Some(successor)) => {
                queue = successor;
                sorted = sort(core, &queue, &settle);
            }
            Err(failure) => sorted.strangers.iter().for_each(|at| sorted.outcomes[*at] = failed(&failure)),
        }
    }
    let Sorted { mut outcomes, parts, .. } = sorted;
    // Each kind of touch is a command of its own: they must not share a name.
    let is_mixed = (0..settle.len()).any(|at| settle.touch(at) != settle.touch(0));
    let request = request.filter(|_| !is_mixed);
    let settled =
        parts.iter().map(|((shard, _), items)| settle_part(core, &queue, *shard, &settle, items, request));
    let results = each(settled).await;
    for (items, result) in parts.values().zip(results) {
        place(&mut outcomes, items.iter().map(|item| item.at), result, failed);
    }
    Ok(outcomes)
}

/// Receipts by where they are settled, and the outcomes of those that are not.
struct Sorted {
    outcomes: Vec<SettleOutcome>,
    parts: BTreeMap<(PartitionId, Touch), Vec<Item>>,
    /// Those of a queue that this node does not know.
    strangers: Vec<usize>,
}

fn sort(core: &Core, queue: &QueueInfo, settle: &Settle<'_>) -> Sorted {
    let unheard_of = SettleOutcome { outcome: Outcome::Unknown as i32, ..SettleOutcome::default() };
    let outcomes = vec![unheard_of; settle.len()];
    let mut sorted = Sorted { outcomes, parts: BTreeMap::new(), strangers: Vec::new() };
    for (at, outcome) in sorted.outcomes.iter_mut().enumerate() {
        match open(core, queue, settle, at) {
            Ok((shard, item)) => sorted.parts.entry((shard, item.touch)).or_default().push(item),
            Err(failure) => {
                if failure.reason == Reason::MessageGone {
                    sorted.strangers.push(at);
                }
                *outcome = failed(&failure);
            }
        }
    }
    sorted
}

fn open(
    core: &Core,
    queue: &QueueInfo,
    settle: &Settle<'_>,
    at: usize,
) -> Result<(PartitionId, Item), Failure> {
    let (bytes, duration_ms) = settle.item(at)?;
    let key = core.view.receipt_key().ok_or_else(|| Failure::not_leader(None))?;
    let forged = |detail: String| Failure::not_done(Reason::ReceiptForged, detail);
    let token = receipt_token::open(&key, bytes).map_err(|error| forged(error.to_string()))?;
    let ReceiptToken { partition, queue: of_queue, slot, sequence, grant } = token;
    let shard = PartitionId(partition);
    if of_queue != queue.id().0 {
        if let Some(name) = core.view.queue_name(of_queue) {
            return Err(forged(format!(
                "the receipt is of queue {name}, not of {}: settle it there",
                queue.name()
            )));
        }
        let detail = format!("the receipt is not of queue {}, or of one that was deleted", queue.name());
        return Err(Failure::not_done(Reason::MessageGone, detail));
    }
    if !queue.has_shard_on(shard) {
        return Err(forged(format!("queue {} has no shard on partition {partition}", queue.name())));
    }
    let (receipt, touch) = (Receipt { slot, sequence, grant }, settle.touch(at));
    Ok((shard, Item { at, touch, receipt, duration_ms }))
}

async fn settle_part(
    core: &Core,
    queue: &QueueInfo,
    shard: PartitionId,
    settle: &Settle<'_>,
    items: &[Item],
    request: Option<&RequestId>,
) -> Result<Vec<SettleOutcome>, Failure> {
    let named = Request {
        id: lookup::request_id(request),
        command: settle.command(queue.id(), items, core.view.version()),
    };
    let mut call = lookup::call(queue.id(), &named);
    if matches!(settle, Settle::Extend(_)) {
        let mut promised = items.iter().map(|item| item.duration_ms).collect::<Vec<_>>();
        promised.sort_unstable();
        promised.dedup();
        call.promised_leases_ms = promised;
    }
    // To settle twice does what settling once does; the second answer may say that the message is gone.
    let Answered { reply, was_unknown } = core.router.command_after_all(shard, call, Repeat::Safe).await?;
    // Under a name, the partition answers as it did the first time.
    let may_be_done = was_unknown && named.id.is_none();
    match reply {
        Reply::Settled { outcomes } => {
            Ok(outcomes.into_iter().map(|outcome| settled_after(outcome, may_be_done)).collect())
        }
        Reply::Refused { reason } => Err(refusal(reason).after(may_be_done)),
        other => Err(lookup::unexpected(&other)),
    }
}

/// After a try of unknown outcome, a receipt that is of no use any more does not say that nothing happened: that try may have used it.
fn settled_after(outcome: partition::Outcome, earlier_unknown: bool) -> SettleOutcome {
    let told = settled(outcome);
    match outcome {
        partition::Outcome::Gone | partition::Outcome::Stale if earlier_unknown => SettleOutcome {
            outcome: Outcome::Unknown as i32,
            detail: format!("{}; an earlier try may have done it", told.detail),
            ..told
        },
        _ => told,
    }
}

fn settled(outcome: partition::Outcome) -> SettleOutcome {
    let not_done = |reason: Reason, detail: &str| SettleOutcome {
        outcome: Outcome::NotDone as i32,
        reason: reason as i32,
        detail: detail.to_owned(),
    };
    match outcome {
        partition::Outcome::Done => SettleOutcome::default(),
        partition::Outcome::Gone => {
            not_done(Reason::MessageGone, "the message is settled, expired or purged already")
        }
        partition::Outcome::Stale => {
            not_done(Reason::ReceiptStale, "the lease ended: the message may be with another consumer")
        }
        partition::Outcome::Invalid => {
            not_done(Reason::ReceiptForged, "the partition never made this receipt")
        }
        partition::Outcome::LeaseTooLong => {
            not_done(Reason::LeaseTooLong, "a lease lasts at most 12 h from its receive: it stays as it was")
        }
        partition::Outcome::NoDeadLetterQueue => not_done(
            Reason::NoDeadLetterQueue,
            "the queue has no dead-letter queue: set dead_letter_queue, or release the message",
        ),
    }
}

pub fn failed(failure: &Failure) -> SettleOutcome {
    SettleOutcome {
        outcome: failure.outcome as i32,
        reason: failure.reason as i32,
        detail: failure.detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_that_an_earlier_try_may_have_used_says_nothing() {
        use partition::Outcome::{Done, Gone, Invalid, Stale};
        let of = |outcome, earlier_unknown| {
            let told = settled_after(outcome, earlier_unknown);
            (told.outcome(), told.reason())
        };
        for (outcome, reason) in [(Gone, Reason::MessageGone), (Stale, Reason::ReceiptStale)] {
            assert_eq!(of(outcome, false), (Outcome::NotDone, reason));
            assert_eq!(of(outcome, true), (Outcome::Unknown, reason));
        }
        assert_eq!(of(Invalid, true), (Outcome::NotDone, Reason::ReceiptForged));
        assert_eq!(of(Done, true), (Outcome::Done, Reason::None));
    }
}
