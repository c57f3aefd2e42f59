//! Using segments again: those that nothing needs at once, sparse ones after their few live contents have moved to the head.
//!
//! Order is all: what replaces a thing is durable before the thing goes. A segment goes only after the state of every group has
//! been written behind it, because the purges and truncations that made it useless may so far be known to memory alone.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::NORMAL_PREFIX_BYTES;
use crate::filesystem::File;
use crate::format::{Kind, Parsed, Placed, Record, SEGMENT_HEADER_BYTES, parse_batch};
use crate::index::{Place, Segment};
use crate::limits::MOVE_BYTES_MAX;
use crate::log::{LiveRanges, Shared, wait};
use crate::payload::GroupId;
use crate::recovery::decode_ranges;
use crate::writer::{Note, Queued, encode_contents};

/// After this time it is tried again to move what could not be moved.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Frees the segments that hold nothing that is needed.
pub async fn free_idle(shared: &Shared) -> io::Result<()> {
    let (idle, states) = {
        let index = shared.lock_index();
        let idle = index.idle_segments();
        let in_idle = |segment: &Option<u64>| segment.is_some_and(|segment| idle.contains(&segment));
        let holds_state =
            index.groups.iter().filter(|(_, group)| in_idle(&group.state_segment)).map(|(id, _)| *id);
        let states = holds_state.chain(index.dirty.iter().copied()).collect::<Vec<_>>();
        (idle, states)
    };
    if idle.is_empty() {
        return Ok(());
    }
    wait(shared.submit(Vec::new(), states)).await?;
    for number in idle {
        let file = {
            let mut index = shared.lock_index();
            // Nothing comes back into a segment, but a state may have been written into it since, or rather: not.
            let holds_state = index.groups.values().any(|group| group.state_segment == Some(number));
            if holds_state || !index.idle_segments().contains(&number) {
                continue;
            }
            index.segments.remove(&number).map(|segment| segment.file)
        };
        if let Some(file) = file {
            shared.pool.retire(number, file, shared.options.spare_segments)?;
        }
    }
    Ok(())
}

/// Segments from which nothing could be moved when it was last tried: how much was live in them, and when that was.
#[derive(Default)]
pub struct Stuck(BTreeMap<u64, (u64, Instant)>);

impl Stuck {
    fn is_worth_a_try(&self, sparse: &Sparse) -> bool {
        let same = self.0.get(&sparse.number).filter(|(live_bytes, _)| *live_bytes == sparse.live_bytes);
        same.is_none_or(|(_, tried)| tried.elapsed() > RETRY_INTERVAL)
    }
}

struct Sparse {
    number: u64,
    file: Arc<dyn File>,
    end: u64,
    live_bytes: u64,
}

/// Moves the live contents of sparse segments to the head of the log, those with the least first; returns how many bytes.
/// [`free_idle`] takes the segments.
pub async fn empty_sparse(shared: &Shared, stuck: &mut Stuck) -> io::Result<usize> {
    let Some(live_ranges) = shared.live_ranges.get() else { return Ok(0) };
    let sparse = sparse_segments(shared);
    stuck.0.retain(|number, _| sparse.iter().any(|sparse| sparse.number == *number));
    let mut moved_bytes = 0;
    for sparse in &sparse {
        if moved_bytes >= MOVE_BYTES_MAX {
            break;
        }
        if !stuck.is_worth_a_try(sparse) {
            continue;
        }
        let moved = move_contents(shared, sparse, live_ranges.as_ref()).await?;
        if moved == 0 {
            stuck.0.insert(sparse.number, (sparse.live_bytes, Instant::now()));
        }
        moved_bytes += moved;
    }
    Ok(moved_bytes)
}

/// Moves the live contents of one segment.
async fn move_contents(shared: &Shared, sparse: &Sparse, live_ranges: &LiveRanges) -> io::Result<usize> {
    let Sparse { number, end, .. } = *sparse;
    let mut bytes = vec![0; usize::try_from(end).map_err(io::Error::other)?];
    if let Err(error) = sparse.file.read_at(&mut bytes, 0) {
        tracing::error!(
            path = %shared.pool.segment_path(number).display(),
            %error,
            "a segment cannot be read, it stays: restore the disk, or wipe the folder and replace this node in the cluster"
        );
        return Ok(0);
    }
    let bytes = Bytes::from(bytes);
    let mut moves = Moves { shared, records: Vec::new(), bytes: 0, moved_bytes: 0 };
    let mut at = SEGMENT_HEADER_BYTES;
    while let Parsed::Batch { records, end } = parse_batch(&bytes, number, at) {
        for record in records {
            let Some(generation) = holder_generation(shared, number, &record) else { continue };
            if !record.is_sound {
                tracing::error!(
                    path = %shared.pool.segment_path(number).display(),
                    offset = record.offset,
                    "a live content is damaged, its segment stays: restore the disk, or wipe the folder and replace this node in the cluster"
                );
                continue;
            }
            let ranges = cut(&bytes, &record, &live_ranges(record.group, record.index));
            // Without any it is being released at this moment, or its state machine is not there.
            if !ranges.is_empty() {
                moves.push(contents_record(number, &record, generation, &ranges), &ranges).await?;
            }
        }
        at = end;
    }
    if at < end {
        tracing::error!(
            path = %shared.pool.segment_path(number).display(),
            offset = at,
            "a batch is damaged, its segment stays: restore the disk, or wipe the folder and replace this node in the cluster"
        );
    }
    moves.submit().await?;
    Ok(moves.moved_bytes)
}

