//! How many durable entries a second the log of this machine takes.
//!
//! ```text
//! cargo run --release -p leasehold-raft-log --example append_rate -- [GROUPS] [BATCH] [PAYLOAD_BYTES] [SECONDS] [FOLDER]
//! ```
//!
//! Each group appends a batch, waits until it is durable, and appends the next; what is behind is purged, so that segments are used
//! again as in a running node. FOLDER is where a temporary one is made: choose the disk that you mean, not a file system in memory.
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use leasehold_raft_log::testing::TypeConfig;
use leasehold_raft_log::{Entry, GroupId, GroupLog, Log, Options, Payload, RealFileSystem, Stats, log_id};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

type Failure = Box<dyn Error + Send + Sync>;

/// Batches that a group keeps before it purges.
const BATCHES_KEPT: u64 = 64;

#[derive(Clone, Copy)]
struct Load {
    batch: u64,
    payload_bytes: usize,
    until: Instant,
}

fn argument<T: FromStr>(at: usize, otherwise: T) -> Result<T, Failure>
where
    T::Err: Error + Send + Sync + 'static,
{
    std::env::args().nth(at).map_or(Ok(otherwise), |text| Ok(text.parse()?))
}

/// Appends until the time is over; returns how many entries are durable.
fn append(mut group: GroupLog<TypeConfig>, load: Load) -> Result<u64, Failure> {
    let payload = Payload::copy_of(&vec![b'x'; load.payload_bytes]);
    let mut next = 0;
    while Instant::now() < load.until {
        let entry =
            |index| Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(payload.clone()) };
        let entries = (next..next + load.batch).map(entry).collect::<Vec<_>>();
        let (sender, durable) = TypeConfig::oneshot();
        block_on(group.append(entries, IOFlushed::signal(sender)))?;
        block_on(durable)??;
        next += load.batch;
        let batches = next / load.batch;
        if batches > BATCHES_KEPT && batches.is_multiple_of(BATCHES_KEPT) {
            block_on(group.purge(log_id(1, next - BATCHES_KEPT * load.batch)))?;
        }
    }
    Ok(next)
}

fn print(entries: u64, took: Duration, stats: &Stats) {
    let seconds = took.as_secs_f64();
    let per_second = |count: u64| count as f64 / seconds;
    println!("entries/s       {:.0}", per_second(entries));
    println!("MiB/s           {:.1}", per_second(stats.appended_bytes) / f64::from(1 << 20));
    println!("batches         {} ({:.0}/s)", stats.batches, per_second(stats.batches));
    println!("entries/batch   {:.1}", entries as f64 / stats.batches as f64);
    println!("bytes/sync      {}", stats.appended_bytes / stats.batches.max(1));
    println!("write and sync  {} us", stats.sync_us / stats.batches.max(1));
    println!("segments        {}", stats.segments);
}

fn main() -> Result<(), Failure> {
    let groups = argument(1, 16_u32)?;
    let (batch, payload_bytes) = (argument(2, 64_u64)?.max(1), argument(3, 1_024_usize)?);
    let seconds = argument(4, 5_u64)?;
    let folder = argument(5, std::env::temp_dir())?;
    let dir = tempfile::tempdir_in(PathBuf::from(&folder))?;
    let options = Options { disk_low_bytes: 0, ..Options::default() };
    let (log, _) = Log::open(Arc::new(RealFileSystem::default()), dir.path(), options)?;
    println!("{groups} groups, batches of {batch}, {payload_bytes} B, {seconds} s, in {}", folder.display());
    // Spare segments are made before the measurement, as they are in a node that has been running.
    std::thread::sleep(Duration::from_secs(3));
    let started = Instant::now();
    let load = Load { batch, payload_bytes, until: started + Duration::from_secs(seconds) };
    let threads = (1..=groups).map(|id| {
        let group = log.group::<TypeConfig>(GroupId(id));
        std::thread::spawn(move || append(group, load))
    });
    let mut entries = 0;
    for thread in threads.collect::<Vec<_>>() {
        entries += thread.join().map_err(|_| "a group panicked")??;
    }
    print(entries, started.elapsed(), &log.stats());
    Ok(())
}
