//! What a leader says when it cannot do what it was asked.

use leasehold_partition::{Outcome, Partition, Receipt, Reply};
use leasehold_proto::v1::Reason;

use crate::failure::Failure;
use crate::limits::INHERITED_GRACE_MS;
use crate::raft::ProposeError;

pub fn propose_failure(error: &ProposeError) -> Failure {
    match error {
        ProposeError::NotAppended => Failure::not_leader(None),
        ProposeError::Unknown => Failure::unknown(Reason::NoLeader, error.to_string()),
        ProposeError::Stopped(_) => Failure::unknown(Reason::NodeFailed, error.to_string()),
    }
}

pub fn invalid(error: &leasehold_partition::DecodeError) -> Failure {
    Failure::not_done(Reason::InvalidArgument, error.to_string())
}

pub fn behind() -> Failure {
    Failure::try_again(Reason::NoLeader, "the leader's copy of the catalogue is behind")
}

pub fn stopping() -> Failure {
    Failure::try_again(Reason::Stopping, "the node is stopping")
}

pub fn receive_refused(reply: &Reply) -> Failure {
    match reply {
        Reply::OverLimit => {
            Failure::try_again(Reason::OverLimit, "too many messages of the queue are in flight")
        }
        Reply::Refused { reason } => super::refusal(*reason),
        other => Failure::unknown(Reason::None, format!("an unexpected reply: {other:?}")),
    }
}

/// The answer to extensions to these durations, so long after they began to count. A new leader does not know how late it left: whoever
/// hears of an extension that is older than what it allows for would believe in it for too long.
///
/// # Errors
/// When the answer is too late to promise anything.
pub fn promised(reply: Reply, leases_ms: &[u32], lag_ms: u64) -> Result<Reply, Failure> {
    let was_done = matches!(&reply, Reply::Settled { outcomes } if outcomes.contains(&Outcome::Done));
    // 0 gives a message back, which promises nothing.
    let promises = was_done && leases_ms.iter().any(|lease_ms| *lease_ms > 0);
    if promises && lag_ms > INHERITED_GRACE_MS {
        return Err(too_late(lag_ms));
    }
    Ok(reply)
}

/// The ends of the leases that the first try of a repeated extension has given, which count from then, and how long ago that was.
///
/// # Errors
/// When it is too late to promise one of them in full.
pub fn promised_before(
    state: &Partition,
    items: &[(Receipt, u32)],
    reply: &Reply,
    now_ms: u64,
) -> Result<Vec<(u64, u64)>, Failure> {
    let Reply::Settled { outcomes } = reply else { return Ok(Vec::new()) };
    let done = items.iter().zip(outcomes).filter(|(_, outcome)| **outcome == Outcome::Done);
    // 0 gives a message back, which promises nothing.
    let leases = done.map(|(item, _)| item).filter(|(_, lease_ms)| *lease_ms > 0);
    leases
        .map(|(receipt, lease_ms)| {
            let Some(end_ms) = state.lease_end_ms(receipt) else {
                let detail = "a lease that was extended at first has ended since: extend again";
                return Err(Failure::unknown(Reason::Changed, detail));
            };
            let lag_ms = now_ms.saturating_sub(end_ms.saturating_sub(u64::from(*lease_ms)));
            if lag_ms > INHERITED_GRACE_MS { Err(too_late(lag_ms)) } else { Ok((end_ms, lag_ms)) }
        })
        .collect()
}

/// No reason to ask the same again: it would be older still.
fn too_late(lag_ms: u64) -> Failure {
    let detail =
        format!("the leases were extended {lag_ms} ms ago, and end earlier than asked for: extend again");
    Failure::unknown(Reason::Changed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_is_promised_within_what_a_new_leader_allows_for() {
        let is_promised = |outcome, leases_ms: &[u32], lag_ms| {
            let reply = Reply::Settled { outcomes: vec![outcome] };
            match promised(reply.clone(), leases_ms, lag_ms) {
                Ok(answer) => answer == reply,
                Err(failure) => {
                    let told = (failure.outcome, failure.reason);
                    assert_eq!(told, (leasehold_proto::v1::Outcome::Unknown, Reason::Changed));
                    false
                }
            }
        };
        assert!(is_promised(Outcome::Done, &[30_000], INHERITED_GRACE_MS));
        assert!(!is_promised(Outcome::Done, &[30_000], INHERITED_GRACE_MS + 1));
        assert!(!is_promised(Outcome::Done, &[0, 30_000], 4_000));
        assert!(is_promised(Outcome::Done, &[0], 4_000), "it was given back");
        assert!(is_promised(Outcome::Stale, &[30_000], 4_000), "it was not extended");
    }
}
