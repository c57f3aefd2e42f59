//! Whose turn it is when something comes, on a leader that proposes nothing.

use std::path::Path;

use bytes::Bytes;
use leasehold_catalogue::PartitionId;
use leasehold_partition::{
    Content, Delivery, Isolation, NewMessage, Outcome, Receipt, RequestId, RetryBudget, Settings,
};
use tokio::sync::{Notify, oneshot};

use super::*;
use crate::raft::Machine as _;
use crate::replica::request::{Granted, ReceiveOptions};
use crate::replica::{PartitionMachine, QueueSource, WantedShard, group_of};
use crate::testing::{group, silent_lanes};

const PARTITION: PartitionId = PartitionId(0);
const QUEUE: QueueId = QueueId(1);
const NOW_MS: u64 = 1_000;
/// Longer than a test takes.
const WAIT: std::time::Duration = std::time::Duration::from_secs(3_600);

/// A catalogue of nothing.
struct NoQueues;

impl QueueSource for NoQueues {
    fn shard_of(&self, _queue: QueueId, _partition: PartitionId) -> Option<WantedShard> {
        None
    }

    fn adaptive_lease_ms_max(&self, _queue: QueueId) -> u64 {
        0
    }

    fn version(&self) -> u32 {
        1
    }

    fn is_deleted(&self, _queue: QueueId) -> bool {
        false
    }
}

/// Leads a partition that has the queue, and nothing in it.
async fn leadership(dir: &Path) -> Leadership {
    let machine = Arc::new(PartitionMachine::new(PARTITION, None));
    let group = group(dir, group_of(PARTITION), machine.clone(), silent_lanes()).await;
    let mut entry = BatchBuilder::new(NOW_MS, NOW_MS);
    entry.push(&Command::Configure { queue: QUEUE, settings: Settings::default(), revision: 1 }).unwrap();
    machine.apply(1, &Bytes::from(entry.finish())).unwrap();
    let shared = Shared {
        id: PARTITION,
        group,
        machine,
        outbox: Notify::new(),
        queues: Arc::new(NoQueues),
        requests: mpsc::unbounded_channel().0.downgrade(),
        pending_bytes: Arc::default(),
    };
    Leadership::from_applied(Arc::new(shared), 1)
}

type Answer = oneshot::Receiver<Result<Granted, Failure>>;

/// A receive of one message.
fn receive(consumer: &str, wait_until: Option<Instant>) -> (Receive, Answer) {
    let (reply, answer) = oneshot::channel();
    let options = ReceiveOptions {
        messages_max: 1,
        bytes_max: 1,
        lease_ms: None,
        attempt: None,
        consumer: consumer.into(),
        request: None,
    };
    (Receive { queue: QUEUE, options, wait_until, is_listed: false, reply }, answer)
}

/// The consumers whose receives are in the open entry.
fn asked(leadership: &Leadership) -> Vec<String> {
    let pending = leadership.batch.iter().flat_map(|batch| &batch.pending);
    let consumer = |pending: &Pending| match pending {
        Pending::Receive(receive) => Some(String::from_utf8_lossy(&receive.options.consumer).into_owned()),
        _ => None,
    };
    pending.filter_map(consumer).collect()
}

#[tokio::test]
async fn who_waits_is_not_overtaken_by_who_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let mut answers = Vec::new();
    let mut come = |leadership: &mut Leadership, consumer, wait_until| {
        let (receive, answer) = receive(consumer, wait_until);
        answers.push(answer);
        leadership.take_receive(receive);
    };
    let later = Some(Instant::now() + WAIT);
    come(&mut leadership, "first", later);
    assert!(asked(&leadership).is_empty(), "there is nothing for it");
    leadership.note_sent(QUEUE, 1);
    come(&mut leadership, "second", later);
    leadership.wake_waiters();
    assert_eq!(asked(&leadership), ["first"]);
    leadership.note_sent(QUEUE, 2);
    come(&mut leadership, "third", later);
    leadership.wake_waiters();
    assert_eq!(asked(&leadership), ["first", "second", "third"]);
    // Nobody waits: it is asked at once.
    leadership.note_sent(QUEUE, 1);
    come(&mut leadership, "fourth", later);
    assert_eq!(asked(&leadership), ["first", "second", "third", "fourth"]);
}

