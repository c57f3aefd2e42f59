//! What the leader of a partition answers to the questions that change nothing but leases: receives, peeks, descriptions, lives.
//!
//! The state machine knows where contents lie, the log has them: here the two come together.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use leasehold_partition::{
    Content, Delivery as Grant, MessageView, QueueId, RedriveState, RequestId, ShardView, State,
};
use leasehold_proto::peer::{self, query::Kind};
use leasehold_proto::v1::{
    self, Attribute, Delivery, MessageId, MessageState, Origin, PeekResponse, Peeked, QueueCounters, Reason,
    ReceiveResponse, RedriveProgress, ShardDescription, WhyResponse,
};
use prost::Message;
use tokio::time::{Instant, timeout};

use crate::cluster::ClusterView;
use crate::contents::Contents;
use crate::endings;
use crate::failure::Failure;
use crate::headroom;
use crate::history::HistoryStore;
use crate::limits::{RECEIVE_BYTES_MAX, RECEIVE_WAIT_MS_MAX};
use crate::receipt_token::{self, RECEIPT_LEN, ReceiptToken};
use crate::redrive_id::RedriveId;
use crate::replica::{QueueSource as _, Receive, ReceiveOptions, Replica, Request, wall_ms};
use crate::storms;

/// Attributes as they lie in the log, opaque to the partition.
#[derive(Clone, PartialEq, Message)]
pub struct StoredAttributes {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<Attribute>,
}

/// Answers questions about the replicas of this node.
#[derive(Clone)]
pub struct LocalAnswers {
    pub contents: Contents,
    pub view: Arc<ClusterView>,
    pub history: Option<Arc<HistoryStore>>,
}

impl LocalAnswers {
    /// Answers a question of another node, encoded.
    ///
    /// # Errors
    /// When the replica does not lead and has to, or the question is not understood.
    pub async fn answer(&self, replica: &Replica, query: peer::Query) -> Result<Bytes, Failure> {
        Ok(match query.kind {
            Some(Kind::Receive(receive)) => encoded(&self.receive(replica, &receive).await?),
            Some(Kind::Ready(ready)) => encoded(&self.ready(replica, ready).await?),
            Some(Kind::Peek(peek)) => encoded(&self.peek(replica, peek).await?),
            Some(Kind::Describe(describe)) => encoded(&self.describe(replica, describe)?),
            Some(Kind::Why(why)) => encoded(&self.why(replica, why).await?),
            Some(Kind::HandOver(to)) => encoded(&self.hand_over(replica, to).await?),
            Some(Kind::ReadContent(wanted)) => encoded(&self.read_content(replica, wanted).await?),
            None => {
                return Err(Failure::not_done(Reason::InvalidArgument, "a question this node does not know"));
            }
        })
    }

    pub async fn receive(
        &self,
        replica: &Replica,
        receive: &peer::Receive,
    ) -> Result<ReceiveResponse, Failure> {
        let wait_ms = receive.wait_ms.min(RECEIVE_WAIT_MS_MAX);
        let options = ReceiveOptions {
            messages_max: receive.messages_max.max(1),
            bytes_max: match receive.bytes_max {
                0 => RECEIVE_BYTES_MAX,
                // Neither a lane nor a client takes a longer answer.
                asked => asked.min(RECEIVE_BYTES_MAX),
            },
            lease_ms: receive.lease_ms,
            attempt: receive.attempt.as_ref().map(|attempt| attempt.to_vec()),
            consumer: receive.consumer.to_vec(),
            request: receive.request.map(|name| RequestId {
                session: name.session,
                sequence: name.sequence,
                completed_below: name.completed_below,
            }),
        };
        let queue = QueueId(receive.queue);
        let asked = Instant::now();
        let wait_until = (wait_ms > 0).then(|| asked + Duration::from_millis(wait_ms));
        let mut granted = replica
            .ask(|reply| Request::Receive(Receive { queue, options, wait_until, is_listed: false, reply }))
            .await?;
        // Before anything else is done: the leases last from now at the latest.
        let waited_ms = millis(asked.elapsed());
        let mut deliveries = Vec::with_capacity(granted.deliveries.len());
        // One piece of memory for all of them.
        let mut receipts = BytesMut::with_capacity(granted.deliveries.len() * RECEIPT_LEN);
        let mut unread = None;
        for grant in &granted.deliveries {
            // Whoever asks may go meanwhile, and what is granted to nobody goes back.
            match self.delivery(replica, queue, grant, &mut receipts).await {
                Ok(delivery) => deliveries.push(delivery),
                // It comes again when its lease ends. The others do not pay for it.
                Err(failure) => unread = Some(failure),
            }
        }
        drop(granted.claim());
        match unread {
            // It was leased.
            Some(failure) if deliveries.is_empty() => Err(failure.after(true)),
            _ => Ok(ReceiveResponse { deliveries, waited_ms }),
        }
    }

