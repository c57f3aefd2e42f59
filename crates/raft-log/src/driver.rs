//! A log without threads, for a simulation: the writer and the keeper work when they are told to, and between two steps nothing moves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::compaction::Stuck;
use crate::housekeeper;
use crate::log::Shared;
use crate::writer::Writer;

/// One pass of the keeper; it ends with what could not be moved.
type Pass = Pin<Box<dyn Future<Output = Stuck> + Send>>;

enum Keeper {
    Idle(Stuck),
    /// Waits for the writer.
    At(Pass),
}

/// Takes the place of the threads of one log.
pub struct Driver {
    shared: Arc<Shared>,
    writer: Writer,
    keeper: Option<Keeper>,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer) -> Self {
        Self { shared, writer, keeper: Some(Keeper::Idle(Stuck::default())) }
    }

    /// Whether something waits to be written.
    pub fn has_work(&self) -> bool {
        !self.shared.queue.is_empty()
    }

    /// Writes and syncs one batch, and tells everybody who waits for it.
    pub fn write(&mut self) {
        self.writer.write_waiting();
    }

    /// Lets the keeper go on until it waits for the writer, or has done what there is to do.
    pub fn keep(&mut self) {
        let mut pass = match self.keeper.take() {
            Some(Keeper::At(pass)) => pass,
            Some(Keeper::Idle(stuck)) => self.begin(stuck),
            // A pass that panicked.
            None => return,
        };
        let mut context = Context::from_waker(Waker::noop());
        self.keeper = Some(match pass.as_mut().poll(&mut context) {
            Poll::Ready(stuck) => Keeper::Idle(stuck),
            Poll::Pending => Keeper::At(pass),
        });
    }

    fn begin(&self, mut stuck: Stuck) -> Pass {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            if let Some(asked) = shared.housekeeper.asked() {
                housekeeper::pass(&shared, asked, &mut stuck).await;
            }
            stuck
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use futures::FutureExt as _;

    use super::Driver;
    use crate::{GroupId, Log, LogError, Options, SimulatedFileSystem, Survival};

    fn open(fs: &SimulatedFileSystem) -> (Log, Driver) {
        let options = Options { segment_bytes: 4096, ..Options::default() };
        Log::open_driven(Arc::new(fs.clone()), Path::new("log"), options).unwrap()
    }

    #[test]
    fn nothing_is_written_before_it_is_told_to() {
        let fs = SimulatedFileSystem::new();
        let (log, mut driver) = open(&fs);
        let saved = log.save_snapshot(GroupId(1), Bytes::from_static(b"meta"), Bytes::from_static(b"state"));
        let mut saved = Box::pin(saved);
        assert!(saved.as_mut().now_or_never().is_none() && driver.has_work());
        driver.write();
        assert!(!driver.has_work() && saved.as_mut().now_or_never().is_none());
        driver.keep();
        assert!(saved.as_mut().now_or_never().unwrap().is_ok());
        let (found, _) = open(&fs.after_power_loss(Survival::Nothing, 0));
        assert_eq!(found.load_snapshot(GroupId(1)).unwrap().unwrap().bytes, "state");
    }

    /// Whoever builds a snapshot may outlive the replica by a moment.
    #[test]
    fn a_snapshot_that_is_being_saved_does_not_outlive_its_group() {
        let (log, mut driver) = open(&SimulatedFileSystem::new());
        let group = GroupId(1);
        let mut saved = Box::pin(log.save_snapshot(group, Bytes::new(), Bytes::from_static(b"state")));
        assert!(saved.as_mut().now_or_never().is_none());
        driver.write();
        assert!(saved.as_mut().now_or_never().is_none(), "the keeper has been asked");
        let mut removed = Box::pin(log.remove_group(group));
        assert!(removed.as_mut().now_or_never().is_none());
        driver.write();
        assert!(removed.as_mut().now_or_never().is_none(), "the keeper has been asked");
        driver.keep();
        assert!(matches!(saved.as_mut().now_or_never(), Some(Err(LogError::Removed { .. }))));
        assert!(removed.as_mut().now_or_never().unwrap().is_ok());
        assert_eq!(log.load_snapshot(group).unwrap(), None);
        let late = log.save_snapshot(group, Bytes::new(), Bytes::from_static(b"late"));
        assert!(matches!(late.now_or_never(), Some(Err(LogError::Removed { .. }))));
        assert!(log.groups().is_empty());
    }

    /// The removal of the file waits for its turn behind the saves that were asked for before.
    #[test]
    fn a_snapshot_that_was_saved_goes_with_its_group() {
        let (log, mut driver) = open(&SimulatedFileSystem::new());
        let group = GroupId(1);
        let mut saved = Box::pin(log.save_snapshot(group, Bytes::new(), Bytes::from_static(b"state")));
        assert!(saved.as_mut().now_or_never().is_none());
        driver.write();
        assert!(saved.as_mut().now_or_never().is_none());
        driver.keep();
        assert!(saved.as_mut().now_or_never().unwrap().is_ok());
        let mut removed = Box::pin(log.remove_group(group));
        assert!(removed.as_mut().now_or_never().is_none());
        driver.write();
        assert!(removed.as_mut().now_or_never().is_none());
        driver.keep();
        assert!(removed.as_mut().now_or_never().unwrap().is_ok());
        assert_eq!(log.load_snapshot(group).unwrap(), None);
    }
}