#[tokio::test]
async fn who_does_not_wait_is_asked_at_once_whoever_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let (waiting, _answer) = receive("waiting", Some(Instant::now() + WAIT));
    leadership.take_receive(waiting);
    let (hasty, mut nothing) = receive("hasty", None);
    leadership.take_receive(hasty);
    assert!(nothing.try_recv().unwrap().unwrap().deliveries.is_empty());
    leadership.note_sent(QUEUE, 2);
    let (hasty, _answer) = receive("hasty", None);
    leadership.take_receive(hasty);
    leadership.wake_waiters();
    assert_eq!(asked(&leadership), ["hasty", "waiting"]);
}

#[tokio::test]
async fn who_comes_after_one_that_is_gone_does_not_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let later = Some(Instant::now() + WAIT);
    let (gone, answer) = receive("gone", later);
    leadership.take_receive(gone);
    drop(answer);
    leadership.note_sent(QUEUE, 1);
    let (there, _answer) = receive("there", later);
    leadership.take_receive(there);
    leadership.wake_waiters();
    assert_eq!(asked(&leadership), ["there"]);
}

/// Somebody makes the shard what a catalogue wanted; whether the leader takes it for its log.
fn takes(leadership: &mut Leadership, command: &Command<'_>) -> bool {
    let mut bytes = Vec::new();
    command.encode_into(&mut bytes);
    let call = CommandCall { queue: QUEUE, command: bytes.into(), promised_leases_ms: Vec::new() };
    let (reply, mut answer) = oneshot::channel();
    leadership.take(Request::Command { call, reply });
    match answer.try_recv() {
        Ok(Ok(Reply::Refused { reason: Refusal::StaleRevision { .. } })) => false,
        Ok(other) => panic!("{other:?}"),
        Err(_) => true,
    }
}

/// Two changes of a queue through two nodes, of which the frames of the first are late: the partition would take all of them.
#[tokio::test]
async fn a_late_change_of_a_queue_undoes_no_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let budget = |percent, revision| {
        let budget = Some(RetryBudget { percent, floor_per_s: 1 });
        Command::SetRetryBudget { queue: QUEUE, budget, revision }
    };
    let isolation = |revision| Command::SetIsolation { queue: QUEUE, isolation: Isolation::Off, revision };
    let configure = |revision| {
        let settings = Settings { retention_ms: 60_000 * revision, ..Settings::default() };
        Command::Configure { queue: QUEUE, settings, revision }
    };
    assert!(takes(&mut leadership, &budget(10, 10)));
    // In the same entry.
    assert!(takes(&mut leadership, &budget(20, 12)));
    assert!(takes(&mut leadership, &isolation(12)));
    assert!(takes(&mut leadership, &configure(12)));
    assert!(!takes(&mut leadership, &budget(10, 10)) && !takes(&mut leadership, &isolation(10)));
    assert!(!takes(&mut leadership, &configure(10)));
    assert!(takes(&mut leadership, &configure(12)), "it is asked a second time");
    // What is no longer on its way is in the shard.
    let mut entry = BatchBuilder::new(NOW_MS, NOW_MS);
    entry.push(&configure(12)).unwrap();
    leadership.shared.machine.apply(2, &Bytes::from(entry.finish())).unwrap();
    leadership.configuring.clear();
    assert!(!takes(&mut leadership, &budget(10, 10)));
    assert!(!takes(&mut leadership, &configure(13)), "what goes before it was asked of another leader");
    assert!(takes(&mut leadership, &budget(20, 13)) && takes(&mut leadership, &configure(13)));
}

