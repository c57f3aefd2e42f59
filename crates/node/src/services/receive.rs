//! Receiving: from one shard after another until one has something, or whichever is ready first.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use leasehold_catalogue::PartitionId;
use leasehold_proto::peer;
use leasehold_proto::v1::{Outcome, Reason, ReceiveRequest, ReceiveResponse};
use tokio::time::{Instant, sleep, timeout_at};

use super::{lookup, validate};
use crate::answers::millis;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{RECEIVE_MESSAGES_MAX, RECEIVE_WAIT_MS_MAX};
use crate::queue_info::QueueInfo;

/// Pause before a shard without a leader is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Grants leases, waiting for the first message as long as the request says.
///
/// # Errors
/// When the request is wrong, or no shard could be asked.
pub async fn receive(core: &Core, request: &ReceiveRequest) -> Result<ReceiveResponse, Failure> {
    let began = Instant::now();
    let queue = lookup::queue(core, &request.queue).await?;
    let received = receive_of(core, &queue, request, began).await;
    if received.as_ref().is_err_and(|failure| failure.reason == Reason::UnknownQueue)
        && let Some(queue) = lookup::successor(core, &queue).await?
    {
        return receive_of(core, &queue, request, began).await;
    }
    received
}

async fn receive_of(
    core: &Core,
    queue: &QueueInfo,
    request: &ReceiveRequest,
    began: Instant,
) -> Result<ReceiveResponse, Failure> {
    let wanted = wanted(queue, request)?;
    let mut shards = queue.shards();
    match (shards.next(), shards.len()) {
        (None, _) => Ok(ReceiveResponse::default()),
        (Some(shard), 0) => receive_from(core, shard, wanted, began).await,
        (Some(_), _) => {
            let shards = queue.shards().collect::<Vec<_>>();
            let first = lookup::turn(request.request.as_ref());
            receive_from_any(core, &shards, first, wanted, began).await
        }
    }
}

/// Asks one shard, whoever leads it meanwhile. The time since `began` and what the leader adds is what the request has waited for
/// certain; what it was on its way between nodes is not known here.
async fn receive_from(
    core: &Core,
    shard: PartitionId,
    wanted: peer::Receive,
    began: Instant,
) -> Result<ReceiveResponse, Failure> {
    let end = Instant::now() + Duration::from_millis(wanted.wait_ms);
    let mut was_unknown = false;
    loop {
        let before_ms = millis(began.elapsed());
        let asked = peer::Receive { wait_ms: whole_millis_until(end), ..wanted.clone() };
        match core.router.ask(shard, asked).await {
            Ok(mut granted) => {
                granted.waited_ms += before_ms;
                return Ok(granted);
            }
            Err(failure) if may_go_on(core, shard, &wanted, &failure) && Instant::now() < end => {
                was_unknown |= failure.outcome == Outcome::Unknown;
                tracing::debug!(shard = shard.0, %failure, "a receive waits for a leader");
                sleep(ASK_AGAIN).await;
            }
            Err(failure) => return Err(failure.after(was_unknown)),
        }
    }
}

/// Whether a new leader may come, who is to be asked as if nothing had been.
fn may_go_on(core: &Core, shard: PartitionId, wanted: &peer::Receive, failure: &Failure) -> bool {
    // Without a name it would be granted twice.
    let may_repeat = failure.outcome == Outcome::NotDone || wanted.request.is_some();
    failure.reason == Reason::NoLeader && may_repeat && !core.router.is_hopeless(shard)
}

/// Not less than what is left: it would be asked again and again until then.
fn whole_millis_until(end: Instant) -> u64 {
    end.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000) as u64
}

fn wanted(queue: &QueueInfo, request: &ReceiveRequest) -> Result<peer::Receive, Failure> {
    validate::consumer(&request.consumer)?;
    validate::attempt(request.attempt_id.as_deref())?;
    if request.messages_max > RECEIVE_MESSAGES_MAX {
        let asked = request.messages_max;
        return Err(validate::invalid(format!(
            "messages_max is {asked}: it can be 1 to {RECEIVE_MESSAGES_MAX}"
        )));
    }
    if request.wait_ms > RECEIVE_WAIT_MS_MAX {
        let asked = request.wait_ms;
        return Err(validate::invalid(format!("wait_ms is {asked}: it can be 0 to {RECEIVE_WAIT_MS_MAX}")));
    }
    Ok(peer::Receive {
        queue: queue.id().0,
        messages_max: request.messages_max.max(1),
        bytes_max: request.bytes_max,
        lease_ms: request.lease_ms.map(validate::lease).transpose()?,
        attempt: request.attempt_id.clone().map(Into::into),
        consumer: request.consumer.clone().into(),
        request: request.request.map(|request| peer::RequestName {
            session: request.session,
            sequence: request.sequence,
            completed_below: request.completed_below,
        }),
        wait_ms: request.wait_ms,
    })
}

async fn receive_from_any(
    core: &Core,
    shards: &[PartitionId],
    first: usize,
    wanted: peer::Receive,
    began: Instant,
) -> Result<ReceiveResponse, Failure> {
    let end = Instant::now() + Duration::from_millis(wanted.wait_ms);
    let first = first % shards.len();
    let mut order = (0..shards.len()).map(|at| shards[(first + at) % shards.len()]).collect::<Vec<_>>();
    if wanted.wait_ms > 0 {
        // The others say by themselves whether they have something.
        order.truncate(1);
    }
    loop {
        let mut failed = None;
        for shard in &order {
            let asked = peer::Receive { wait_ms: 0, ..wanted.clone() };
            match receive_from(core, *shard, asked, began).await {
                Ok(granted) if granted.deliveries.is_empty() => {}
                Ok(granted) => return Ok(granted),
                Err(failure) => failed = Some(failure),
            }
        }
        let Some(ready) = wait_for_any(core, shards, &wanted, end).await else {
            return failed.map_or_else(|| Ok(ReceiveResponse::default()), Err);
        };
        order = vec![ready];
    }
}

/// The first shard that has something before `end`.
async fn wait_for_any(
    core: &Core,
    shards: &[PartitionId],
    wanted: &peer::Receive,
    end: Instant,
) -> Option<PartitionId> {
    // A wait of nothing ends at once, as if there were something.
    if Instant::now() >= end {
        return None;
    }
    let mut waits =
        shards.iter().map(|shard| wait_for(core, *shard, wanted, end)).collect::<FuturesUnordered<_>>();
    timeout_at(end, waits.next()).await.ok().flatten()
}

/// Waits until the shard has something, whoever leads it meanwhile; at `end` it may return without.
async fn wait_for(core: &Core, shard: PartitionId, wanted: &peer::Receive, end: Instant) -> PartitionId {
    let (queue, messages_max) = (wanted.queue, wanted.messages_max);
    loop {
        let wait_ms = whole_millis_until(end);
        match core.router.ask(shard, peer::Ready { queue, wait_ms, messages_max }).await {
            Ok(()) => return shard,
            Err(failure) => {
                tracing::debug!(shard = shard.0, %failure, "a receive waits for a leader");
                sleep(ASK_AGAIN).await;
            }
        }
    }
}