    pub async fn ready(&self, replica: &Replica, ready: peer::Ready) -> Result<(), Failure> {
        let wait = Duration::from_millis(ready.wait_ms.min(RECEIVE_WAIT_MS_MAX));
        let (queue, messages_max) = (QueueId(ready.queue), ready.messages_max.max(1));
        let asked = replica.ask(|reply| Request::Ready { queue, messages_max, reply });
        timeout(wait, asked).await.unwrap_or(Ok(()))
    }

    pub async fn peek(&self, replica: &Replica, peek: peer::Peek) -> Result<PeekResponse, Failure> {
        self.check_leads(replica)?;
        let limit = peek.messages_max as usize;
        let found = replica.machine().read().peek(QueueId(peek.queue), 0, limit);
        let mut messages = Vec::with_capacity(found.messages.len());
        let mut bytes = 0;
        for view in found.messages {
            bytes += u64::from(view.content.len);
            if bytes > RECEIVE_BYTES_MAX && !messages.is_empty() {
                break;
            }
            // A message that is settled between the look and the read is simply no longer there.
            if let Ok(bytes) = self.contents.read(replica.id(), view.content).await {
                messages.push(peeked(replica, &view, &bytes)?);
            }
        }
        Ok(PeekResponse { messages })
    }

    pub fn describe(&self, replica: &Replica, describe: peer::Describe) -> Result<ShardDescription, Failure> {
        self.check_leads(replica)?;
        let (shard, headroom) = {
            let (state, queue) = (replica.machine().read(), QueueId(describe.queue));
            (state.shard(queue), state.headroom(queue))
        };
        let leader = self.view.node_name(self.view.here()).unwrap_or_default();
        let counters = shard.as_ref().map(counters).unwrap_or_default();
        let redrive = shard.as_ref().and_then(|shard| shard.redrive).map(|redrive| RedriveProgress {
            running: redrive.state == RedriveState::Running,
            moved: redrive.moved,
            total: redrive.total,
            id: redrive.id,
            state: match redrive.state {
                RedriveState::Running => v1::RedriveState::RedriveUnderWay,
                RedriveState::Complete => v1::RedriveState::RedriveComplete,
                RedriveState::Cancelled => v1::RedriveState::RedriveCancelled,
            } as i32,
            target: redrive.target.and_then(|target| self.view.queue_name(target.0)).unwrap_or_default(),
            rate_per_s: redrive.rate_per_s,
            started_wall_ms: RedriveId(redrive.id).started_wall_ms(),
        });
        let floor_ms = shard.as_ref().map_or(0, |shard| u64::from(shard.settings.lease_ms));
        let ceiling_ms = self.view.adaptive_lease_ms_max(QueueId(describe.queue));
        let lease_ms = headroom::lease_ms(floor_ms, ceiling_ms, &headroom::sum(&headroom));
        let headroom = headroom
            .iter()
            .map(|(version, measure)| headroom::shown(&String::from_utf8_lossy(version), measure, lease_ms))
            .collect();
        Ok(ShardDescription {
            partition: replica.id().0,
            leader,
            counters: Some(counters),
            redrive,
            headroom,
            retry_budget: shard.as_ref().and_then(storms::shown),
            endings: shard.as_ref().map(endings::shown),
        })
    }