/// What one receive of the only message of the queue is granted.
fn granted(leadership: &Leadership) -> Vec<Delivery> {
    let content = Content { group: None, dedup_id: None, attributes: b"", body: b"x", origin: None };
    let message = NewMessage { delay_ms: None, expiry_ms: None, content };
    let mut entry = BatchBuilder::new(NOW_MS, NOW_MS);
    entry.push(&Command::Send { queue: QUEUE, messages: vec![message] }).unwrap();
    let receive = Command::Receive {
        queue: QUEUE,
        messages_max: 1,
        bytes_max: 1,
        lease_ms: None,
        attempt: None,
        consumer: b"",
    };
    entry.push(&receive).unwrap();
    let applied = leadership.shared.machine.apply(2, &Bytes::from(entry.finish())).unwrap();
    let Applied::Partition(applied) = applied else { panic!("it is a partition") };
    match applied.replies.into_iter().last() {
        Some(Reply::Received { deliveries }) if deliveries.len() == 1 => deliveries,
        other => panic!("{other:?}"),
    }
}

/// Answers a receive whose poller has hung up; whether its leases are given back.
fn gives_back(leadership: &mut Leadership, deliveries: &[Delivery], stamp_ms: u64) -> bool {
    let (receive, answer) = receive("gone", None);
    drop(answer);
    leadership.batch = None;
    let (pending, reply) =
        (Pending::Receive(Box::new(receive)), Reply::Received { deliveries: deliveries.to_vec() });
    leadership.answer(pending, reply, Answering { lag_ms: 0, stamp_ms, rest: &[] });
    leadership.batch.is_some()
}

/// A receive that is repeated, by a node that had lost the answer while its poller asked another one, is reminded of leases that
/// somebody holds by now.
#[tokio::test]
async fn what_somebody_may_hold_is_not_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let deliveries = granted(&leadership);
    assert!(gives_back(&mut leadership, &deliveries, NOW_MS), "it is new, and nobody has it");
    assert!(!gives_back(&mut leadership, &deliveries, NOW_MS), "it was answered before");
    // To a leader that did not grant it, it is older than the entry that tells of it.
    leadership.granted_through = 0;
    assert!(!gives_back(&mut leadership, &deliveries, NOW_MS + 1));
    // Nor is it, when it is too old to be promised once more.
    leadership.granted_through = 0;
    leadership.clock = LogClock::start(NOW_MS + 10_000, Instant::now());
    assert!(!gives_back(&mut leadership, &deliveries, NOW_MS + 10_000));
    leadership.granted_through = 0;
    assert!(gives_back(&mut leadership, &deliveries, NOW_MS), "an entry that took as long");
}

/// An attempt that is repeated has its leases again, from then on: those of an earlier leader look as if they were new.
#[tokio::test]
async fn what_an_earlier_leader_has_granted_is_not_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = leadership(dir.path()).await;
    let deliveries = granted(&earlier);
    let mut leadership = Leadership::from_applied(earlier.shared.clone(), 2);
    assert!(!gives_back(&mut leadership, &deliveries, NOW_MS));
}

type Extended = oneshot::Receiver<Result<Reply, Failure>>;

/// Asks for an extension under a name.
fn extend(leadership: &mut Leadership, sequence: u64, items: &[(Receipt, u32)]) -> Extended {
    let id = Some(RequestId { session: 1, sequence, completed_below: 0 });
    let mut bytes = Vec::new();
    let command = Command::Extend { queue: QUEUE, items: items.to_vec() };
    PartitionRequest { id, command }.encode_into(&mut bytes);
    let promised_leases_ms = items.iter().map(|(_, lease_ms)| *lease_ms).collect();
    let (reply, answer) = oneshot::channel();
    let call = CommandCall { queue: QUEUE, command: bytes.into(), promised_leases_ms };
    leadership.take(Request::Command { call, reply });
    answer
}

