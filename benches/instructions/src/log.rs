//! The log of a node, written by hand: no other thread takes part.

use std::sync::Arc;

use futures::executor::block_on;
use leasehold_raft_log::testing::TypeConfig;
use leasehold_raft_log::{Entry, GroupId, Log, Options, Payload, RealFileSystem, log_id};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use crate::BATCH;

/// Of a message with 128 bytes of body.
const MESSAGE_BYTES: usize = 144;

/// # Panics
/// When the temporary folder cannot be written: there is nothing to measure then.
pub fn append_and_read(rounds: u32) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let opened = Log::open_driven(Arc::new(RealFileSystem::default()), dir.path(), Options::default());
    let (log, mut driver) = opened.expect("an empty folder is a log");
    let mut group = log.group::<TypeConfig>(GroupId(1));
    let payload = Payload::copy_of(&[7; BATCH as usize * MESSAGE_BYTES]);
    for index in 1..=u64::from(rounds) {
        let entry = Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(payload.clone()) };
        let (flushed, is_flushed) = TypeConfig::oneshot();
        block_on(group.append([entry], IOFlushed::signal(flushed))).expect("the log takes entries");
        driver.write();
        block_on(is_flushed).expect("an answer").expect("a write");
        let read = block_on(group.try_get_log_entries(index..=index)).expect("the entry is there");
        assert_eq!(read.len(), 1);
        log.retain(GroupId(1), index, payload.len_bytes() as u64);
        log.release(GroupId(1), index, payload.len_bytes() as u64);
    }
}