/// Contents on their way to the head of the log.
struct Moves<'a> {
    shared: &'a Shared,
    records: Vec<Queued>,
    bytes: usize,
    moved_bytes: usize,
}

impl Moves<'_> {
    async fn push(&mut self, record: Queued, ranges: &[(u32, Bytes)]) -> io::Result<()> {
        self.bytes += ranges.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        self.records.push(record);
        if self.bytes >= MOVE_BYTES_MAX { self.submit().await } else { Ok(()) }
    }

    /// Waits until they are durable.
    async fn submit(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        self.moved_bytes += bytes;
        self.shared.stats.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(wait(self.shared.submit(std::mem::take(&mut self.records), Vec::new())).await?)
    }
}

/// The segments with a live share below the threshold that nothing pins, those with the least first.
fn sparse_segments(shared: &Shared) -> Vec<Sparse> {
    let index = shared.lock_index();
    let last = index.segments.keys().next_back().copied();
    let is_sparse = |segment: &Segment| {
        let limit = segment.end * u64::from(shared.options.live_percent_min) / 100;
        segment.pins == 0 && segment.live_bytes > 0 && segment.live_bytes < limit
    };
    let candidates = index.segments.iter();
    let candidates = candidates.filter(|(number, segment)| Some(**number) != last && is_sparse(segment));
    let mut sparse = candidates
        .map(|(number, segment)| Sparse {
            number: *number,
            file: Arc::clone(&segment.file),
            end: segment.end,
            live_bytes: segment.live_bytes,
        })
        .collect::<Vec<_>>();
    sparse.sort_by_key(|sparse| sparse.live_bytes);
    sparse
}

fn place_of(segment: u64, record: &Placed) -> Place {
    Place { segment, offset: record.offset as u32, len: record.payload_bytes }
}

/// The generation of the record's group, if the record is where one of its entries' contents are.
fn holder_generation(shared: &Shared, segment: u64, record: &Placed) -> Option<u32> {
    let index = shared.lock_index();
    let group = index.groups.get(&record.group)?;
    let held = group.retained.get(&record.index)?;
    (held.source.place() == place_of(segment, record)).then_some(group.generation)
}

/// The wanted ranges of an entry's payload that a record holds.
fn cut(bytes: &Bytes, record: &Placed, wanted: &[(u32, u32)]) -> Vec<(u32, Bytes)> {
    let start = record.offset as usize;
    let payload = bytes.slice(start..start + record.payload_bytes as usize);
    let held: BTreeMap<u32, (u32, usize)> = match record.kind {
        Kind::Entry => {
            let len = record.payload_bytes.saturating_sub(NORMAL_PREFIX_BYTES);
            BTreeMap::from([(0, (len, NORMAL_PREFIX_BYTES as usize))])
        }
        Kind::Contents => {
            let ranges = decode_ranges(&payload, record.payload_bytes).unwrap_or_default();
            let mut at = 4 + 8 * ranges.len();
            let place = |(offset, len): &(u32, u32)| {
                let from = at;
                at += *len as usize;
                (*offset, (*len, from))
            };
            ranges.iter().map(place).collect()
        }
        Kind::State => BTreeMap::new(),
    };
    let find = |(offset, len): &(u32, u32)| {
        let (start, (held_len, at)) = held.range(..=offset).next_back()?;
        let skipped = offset - start;
        let from = at + skipped as usize;
        let is_held = skipped.checked_add(*len).is_some_and(|end| end <= *held_len);
        is_held.then(|| (*offset, payload.slice(from..from + *len as usize)))
    };
    wanted.iter().filter_map(find).collect()
}

fn contents_record(segment: u64, record: &Placed, generation: u32, ranges: &[(u32, Bytes)]) -> Queued {
    let table = ranges.iter().map(|(offset, bytes)| (*offset, bytes.len() as u32)).collect();
    let moved_from = Some(place_of(segment, record));
    let (group, index): (GroupId, u64) = (record.group, record.index);
    let payload = encode_contents(ranges);
    Queued {
        record: Record { kind: Kind::Contents, group, generation, index, term: 0, payload },
        note: Note::Contents { ranges: table, moved_from },
    }
}