/// Applies the open entry as it is, and answers who waits for it.
fn apply(leadership: &mut Leadership, index: u64, stamp_ms: u64) {
    let mut batch = leadership.batch.take().unwrap();
    batch.builder.stamp(stamp_ms, stamp_ms);
    let entry = Payload::from_prefixed(batch.builder.finish().into()).unwrap();
    let Ok(Applied::Partition(applied)) = leadership.shared.machine.apply(index, &entry.bytes()) else {
        panic!("it is a partition");
    };
    leadership.clock = LogClock::start(stamp_ms, Instant::now());
    for (pending, reply) in batch.pending.into_iter().zip(applied.replies) {
        leadership.answer(pending, reply, Answering { lag_ms: 0, stamp_ms, rest: &[] });
    }
}

/// It is answered as the first time, and its leases count from then.
#[tokio::test]
async fn an_extension_that_is_repeated_promises_no_more_than_there_is() {
    const LEASE_MS: u32 = 40_000;
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let receipt = granted(&leadership)[0].receipt;
    let is_promised = |mut answer: Extended| match answer.try_recv().unwrap() {
        Ok(Reply::Settled { outcomes }) => outcomes == [Outcome::Done],
        Ok(other) => panic!("{other:?}"),
        Err(failure) => {
            let told = (failure.outcome, failure.reason);
            assert_eq!(told, (leasehold_proto::v1::Outcome::Unknown, Reason::Changed));
            false
        }
    };
    let items = [(receipt, LEASE_MS)];
    let first = extend(&mut leadership, 1, &items);
    let twin = extend(&mut leadership, 1, &items);
    apply(&mut leadership, 3, NOW_MS);
    assert!(is_promised(first) && is_promised(twin));
    let soon = extend(&mut leadership, 1, &items);
    apply(&mut leadership, 4, NOW_MS + 100);
    assert!(is_promised(soon));
    let end_ms = NOW_MS + u64::from(LEASE_MS);
    assert!(leadership.grace.due_ms(end_ms) >= end_ms + 100, "its consumer counts from the second answer");
    let late = extend(&mut leadership, 1, &items);
    apply(&mut leadership, 5, NOW_MS + 5_000);
    assert!(!is_promised(late));
    // Under another name it is done anew.
    let anew = extend(&mut leadership, 2, &items);
    apply(&mut leadership, 6, NOW_MS + 5_100);
    assert!(is_promised(anew));
    leadership.add_own(&Command::Ack { queue: QUEUE, receipts: vec![receipt] });
    let over = extend(&mut leadership, 2, &items);
    apply(&mut leadership, 7, NOW_MS + 5_200);
    assert!(!is_promised(over), "there is no such lease");
}

/// The bodies are read after the leader has answered, and whoever asks may go meanwhile.
#[tokio::test]
async fn what_is_granted_and_not_claimed_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut leadership = leadership(dir.path()).await;
    let (requests, mut queue) = mpsc::unbounded_channel();
    Arc::get_mut(&mut leadership.shared).unwrap().requests = requests.downgrade();
    let deliveries = granted(&leadership);
    let told = |leadership: &mut Leadership| {
        let (mut receive, answer) = receive("here", None);
        receive.options.request = Some(RequestId { session: 1, sequence: 1, completed_below: 0 });
        let (pending, reply) =
            (Pending::Receive(Box::new(receive)), Reply::Received { deliveries: deliveries.clone() });
        leadership.answer(pending, reply, Answering { lag_ms: 0, stamp_ms: NOW_MS, rest: &[] });
        answer
    };
    let unheard = told(&mut leadership);
    assert!(leadership.batch.is_none());
    drop(unheard);
    leadership.take(queue.try_recv().unwrap());
    assert!(leadership.batch.take().is_some(), "nobody has it");

    leadership.granted_through = 0;
    let mut claimed = told(&mut leadership).try_recv().unwrap().unwrap();
    drop(claimed.claim());
    drop(claimed);
    assert!(queue.try_recv().is_err(), "it is somebody's");

    leadership.granted_through = 0;
    let (first, again) = (told(&mut leadership), told(&mut leadership));
    drop(first);
    leadership.take(queue.try_recv().unwrap());
    assert!(leadership.batch.is_none(), "the second try may have it");
    drop(again);
    assert!(queue.try_recv().is_err());
}
