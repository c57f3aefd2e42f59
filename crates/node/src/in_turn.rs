//! Work that goes on side by side, and is begun in turn.
//!
//! Tasks that are spawned one after the other run in any order. Requests of one stream, or of one lane, have to be asked in the order
//! in which they came: messages of a group are stored in the order in which they are asked for.

use std::future::Future;

use futures::FutureExt as _;
use tokio::task::unconstrained;

/// Runs `work` as far as it goes without waiting, which asks what it has to ask, and has a task do the rest.
pub fn begin(work: impl Future<Output = ()> + Send + 'static) {
    let mut work = Box::pin(work);
    // The task polls it again, and so is woken for it.
    if unconstrained(work.as_mut()).now_or_never().is_none() {
        tokio::spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn what_is_begun_first_asks_first_and_everything_is_done() {
        let (asked, mut asks) = unbounded_channel();
        let (done, mut ends) = unbounded_channel();
        for number in 0..10 {
            let (asked, done) = (asked.clone(), done.clone());
            begin(async move {
                asked.send(number).unwrap();
                if number % 3 > 0 {
                    yield_now().await;
                }
                done.send(number).unwrap();
            });
        }
        for number in 0..10 {
            assert_eq!(asks.try_recv(), Ok(number));
        }
        drop(done);
        let mut all = Vec::new();
        while let Some(number) = ends.recv().await {
            all.push(number);
        }
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }
}
