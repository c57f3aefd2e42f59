//! The lives of messages, for `why`: what happened to each, kept beside the log in an embedded store.
//!
//! Everything in it could be rebuilt or missed: it is written behind, bounded in size (the oldest goes first), and wiped when it
//! cannot be opened. Events travel in chunks, one record for many messages, so that the store costs per entry, not per message.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use leasehold_catalogue::PartitionId;
use leasehold_partition::{Event, EventKind, History, QueueId};
use leasehold_proto::v1::{LifeEvent, Reason};
use prost::Message;

use crate::failure::Failure;

/// Entries whose events wait to be written; more are dropped and counted.
const ENTRIES_WAITING_MAX: usize = 4_096;
/// Events after which a chunk is written.
const CHUNK_EVENTS_MAX: usize = 4_096;

/// Bytes of events that are told of one message: the answer has to fit wherever it goes.
const LIFE_BYTES_MAX: usize = 1024 * 1024;

/// Room on the disk for each byte of events: the store writes anew before it gives room back.
const DISK_FACTOR: u64 = 2;
/// Chunks, counted over all partitions, that are removed together.
const REMOVED_TOGETHER: u64 = 64;
/// How long to wait for a store that is still open, and how often it is looked at.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Of sled, for each node.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
const CLOSE_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(message, repeated, tag = "1")]
    records: Vec<Record>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint64, tag = "1")]
    queue: u64,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(message, optional, tag = "3")]
    event: Option<LifeEvent>,
    /// It concerns every message of the queue up to `sequence`: a purge, a deletion.
    #[prost(bool, tag = "4")]
    concerns_all: bool,
}

struct Noted {
    partition: PartitionId,
    log_index: u64,
    events: Vec<Event>,
}

/// Takes the events of entries as they are applied. Never waits.
#[derive(Clone)]
pub struct HistoryWriter {
    entries: SyncSender<Noted>,
    collects: History,
    dropped: Arc<AtomicU64>,
}

impl HistoryWriter {
    /// The events that are kept.
    pub fn collects(&self) -> History {
        self.collects
    }

    pub fn append(&self, partition: PartitionId, log_index: u64, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let count = events.len() as u64;
        match self.entries.try_send(Noted { partition, log_index, events }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let before = self.dropped.fetch_add(count, Ordering::Relaxed);
                if before == 0 {
                    tracing::warn!(
                        "the history of messages cannot keep up: some events will be missing from `why`"
                    );
                }
            }
        }
    }
}

/// Reads what the writers wrote down.
pub struct HistoryStore {
    tree: sled::Db,
}

