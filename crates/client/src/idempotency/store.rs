//! What a store of results does, whatever keeps it.

use std::error::Error;
use std::future::Future;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use crate::message::IdText;
use crate::{Job, Message};

/// Who asks for an operation.
///
/// ```
/// use leasehold_client::Job;
/// use leasehold_client::idempotency::Operation;
///
/// fn of_order(job: &Job) -> Operation {
///     Operation::new(format!("order {}", job.body.escape_ascii()), job)
/// }
/// # let _ = of_order;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Names the operation.
    pub key: String,
    /// Names the message: the same at each of its deliveries. Fencing tokens are compared between deliveries of one message
    /// only, since those of different partitions say nothing about each other.
    pub message: String,
    /// Of the delivery.
    pub fencing_token: u64,
}

impl Operation {
    /// The operation of that name, for the message of a job.
    #[must_use]
    pub fn new(key: String, job: &Job) -> Self {
        Self { key, message: name_of(job.queue(), job), fencing_token: job.fencing_token }
    }
}

/// The name of a message, the same at each of its deliveries. Each new cluster counts its messages from 1: the time of sending
/// tells them from those of an older one that are on record. A restored cluster keeps it, so records hold there.
pub(super) fn name_of(queue: &str, message: &Message) -> String {
    let sent_ms = message.sent_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{queue}/{}@{sent_ms}", IdText(message.id))
}

/// How long things are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Records of results.
    pub keep_for: Duration,
    /// Claims, against other messages that ask for the same operation.
    pub claim_for: Duration,
}

/// What a store says to who wants to begin.
#[derive(Debug)]
pub enum Begun<C> {
    /// Run the effect, and finish or abandon the claim.
    Claimed(C),
    /// It happened before, with this result.
    Done(Bytes),
    /// A later delivery of the same message has it.
    Superseded,
    /// Another message has it, for at most so long where the store knows that.
    Busy(Option<Duration>),
}

/// What a store says to who has run the effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// The result is recorded.
    Recorded,
    /// Another result was recorded before, and stays.
    Earlier(Bytes),
    /// The claim was taken over.
    Superseded,
}

/// Remembers which operations are done.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use leasehold_client::idempotency::{Begun, Finished, MemoryStore, Operation, Store, Times};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// let operation = Operation { key: "order 7".into(), message: "orders/1-9".into(), fencing_token: 3 };
/// let times = Times { keep_for: Duration::from_secs(60), claim_for: Duration::from_secs(5) };
/// let Begun::Claimed(claim) = store.begin(&operation, times).await? else { panic!("nobody has it") };
/// assert_eq!(store.finish(claim, Bytes::from("charged")).await?, Finished::Recorded);
/// assert!(matches!(store.begin(&operation, times).await?, Begun::Done(result) if result == "charged"));
/// # Ok(())
/// # }
/// ```
pub trait Store: Send + Sync + 'static {
    /// Why the store could not say.
    type Error: Error + Send + Sync + 'static;
    /// The right to run an effect. Dropped, it is as if the process had crashed.
    type Claim: Send;

    /// Claims an operation, unless it is done or somebody else's.
    fn begin(
        &self,
        operation: &Operation,
        times: Times,
    ) -> impl Future<Output = Result<Begun<Self::Claim>, Self::Error>> + Send;

    /// Records the result, if the claim still holds.
    fn finish(
        &self,
        claim: Self::Claim,
        result: Bytes,
    ) -> impl Future<Output = Result<Finished, Self::Error>> + Send;

    /// The effect failed: others may try at once.
    fn abandon(&self, claim: Self::Claim) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1;
    use tokio::time::Instant;

    use super::*;
    use crate::MessageId;
    use crate::idempotency::{Idempotent, MemoryStore};

    fn delivery(sent_wall_ms: u64, fencing_token: u64) -> Operation {
        let id = Some(MessageId { partition: 2, sequence: 17 });
        let wire = v1::Delivery { id, sent_wall_ms, fencing_token, ..v1::Delivery::default() };
        let message = name_of("q", &Message::from_wire(wire, Instant::now()));
        Operation { key: message.clone(), message, fencing_token }
    }

    #[tokio::test]
    async fn messages_of_two_clusters_with_one_id_have_two_effects_and_deliveries_of_one_have_one() {
        let once = Idempotent::new(MemoryStore::default());
        let mut results = Vec::new();
        let deliveries = [delivery(1_000, 3), delivery(2_000, 3), delivery(1_000, 4)];
        for (at, operation) in deliveries.iter().enumerate() {
            let effect = Bytes::from(at.to_string());
            let applied = once.apply(operation, |_| Box::pin(async { Ok(effect) })).await;
            results.push(applied.unwrap());
        }
        assert_eq!(results, ["0", "1", "0"]);
        assert_eq!(delivery(1_000, 3).key, "q/2-17@1000");
    }
}
