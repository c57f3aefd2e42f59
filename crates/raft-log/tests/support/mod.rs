//! What the tests of the log share: the types of Raft, small logs, and futures that are waited for in place.
#![allow(dead_code, reason = "no test uses all of it")]

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::channel::oneshot::Canceled;
use futures::executor::block_on;
use futures::future::BoxFuture;
use leasehold_raft_log::testing::TypeConfig;
use leasehold_raft_log::{
    Entry, FileSystem, GroupId, GroupLog, Log, LogId, OpenError, Options, Payload, SimulatedFileSystem,
    log_id,
};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

pub type Group = GroupLog<TypeConfig>;
pub type Answer = BoxFuture<'static, io::Result<()>>;

pub const DIR: &str = "log";

pub fn options() -> Options {
    Options {
        segment_bytes: 4 * 1024,
        cache_bytes: 2 * 1024,
        spare_segments: 1,
        disk_low_bytes: 0,
        ..Options::default()
    }
}

pub fn open(fs: &(impl FileSystem + Clone + 'static)) -> Result<Log, OpenError> {
    open_with(fs, options())
}

pub fn open_with(fs: &(impl FileSystem + Clone + 'static), options: Options) -> Result<Log, OpenError> {
    Log::open(Arc::new(fs.clone()), Path::new(DIR), options).map(|(log, _)| log)
}

pub fn entry(term: u64, index: u64, payload: impl Into<Bytes>) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Payload::copy_of(&payload.into())) }
}

/// Appends without waiting for the disk.
pub fn start_append(group: &mut Group, entries: Vec<Entry>) -> io::Result<Answer> {
    let (sender, receiver) = TypeConfig::oneshot();
    block_on(group.append(entries, IOFlushed::signal(sender)))?;
    Ok(Box::pin(async move {
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => Err(io::Error::other(Canceled)),
        }
    }))
}

pub fn append(group: &mut Group, entries: Vec<Entry>) -> io::Result<()> {
    block_on(start_append(group, entries)?)
}

pub fn read_all(group: &mut Group) -> io::Result<Vec<Entry>> {
    block_on(group.try_get_log_entries(0..))
}

pub fn last_log_id(group: &mut Group) -> Option<LogId> {
    block_on(group.get_log_state()).unwrap().last_log_id
}

/// The segment that the head of the log names, as FORMAT.md has it.
pub fn head_segment(fs: &SimulatedFileSystem) -> u64 {
    let bytes = fs.read(&Path::new(DIR).join("head"));
    u64::from_le_bytes(bytes[32..40].try_into().unwrap())
}

pub fn group(log: &Log, id: u32) -> Group {
    log.group::<TypeConfig>(GroupId(id))
}

/// Splitmix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, len: usize) -> Bytes {
        (0..len).map(|_| self.next() as u8).collect::<Vec<_>>().into()
    }
}