impl HistoryStore {
    /// Opens the store, or starts an empty one in the place of a damaged one, and the thread that writes. Waits while the store is
    /// open elsewhere.
    ///
    /// # Errors
    /// When the folder cannot be read or written, or the store stays open.
    pub fn open(
        path: &Path,
        collects: History,
        bytes_max: u64,
    ) -> Result<(Arc<Self>, HistoryWriter), sled::Error> {
        let tree = open_or_wipe(path)?;
        let store = Arc::new(Self { tree });
        let (entries, queue) = sync_channel(ENTRIES_WAITING_MAX);
        let writing = store.clone();
        std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || writing.write(&queue, bytes_max))
            .map_err(sled::Error::from)?;
        Ok((store, HistoryWriter { entries, collects, dropped: Arc::new(AtomicU64::new(0)) }))
    }

    /// What is known of one message, oldest first. Of a very long life the end is told.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn life_of(
        self: &Arc<Self>,
        partition: PartitionId,
        queue: QueueId,
        sequence: u64,
    ) -> Result<Vec<LifeEvent>, Failure> {
        let store = self.clone();
        let found = tokio::task::spawn_blocking(move || store.find(partition, queue, sequence));
        let unreadable = |error: String| Failure::try_again(Reason::NodeFailed, error);
        found
            .await
            .map_err(|error| unreadable(error.to_string()))?
            .map_err(|error| unreadable(error.to_string()))
    }

    fn find(
        &self,
        partition: PartitionId,
        queue: QueueId,
        sequence: u64,
    ) -> Result<Vec<LifeEvent>, sled::Error> {
        let mut life = Vec::new();
        for chunk in self.tree.scan_prefix(partition.0.to_be_bytes()) {
            let (_, bytes) = chunk?;
            let records = Chunk::decode(&bytes[..]).map(|chunk| chunk.records).unwrap_or_default();
            let of_queue = records.into_iter().filter(|record| record.queue == queue.0);
            let is_of_message = |record: &Record| {
                record.sequence == sequence || (record.concerns_all && record.sequence > sequence)
            };
            let of_message = of_queue.filter(is_of_message);
            life.extend(of_message.filter_map(|record| record.event));
        }
        // A start applies the last entries once more, and writes down their events again.
        let mut seen = HashSet::new();
        life.retain(|event| {
            let LifeEvent { log_index, event, detail, fencing_token, .. } = event;
            seen.insert((*log_index, event.clone(), detail.clone(), *fencing_token))
        });
        life.sort_by_key(|event| event.log_index);
        Ok(newest(life, LIFE_BYTES_MAX))
    }

    fn write(&self, entries: &Receiver<Noted>, bytes_max: u64) {
        let mut held = self.measure().unwrap_or_else(|error| {
            tracing::warn!(%error, "the history of messages cannot be measured: it may take more room than it should");
            Held::default()
        });
        while let Ok(first) = entries.recv() {
            let partition = first.partition;
            let mut chunks = BTreeMap::from([(partition, records_of(first))]);
            let mut events = 0;
            while events < CHUNK_EVENTS_MAX {
                let Ok(next) = entries.try_recv() else { break };
                events += next.events.len();
                chunks.entry(next.partition).or_default().extend(records_of(next));
            }
            if let Err(error) = self.keep(chunks, &mut held, bytes_max / DISK_FACTOR) {
                tracing::warn!(%error, "the history of messages cannot be written");
            }
        }
    }

    fn keep(
        &self,
        chunks: BTreeMap<PartitionId, Vec<Record>>,
        held: &mut Held,
        bytes_max: u64,
    ) -> Result<(), sled::Error> {
        for (partition, records) in chunks {
            let mut key = partition.0.to_be_bytes().to_vec();
            key.extend(self.tree.generate_id()?.to_be_bytes());
            let chunk = Chunk { records }.encode_to_vec();
            held.add(&key, &chunk);
            self.tree.insert(key, chunk)?;
        }
        while held.bytes > bytes_max && self.remove_oldest(held)? {}
        Ok(())
    }

    fn measure(&self) -> Result<Held, sled::Error> {
        let mut held = Held::default();
        for chunk in self.tree.iter() {
            let (key, chunk) = chunk?;
            held.add(&key, &chunk);
        }
        Ok(held)
    }

    /// Removes the oldest chunk, and those of its partition that are about as old; false when there is none.
    fn remove_oldest(&self, held: &mut Held) -> Result<bool, sled::Error> {
        let mut oldest: Option<(u64, u32)> = None;
        for partition in &held.partitions {
            if let Some(key) = self.tree.scan_prefix(partition.to_be_bytes()).keys().next().transpose()? {
                let first = (number_of(&key), *partition);
                oldest = Some(oldest.map_or(first, |oldest| oldest.min(first)));
            }
        }
        let Some((number, partition)) = oldest else { return Ok(false) };
        for chunk in self.tree.scan_prefix(partition.to_be_bytes()) {
            let (key, chunk) = chunk?;
            if number_of(&key) >= number + REMOVED_TOGETHER {
                break;
            }
            held.bytes = held.bytes.saturating_sub((key.len() + chunk.len()) as u64);
            self.tree.remove(key)?;
        }
        Ok(true)
    }
}

/// The last events of a life, as many as there is room for. The first says how many there were before, and until when.
fn newest(mut life: Vec<LifeEvent>, bytes_max: usize) -> Vec<LifeEvent> {
    let mut bytes = 0;
    let fits = |event: &&LifeEvent| {
        bytes += event.encoded_len();
        bytes <= bytes_max
    };
    let left_out = life.len() - life.iter().rev().take_while(fits).count();
    if let Some(last) = left_out.checked_sub(1).and_then(|last| life.get(last)) {
        let note = LifeEvent {
            event: "left-out".to_owned(),
            detail: format!("{left_out} events until then are not told: there are too many"),
            fencing_token: 0,
            ..last.clone()
        };
        drop(life.splice(..left_out, [note]));
    }
    life
}

/// What the writer knows of the store. Its size on the disk does not say what is in it: it only falls some time after a removal.
#[derive(Default)]
struct Held {
    /// Of keys and chunks.
    bytes: u64,
    partitions: BTreeSet<u32>,
}

impl Held {
    fn add(&mut self, key: &[u8], chunk: &[u8]) {
        self.bytes += (key.len() + chunk.len()) as u64;
        self.partitions.extend(key.first_chunk().map(|partition| u32::from_be_bytes(*partition)));
    }
}

/// When a chunk was written, among all: the second part of its key.
fn number_of(key: &[u8]) -> u64 {
    key.last_chunk().map_or(0, |number| u64::from_be_bytes(*number))
}

