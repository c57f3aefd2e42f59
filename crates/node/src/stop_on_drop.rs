//! A task that belongs to something, and ends with it.

use tokio::task::AbortHandle;

/// Ends a task when it is dropped.
pub struct StopOnDrop(pub AbortHandle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
