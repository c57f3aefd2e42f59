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

    use crate::{GroupId, Log, Options, SimulatedFileSystem, Survival};

    #[test]
    fn nothing_is_written_before_it_is_told_to() {
        let fs = SimulatedFileSystem::new();
        let open = |fs: &SimulatedFileSystem| {
            Log::open_driven(
                Arc::new(fs.clone()),
                Path::new("log"),
                Options { segment_bytes: 4096, ..Options::default() },
            )
        };
        let (log, mut driver) = open(&fs).unwrap();
        let saved = log.save_snapshot(GroupId(1), Bytes::from_static(b"meta"), Bytes::from_static(b"state"));
        let mut saved = Box::pin(saved);
        assert!(saved.as_mut().now_or_never().is_none() && driver.has_work());
        driver.write();
        assert!(!driver.has_work() && saved.as_mut().now_or_never().is_none());
        driver.keep();
        assert!(saved.as_mut().now_or_never().unwrap().is_ok());
        let (found, _) = open(&fs.after_power_loss(Survival::Nothing, 0)).unwrap();
        assert_eq!(found.load_snapshot(GroupId(1)).unwrap().unwrap().bytes, "state");
    }
}
