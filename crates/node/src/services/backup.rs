//! Copies for a backup, and clusters that begin with one. docs/backup.md says what they hold.
//!
//! ```text
//!   hold ─▶ partition 0 ─▶ partition 1 ─▶ ... ─▶ catalogue       nothing moves between queues meanwhile
//! ```
//!
//! A partition is copied by its leader, in the term in which the hold began: nobody else can have moved anything since.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use leasehold_catalogue::PartitionId;
use leasehold_partition::Partition;
use leasehold_proto::peer::SnapshotChunk;
use leasehold_proto::v1::{BackupChunk, CopyHead, HoldTransfersResponse, LedPartition, Reason, RestoreChunk};
use leasehold_raft_log::Log;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::catalogue_link::CATALOGUE_GROUP;
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::LEADER_WAIT_MS_MAX;
use crate::raft::{Copied, GroupId, Role, receive_copy, send_copy};
use crate::replica::Replica;
use crate::transfer_hold::HOLD_LASTS;

/// Chunks that wait for the network.
const CHUNKS_WAITING_MAX: usize = 2;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a backup is made of, as it leaves.
pub type Chunks = ReceiverStream<Result<BackupChunk, Status>>;

/// Stops transfers on this node, and says what it leads.
pub async fn hold_transfers(core: &Core) -> HoldTransfersResponse {
    let hold = core.transfer_hold.hold().await;
    let led = core.router.replicas().into_iter().filter_map(|replica| {
        Some(LedPartition { partition: replica.id().0, term: replica.group().term_led()? })
    });
    HoldTransfersResponse { hold, lasts_ms: HOLD_LASTS.as_millis() as u64, partitions: led.collect() }
}

/// Copies the catalogue as it is after everything that was decided before this call.
///
/// # Errors
/// When its leader cannot be reached.
pub async fn back_up_catalogue(core: Arc<Core>) -> Result<Chunks, Failure> {
    let decided = core.catalogue.catch_up().await?;
    if *core.view.applied().borrow() < decided {
        let detail = "this node's copy of the catalogue is behind: begin the backup again";
        return Err(Failure::try_again(Reason::NoLeader, detail));
    }
    let (state, partitions, queues) = core.view.look(|catalogue| {
        (catalogue.snapshot(), catalogue.partitions().len() as u32, catalogue.queues().len() as u64)
    });
    // Entries that changed nothing are remembered by their indexes, too; what is said of the progress may be a moment old.
    let (progress, _) = core.catalogue.group.progress();
    let log_index = progress.max(*core.view.applied().borrow());
    let head = CopyHead { log_index, partitions, queues, ..CopyHead::default() };
    let copied = Copied { log_index, state: state.into() };
    Ok(stream(&core.log, CATALOGUE_GROUP, head, copied, None))
}

/// Copies a partition as it is after everything that was answered before this call.
///
/// # Errors
/// When this node does not lead it in the term that is named, or the hold has ended.
pub async fn back_up_partition(core: Arc<Core>, led: LedPartition, hold: u64) -> Result<Chunks, Failure> {
    let replica = core.router.replica(PartitionId(led.partition)).ok_or_else(|| {
        let detail = format!("this node has no replica of partition {}", led.partition);
        Failure::not_done(Reason::UnknownPartition, detail)
    })?;
    let calm = Calm { core, replica, term: led.term, hold };
    calm.check().await?;
    let (head, state) = {
        let state = calm.replica.machine().read();
        let head = CopyHead {
            log_index: state.applied_index(),
            log_time_ms: state.log_time_ms(),
            messages: state.message_count(),
            ..CopyHead::default()
        };
        (head, state.snapshot())
    };
    let copied = Copied { log_index: head.log_index, state: state.into() };
    let (log, group) = (calm.core.log.clone(), calm.replica.group().id());
    Ok(stream(&log, group, head, copied, Some(calm)))
}

/// What must be so from the beginning of the hold to the end of a partition's copy.
struct Calm {
    core: Arc<Core>,
    replica: Arc<Replica>,
    term: u64,
    hold: u64,
}

impl Calm {
    /// Whether this replica leads in the term, for certain, and has moved nothing since the hold began. Who did not lead in it has moved
    /// nothing either: everything of an earlier term was there when this one began.
    async fn check(&self) -> Result<(), Failure> {
        let led = self.replica.group().catch_up().await;
        if led.is_err() || *self.replica.role().borrow() != (Role::Leader { term: self.term }) {
            let (id, term) = (self.replica.id(), self.term);
            let detail = format!("partition {id} is not led here in term {term}: begin the backup again");
            return Err(Failure::try_again(Reason::NoLeader, detail));
        }
        if !self.core.transfer_hold.lasts(self.hold) {
            let detail = "messages may have moved between queues meanwhile: begin the backup again";
            return Err(Failure::try_again(Reason::Changed, detail));
        }
        Ok(())
    }
}