fn open_or_wipe(path: &Path) -> Result<sled::Db, sled::Error> {
    wait_until_closed(path)?;
    open_or_wipe_by(path, || sled::Config::new().path(path).cache_capacity(CACHE_BYTES).open())
}

fn open_or_wipe_by(
    path: &Path,
    open: impl Fn() -> Result<sled::Db, sled::Error>,
) -> Result<sled::Db, sled::Error> {
    // What a loss of power leaves makes sled panic at times. That must not keep a node from its messages.
    let opened = catch_unwind(AssertUnwindSafe(&open))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked while it opened it".to_owned())));
    opened.or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "the history of messages is damaged and starts anew");
        std::fs::remove_dir_all(path).map_err(sled::Error::from)?;
        open()
    })
}

/// A node that stops in this process may hold its store a moment longer, which is no damage.
fn wait_until_closed(path: &Path) -> std::io::Result<()> {
    let Ok(locked) = File::open(path.join("db")) else { return Ok(()) };
    let end = Instant::now() + CLOSE_PATIENCE;
    while let Err(error) = locked.try_lock() {
        if Instant::now() >= end {
            return Err(error.into());
        }
        std::thread::sleep(CLOSE_INTERVAL);
    }
    Ok(())
}

fn records_of(noted: Noted) -> Vec<Record> {
    let log_index = noted.log_index;
    noted.events.into_iter().map(|event| record_of(log_index, &event)).collect()
}

fn record_of(log_index: u64, event: &Event) -> Record {
    let (name, detail, grant) = describe(&event.kind);
    let life = LifeEvent {
        log_time_ms: event.log_time_ms,
        wall_ms: event.wall_time_ms,
        log_index,
        event: name.to_owned(),
        detail,
        fencing_token: grant,
    };
    let concerns_all = matches!(event.kind, EventKind::Purged | EventKind::Deleted);
    Record { queue: event.queue.0, sequence: event.sequence, event: Some(life), concerns_all }
}