    pub async fn why(&self, replica: &Replica, why: peer::Why) -> Result<WhyResponse, Failure> {
        self.check_leads(replica)?;
        let queue = QueueId(why.queue);
        let (view, was_sent) = {
            let state = replica.machine().read();
            (state.find(why.sequence).filter(|view| view.queue == queue), state.has_given_out(why.sequence))
        };
        let events = match &self.history {
            Some(history) => history.life_of(replica.id(), queue, why.sequence).await?,
            None => Vec::new(),
        };
        let state = match view.map(|view| view.state) {
            Some(State::Ready) => "ready",
            Some(State::Leased) => "leased",
            Some(State::Delayed) => "delayed",
            Some(State::Held) => "held",
            Some(State::Dead) => "dead",
            None if was_sent => "gone",
            None => "never-sent",
        };
        Ok(WhyResponse { events, state: state.to_owned() })
    }

    /// For a node whose own disk does not give it back; whoever leads.
    async fn read_content(
        &self,
        replica: &Replica,
        wanted: peer::ReadContent,
    ) -> Result<peer::Content, Failure> {
        // Before it is applied, another entry may stand there than the one of the asker.
        if replica.machine().read().applied_index() < wanted.log_index {
            return Err(Failure::try_again(Reason::Busy, "the replica has not applied the entry yet"));
        }
        self.contents.read_here(replica.id(), wanted).await
    }

    pub async fn hand_over(&self, replica: &Replica, to: peer::HandOver) -> Result<(), Failure> {
        self.check_leads(replica)?;
        let (group, partition) = (replica.group(), replica.id());
        if to.replica == group.replica() {
            return Ok(());
        }
        // Raft stops proposing for whoever is named: the partition would stand still until somebody takes over who can.
        if !group.members().voters.contains(&to.replica) {
            let detail = format!("the replica of partition {partition} there has no vote yet: wait");
            return Err(Failure::not_done(Reason::InvalidArgument, detail));
        }
        if !group.may_hand_over_to(to.replica) {
            let detail = format!("the replica of partition {partition} there has not caught up: wait");
            return Err(Failure::try_again(Reason::Busy, detail));
        }
        let handed = group.transfer(to.replica).await;
        handed.map_err(|error| Failure::try_again(Reason::NoLeader, error))
    }

    /// Reads of a follower may be old: only the leader answers.
    fn check_leads(&self, replica: &Replica) -> Result<(), Failure> {
        match replica.leader_node(self.view.here()) {
            Some(leader) if leader == self.view.here() => Ok(()),
            leader => Err(Failure::not_leader(leader)),
        }
    }

    async fn delivery(
        &self,
        replica: &Replica,
        queue: QueueId,
        grant: &Grant,
        receipts: &mut BytesMut,
    ) -> Result<Delivery, Failure> {
        let key = self.view.receipt_key().ok_or_else(|| Failure::not_leader(None))?;
        let bytes = self.contents.read(replica.id(), grant.content).await?;
        let parts = ContentParts::read(&bytes)?;
        let token = ReceiptToken {
            partition: replica.id().0,
            queue: queue.0,
            slot: grant.receipt.slot,
            sequence: grant.receipt.sequence,
            grant: grant.receipt.grant,
        };
        receipts.extend_from_slice(&receipt_token::seal(&key, &token));
        Ok(Delivery {
            receipt: receipts.split().freeze(),
            id: Some(MessageId { partition: replica.id().0, sequence: grant.receipt.sequence }),
            body: parts.body,
            attributes: parts.attributes,
            receive_count: grant.receive_count,
            sent_wall_ms: grant.sent_wall_ms,
            first_received_wall_ms: grant.first_received_wall_ms,
            lease_ms: u64::from(grant.lease_ms),
            fencing_token: grant.receipt.grant,
            group: parts.group,
            deduplication_id: parts.deduplication_id,
            origin: parts.origin.map(|origin| self.origin(&origin)),
        })
    }

    fn origin(&self, origin: &leasehold_partition::Origin) -> Origin {
        Origin {
            queue: self.view.queue_name(origin.queue.0).unwrap_or_default(),
            id: Some(MessageId { partition: origin.partition, sequence: origin.sequence }),
            receive_count: origin.receive_count,
        }
    }
}

/// Whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn encoded(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// A content in the words of the protocol.
struct ContentParts {
    group: Option<String>,
    deduplication_id: Option<String>,
    attributes: Vec<Attribute>,
    body: Bytes,
    origin: Option<leasehold_partition::Origin>,
}

impl ContentParts {
    fn read(bytes: &Bytes) -> Result<Self, Failure> {
        let malformed = |detail: String| Failure::unknown(Reason::NodeFailed, detail);
        let content = Content::decode(bytes).map_err(|error| malformed(error.to_string()))?;
        let stored =
            StoredAttributes::decode(content.attributes).map_err(|error| malformed(error.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self {
            group: content.group.map(text),
            deduplication_id: content.dedup_id.map(text),
            attributes: stored.attributes,
            body: bytes.slice_ref(content.body),
            origin: content.origin,
        })
    }
}

fn peeked(replica: &Replica, view: &MessageView, bytes: &Bytes) -> Result<Peeked, Failure> {
    let parts = ContentParts::read(bytes)?;
    let state = match view.state {
        State::Ready => MessageState::Ready,
        State::Leased => MessageState::Leased,
        State::Delayed => MessageState::Delayed,
        State::Held => MessageState::Held,
        State::Dead => MessageState::Dead,
    };
    Ok(Peeked {
        id: Some(MessageId { partition: replica.id().0, sequence: view.key.sequence }),
        state: state as i32,
        body: parts.body,
        attributes: parts.attributes,
        receive_count: view.receive_count,
        sent_wall_ms: view.sent_wall_ms,
        group: parts.group,
    })
}

fn counters(shard: &ShardView) -> QueueCounters {
    let counters = &shard.counters;
    QueueCounters {
        ready: counters.ready,
        leased: counters.leased,
        delayed: counters.delayed,
        dead: counters.dead,
        bytes: counters.bytes,
        oldest_age_ms: shard.oldest_sent_wall_ms.map_or(0, |sent| wall_ms().saturating_sub(sent)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;

    use leasehold_catalogue::{NodeId, PartitionId};
    use leasehold_partition::BatchBuilder;
    use leasehold_raft_log::{Log, Options, RealFileSystem};

    use super::*;
    use crate::raft::Machine as _;
    use crate::replica::{PartitionMachine, ReplicaParts, group_of};
    use crate::testing::{HERE, group, silent_lanes};

    const PARTITION: PartitionId = PartitionId(0);

    /// A replica that follows nobody yet, on a node with a log without contents.
    async fn replica_and_answers(dir: &Path) -> (Replica, LocalAnswers) {
        let (view, lanes) = (Arc::new(ClusterView::new(NodeId(HERE), 1)), silent_lanes());
        let machine = Arc::new(PartitionMachine::new(PARTITION, None));
        let group = group(&dir.join("replica"), group_of(PARTITION), machine.clone(), lanes.clone()).await;
        let replica = Replica::start(ReplicaParts {
            id: PARTITION,
            group,
            machine,
            queues: view.clone(),
            pending_bytes: Arc::new(AtomicUsize::new(0)),
            pending_bytes_max: 0,
        });
        let (log, _) =
            Log::open(Arc::new(RealFileSystem::default()), &dir.join("contents"), Options::default())
                .unwrap();
        let contents = Contents { log, view: view.clone(), lanes };
        (replica, LocalAnswers { contents, view, history: None })
    }

    /// The entry that will stand there need not be the one that the asker has there.
    #[tokio::test]
    async fn a_content_is_not_read_before_its_entry_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let (replica, answers) = replica_and_answers(dir.path()).await;
        let reason = async |log_index| {
            let wanted = peer::ReadContent { log_index, offset: 0, len: 1 };
            let query = peer::Query { kind: Some(Kind::ReadContent(wanted)) };
            answers.answer(&replica, query).await.unwrap_err().reason
        };
        assert_eq!(reason(1).await, Reason::Busy);
        let entry = Bytes::from(BatchBuilder::new(1, 1).finish());
        replica.machine().apply(1, &entry).unwrap();
        assert_eq!(reason(1).await, Reason::NodeFailed, "it was not looked for");
        assert_eq!(reason(2).await, Reason::Busy);
    }
}
