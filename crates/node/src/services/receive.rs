//! Receiving: from one shard after another until one has something, or whichever is ready first.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use leasehold_catalogue::PartitionId;
use leasehold_proto::peer;
use leasehold_proto::v1::{Outcome, Reason, ReceiveRequest, ReceiveResponse, RequestId};
use tokio::time::{Instant, sleep, timeout_at};

use super::{lookup, validate};
use crate::answers::millis;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::{RECEIVE_MESSAGES_MAX, RECEIVE_WAIT_MS_MAX};
use crate::queue_info::QueueInfo;

/// Pause before a shard without a leader is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the leader of one of several shards is looked for: a request may be sent on, but no shard waits for the election of another.
const LOOK_PATIENCE: Duration = Duration::from_millis(100);

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
            let first = first_shard(queue, wanted.attempt.as_deref(), request.request.as_ref());
            receive_from_any(core, &shards, first, wanted, began).await
        }
    }
}

/// The shard to look at first, modulo their number. An attempt that is made again meets the one that may have granted it something,
/// whatever its request is named now.
fn first_shard(queue: &QueueInfo, attempt: Option<&[u8]>, request: Option<&RequestId>) -> usize {
    let of_attempt = attempt.and_then(|attempt| queue.shard_of_group(attempt));
    let at = of_attempt.and_then(|first| queue.shards().position(|shard| shard == first));
    at.unwrap_or_else(|| lookup::turn(request))
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
    let mut has_answered = false;
    loop {
        let mut failed = None;
        for shard in &order {
            match look_at(core, *shard, &wanted, began).await {
                Ok(granted) if granted.deliveries.is_empty() => {
                    has_answered = true;
                    if wanted.wait_ms > 0 && wanted.attempt.is_none() {
                        // The others say by themselves whether they have something; but not what they have granted an attempt before.
                        break;
                    }
                }
                Ok(granted) => return Ok(granted),
                Err(failure) => failed = Some(graver(failed, failure)),
            }
        }
        let Some(ready) = wait_for_any(core, shards, &wanted, end).await else {
            // A shard without a leader is no reason where others have answered that they have nothing.
            let failed = failed.filter(|failure| !(has_answered && is_without_leader(failure)));
            return failed.map_or_else(|| Ok(ReceiveResponse::default()), Err);
        };
        order = vec![ready];
    }
}

/// Asks a shard for what it has at this moment.
async fn look_at(
    core: &Core,
    shard: PartitionId,
    wanted: &peer::Receive,
    began: Instant,
) -> Result<ReceiveResponse, Failure> {
    let before_ms = millis(began.elapsed());
    let asked = peer::Receive { wait_ms: 0, ..wanted.clone() };
    let mut granted = core.router.ask_within(shard, asked, LOOK_PATIENCE).await?;
    granted.waited_ms += before_ms;
    Ok(granted)
}

/// Whether nobody leads the shard, and so nothing happened.
fn is_without_leader(failure: &Failure) -> bool {
    failure.reason == Reason::NoLeader && failure.outcome == Outcome::NotDone
}

/// The failure that says more: the later one, unless it only says that nobody leads.
fn graver(before: Option<Failure>, failure: Failure) -> Failure {
    match before {
        Some(before) if is_without_leader(&failure) => before,
        _ => failure,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold_catalogue::Queue;

    use super::*;

    #[test]
    fn an_attempt_meets_the_shard_that_it_met_before() {
        let queue = QueueInfo::of(&Arc::new(Queue { shards: vec![4, 7, 9], ..Queue::default() }));
        let of_attempt = |attempt: &str, request: Option<&RequestId>| {
            first_shard(&queue, Some(attempt.as_bytes()), request)
        };
        let names = (0..32).map(|number| format!("attempt-{number}")).collect::<Vec<_>>();
        let met = names.iter().map(|name| of_attempt(name, None)).collect::<Vec<_>>();
        for first in 0..3 {
            assert!(met.contains(&first), "{met:?}");
        }
        for (name, first) in names.iter().zip(met) {
            let request = RequestId { session: 1, sequence: first as u64, completed_below: 0 };
            assert_eq!((of_attempt(name, None), of_attempt(name, Some(&request))), (first, first));
        }
        // Others take turns.
        let turns = [(); 2].map(|()| first_shard(&queue, None, None));
        assert_ne!(turns[0], turns[1]);
    }

    #[test]
    fn that_nobody_leads_hides_no_other_failure() {
        let no_leader = || Failure::not_leader(None);
        let gone = || Failure::not_done(Reason::UnknownQueue, "it is gone");
        let reason = |before: Option<Failure>, failure| graver(before, failure).reason;
        assert_eq!(reason(None, no_leader()), Reason::NoLeader);
        assert_eq!(reason(Some(gone()), no_leader()), Reason::UnknownQueue);
        assert_eq!(reason(Some(no_leader()), gone()), Reason::UnknownQueue);
        let lost = || Failure::unknown(Reason::NoLeader, "it may have been leased");
        assert!(is_without_leader(&no_leader()) && !is_without_leader(&lost()));
        assert_eq!(graver(Some(lost()), no_leader()).outcome, Outcome::Unknown);
    }
}