fn describe(kind: &EventKind) -> (&'static str, String, u64) {
    match kind {
        EventKind::Sent => ("sent", String::new(), 0),
        EventKind::Duplicate => {
            ("duplicate", "a send with the same deduplication id was recognised".to_owned(), 0)
        }
        EventKind::Arrived => ("arrived", "from another queue".to_owned(), 0),
        EventKind::Granted { grant, receive_count, lease_ms, consumer } => {
            let consumer = String::from_utf8_lossy(consumer);
            ("granted", format!("receive {receive_count}, to {consumer:?}, for {lease_ms} ms"), *grant)
        }
        EventKind::Acked { grant } => ("acked", String::new(), *grant),
        EventKind::Extended { grant, lease_ms } => {
            ("extended", format!("to {lease_ms} ms from then"), *grant)
        }
        EventKind::Released { grant, delay_ms } => ("released", format!("ready after {delay_ms} ms"), *grant),
        EventKind::Expired { grant } => ("expired", "the lease ended without an ack".to_owned(), *grant),
        EventKind::Rejected { grant, why } => ("rejected", String::from_utf8_lossy(why).into_owned(), *grant),
        EventKind::Suspected { company } => {
            let others = company.saturating_sub(1);
            ("suspected", format!("its consumer is gone: it is granted with {others} others at most"), 0)
        }
        EventKind::Held => {
            ("held", "too many messages come back: it waits for the retry budget".to_owned(), 0)
        }
        EventKind::Spared => (
            "spared",
            "its receive limit is met, and most messages fail: it does not die of it".to_owned(),
            0,
        ),
        EventKind::Dead { number, target } => {
            ("dead", format!("outbox number {number}, for queue {}", target.0), 0)
        }
        EventKind::Redriven { number, target } => {
            ("redriven", format!("outbox number {number}, to queue {}", target.0), 0)
        }
        EventKind::Transferred { target, .. } => ("transferred", format!("arrived in queue {}", target.0), 0),
        EventKind::Returned { .. } => ("returned", "its target queue exists no more".to_owned(), 0),
        EventKind::Dropped => ("dropped", "its retention or its time to live ended".to_owned(), 0),
        EventKind::Purged => ("purged", String::new(), 0),
        EventKind::Deleted => ("deleted", "with its queue".to_owned(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, kind: EventKind) -> Event {
        Event { log_time_ms: 5, wall_time_ms: 7, queue: QueueId(1), sequence, kind }
    }

    #[tokio::test]
    async fn a_life_is_told_in_order_and_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let partition = PartitionId(3);
        let (store, writer) = HistoryStore::open(dir.path(), History::All, 1 << 30).unwrap();
        writer.append(partition, 10, vec![event(1, EventKind::Sent), event(2, EventKind::Sent)]);
        writer.append(partition, 11, vec![event(1, EventKind::Acked { grant: 9 })]);
        drop(writer);
        let told = loop {
            let life = store.life_of(partition, QueueId(1), 1).await.unwrap();
            if life.len() == 2 {
                break life;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(told.iter().map(|event| event.event.as_str()).collect::<Vec<_>>(), ["sent", "acked"]);
        assert_eq!(told[1].fencing_token, 9);
        assert!(store.life_of(partition, QueueId(2), 1).await.unwrap().is_empty());
    }

    #[test]
    fn the_oldest_goes_first_and_no_more_than_has_to() {
        const BYTES_MAX: u64 = 64 * 1024;
        const EVENTS: u64 = 10_000;
        let dir = tempfile::tempdir().unwrap();
        let store = HistoryStore { tree: open_or_wipe(dir.path()).unwrap() };
        let mut held = Held::default();
        for sequence in 0..EVENTS {
            let partition = PartitionId((sequence % 3) as u32);
            let chunks =
                BTreeMap::from([(partition, vec![record_of(sequence, &event(sequence, EventKind::Sent))])]);
            store.keep(chunks, &mut held, BYTES_MAX).unwrap();
        }
        assert!((BYTES_MAX / 2..=BYTES_MAX).contains(&held.bytes), "{}", held.bytes);
        assert_eq!(store.measure().unwrap().bytes, held.bytes);
        let knows = |sequence: u64| {
            let partition = PartitionId((sequence % 3) as u32);
            !store.find(partition, QueueId(1), sequence).unwrap().is_empty()
        };
        assert!((0..30).all(|sequence| !knows(sequence)));
        assert!((EVENTS - 30..EVENTS).all(knows));
    }

    #[test]
    fn an_event_that_is_written_down_again_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = HistoryStore { tree: open_or_wipe(dir.path()).unwrap() };
        let mut held = Held::default();
        let (sent, acked) = (event(1, EventKind::Sent), event(1, EventKind::Acked { grant: 9 }));
        for records in [vec![record_of(10, &sent)], vec![record_of(11, &acked)], vec![record_of(10, &sent)]] {
            store.keep(BTreeMap::from([(PartitionId(0), records)]), &mut held, 1 << 20).unwrap();
        }
        let told = store.find(PartitionId(0), QueueId(1), 1).unwrap();
        assert_eq!(told.iter().map(|event| event.event.as_str()).collect::<Vec<_>>(), ["sent", "acked"]);
    }

    #[test]
    fn of_a_life_that_is_too_long_the_end_is_told() {
        let told = |index| record_of(index, &event(1, EventKind::Acked { grant: index })).event.unwrap();
        let life = (1..=10).map(told).collect::<Vec<_>>();
        let three = life[7..].iter().map(Message::encoded_len).sum();
        let end = newest(life.clone(), three);
        assert_eq!(end[1..], life[7..]);
        assert_eq!((&end[0].event[..], end[0].log_index, end[0].fencing_token), ("left-out", 7, 0));
        assert!(end[0].detail.starts_with("7 events"), "{}", end[0].detail);
        let all = life.iter().map(Message::encoded_len).sum();
        assert_eq!(newest(life.clone(), all), life);
        assert!(newest(Vec::new(), 0).is_empty());
    }

    #[test]
    fn a_store_that_is_still_open_is_waited_for_and_a_damaged_one_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = sled::open(dir.path()).unwrap();
        store.insert("kept", "here").unwrap();
        let closing = std::thread::spawn(move || {
            std::thread::sleep(CLOSE_INTERVAL * 5);
            drop(store);
        });
        let store = open_or_wipe(dir.path()).unwrap();
        assert!(store.contains_key("kept").unwrap());
        closing.join().unwrap();
        drop(store);
        std::fs::write(dir.path().join("conf"), "damaged, and of no length that could be right").unwrap();
        assert!(!open_or_wipe(dir.path()).unwrap().contains_key("kept").unwrap());
    }

    #[test]
    fn a_store_that_makes_sled_panic_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        sled::open(&path).unwrap().insert("kept", "here").unwrap();
        let is_first = std::cell::Cell::new(true);
        let opened = open_or_wipe_by(&path, || {
            assert!(!is_first.replace(false), "tried to serialize Uninitialized");
            sled::open(&path)
        });
        assert!(!opened.unwrap().contains_key("kept").unwrap());
    }
}
