//! Producers and consumers of the client crate, each in one life after the other. A life ends in good order, is dropped in the middle,
//! or, of a consumer, is killed with a runtime of its own, as a process is.

mod consumer;
mod handlers;
mod hold;
mod producer;

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::timeout;

use super::Stage;

pub use consumer::consumer;
pub use producer::producer;

/// What an end may take: the answers that are waited for, and a busy machine.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// Waits for an end that has to come; writes down what does not.
async fn end<T>(stage: &Stage, what: &str, ends: impl Future<Output = T>) -> Option<T> {
    let ended = timeout(END_PATIENCE, ends).await.ok();
    if ended.is_none() {
        let story = format!("{what}: no end within {END_PATIENCE:?}");
        stage.endless.lock().unwrap_or_else(PoisonError::into_inner).push(story);
    }
    ended
}
