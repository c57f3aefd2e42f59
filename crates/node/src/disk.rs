//! Reads of the log that may miss its cache.

use leasehold_raft_log::Log;
use tokio::task::{JoinError, spawn_blocking};

/// Reads on a thread that may wait, unless nothing has to be waited for.
///
/// # Errors
/// When the runtime is going away.
pub async fn read<T: Send + 'static>(
    log: &Log,
    read: impl FnOnce(&Log) -> T + Send + 'static,
) -> Result<T, JoinError> {
    if !log.reads_may_wait() {
        return Ok(read(log));
    }
    let log = log.clone();
    spawn_blocking(move || read(&log)).await
}