/// Sends a copy, and its end when all was calm until then.
fn stream(log: &Log, group: GroupId, head: CopyHead, copied: Copied, calm: Option<Calm>) -> Chunks {
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING_MAX);
    let log = log.clone();
    tokio::spawn(async move {
        let head = BackupChunk { head: Some(head), ..BackupChunk::default() };
        let is_taken = sender.send(Ok(head)).await.is_ok();
        let last = if is_taken { send_records(&log, group, &copied, calm, &sender).await } else { Ok(()) };
        if let Err(failure) = last {
            // Who does not listen any more needs no reason.
            let _ = sender.send(Err(failure.into())).await;
        }
    });
    ReceiverStream::new(chunks)
}

async fn send_records(
    log: &Log,
    group: GroupId,
    copied: &Copied,
    calm: Option<Calm>,
    sender: &mpsc::Sender<Result<BackupChunk, Status>>,
) -> Result<(), Failure> {
    let (parts, mut read) = mpsc::channel(CHUNKS_WAITING_MAX);
    let reading = async move { send_copy(log, group, copied, &parts).await };
    let passing_on = async move {
        while let Some(chunk) = read.recv().await {
            if sender.send(Ok(record_of(&chunk))).await.is_err() {
                return read.close();
            }
        }
    };
    let (sent, ()) = tokio::join!(reading, passing_on);
    match sent {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(detail) => return Err(Failure::not_done(Reason::NodeFailed, detail)),
    }
    if let Some(calm) = calm {
        calm.check().await?;
    }
    let last = record_of(&SnapshotChunk { is_last: true, ..SnapshotChunk::default() });
    // As above.
    let _ = sender.send(Ok(last)).await;
    Ok(())
}

fn record_of(chunk: &SnapshotChunk) -> BackupChunk {
    BackupChunk { record: chunk.encode_to_vec().into(), ..BackupChunk::default() }
}

/// What comes of a backup, without the first chunk, as nodes send it to each other.
pub fn records(
    chunks: impl Stream<Item = Result<RestoreChunk, Status>>,
) -> impl Stream<Item = Result<SnapshotChunk, Status>> {
    let malformed = |error| Status::invalid_argument(format!("a record of the backup is malformed: {error}"));
    chunks.map(move |chunk| SnapshotChunk::decode(chunk?.record).map_err(malformed))
}

/// Gives a partition of a cluster that was founded from a backup the state that it waits for.
///
/// # Errors
/// When it does not wait for one, this node is not that of its first replica, or the copy is damaged: nothing is installed then.
pub async fn restore_partition(
    core: &Core,
    id: PartitionId,
    records: impl Stream<Item = Result<SnapshotChunk, Status>>,
) -> Result<(), Status> {
    let _one_at_a_time = core.restoring.lock().await;
    let replica = awaiting_replica(core, id).await?;
    let (copied, came) = receive_copy(&core.log, replica.group().id(), records).await?;
    let begun = tokio::task::spawn_blocking(move || {
        let mut state = Partition::restore(&copied.state)?;
        let gone = state.begin_again(|content| came.has(content.log_index, content.offset, content.len));
        Ok::<_, leasehold_partition::SnapshotError>((
            Copied { state: state.snapshot().into(), ..copied },
            gone,
        ))
    });
    let begun = begun.await.map_err(|error| Status::internal(error.to_string()))?;
    let (copied, gone) = begun.map_err(|error| Status::data_loss(format!("partition {id}: {error}")))?;
    let members = core.view.look(|catalogue| catalogue.partition(id).cloned());
    let members = members.map(|partition| core.first_members(&partition)).unwrap_or_default();
    let log_index = copied.log_index;
    replica.group().begin_with(copied, members).await.map_err(Status::internal)?;
    tracing::info!(partition = id.0, log_index, gone, "the partition begins with a state of a backup");
    replica.group().campaign().await;
    Ok(())
}

/// The replica here that a partition shall begin with, as soon as it is started.
async fn awaiting_replica(core: &Core, id: PartitionId) -> Result<Arc<Replica>, Failure> {
    let end = Instant::now() + Duration::from_millis(LEADER_WAIT_MS_MAX);
    loop {
        let found = core.view.look(|catalogue| catalogue.partition(id).cloned());
        let partition = found.ok_or_else(|| {
            Failure::try_again(Reason::UnknownPartition, format!("this node knows of no partition {id}"))
        });
        let replica = match partition {
            Ok(partition) if !partition.awaits_state => {
                let detail = format!("partition {id} does not wait for a state: restore into a new cluster");
                return Err(Failure::not_done(Reason::AlreadyInitialised, detail));
            }
            Ok(partition)
                if partition.replicas.first().is_none_or(|first| first.node_id() != core.view.here()) =>
            {
                let detail = format!("partition {id} is restored at the node of its first replica");
                return Err(Failure::not_done(Reason::InvalidArgument, detail));
            }
            Ok(_) => core.router.replica(id),
            Err(failure) if Instant::now() > end => return Err(failure),
            Err(_) => None,
        };
        match replica {
            Some(replica) if replica.group().members().nodes.is_empty() => return Ok(replica),
            Some(_) => {
                let detail = format!("partition {id} has its state already");
                return Err(Failure::not_done(Reason::AlreadyInitialised, detail));
            }
            None if Instant::now() > end => {
                let detail = format!("the replica of partition {id} has not started");
                return Err(Failure::try_again(Reason::NodeFailed, detail));
            }
            None => sleep(LOOK_AGAIN).await,
        }
    }
}
