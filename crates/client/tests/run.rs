//! Handlers: what they decide, what goes wrong in them, groups, and endings.

#![allow(clippy::unwrap_used, reason = "it is a test")]

mod fake;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Node, eventually};
use leasehold_client::{
    CancellationToken, ConsumerBuilder, Counts, Error, Failure, Job, QueueKind, Reason, RetryPolicy,
};
use tokio::task::JoinHandle;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

struct Running {
    task: JoinHandle<Result<(), Error>>,
    stop: CancellationToken,
    counts: Box<dyn Fn() -> Counts>,
}

impl Running {
    async fn stop(self) -> Counts {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        (self.counts)()
    }
}

fn run<H, F>(consumer: ConsumerBuilder, handler: H) -> Running
where
    H: Fn(Job) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let stop = CancellationToken::new();
    let counters = consumer.counters();
    let task = tokio::spawn(consumer.stop_on(stop.clone()).run(handler));
    Running { task, stop, counts: Box::new(move || counters.now()) }
}

#[tokio::test]
async fn a_handler_decides_what_becomes_of_a_message() {
    let node = Node::start().await;
    node.shared.offer(&["good", "later", "error", "panic", "bad", "slow", "not yet"], LONG);
    let retry = RetryPolicy::new(Duration::from_secs(3), LONG).jitter_percent(0);
    let consumer = node.client().queue("q").consumer().concurrency(2).retry(retry).handler_timeout(SHORT);
    let running = run(consumer, |job| async move {
        match job.body.as_ref() {
            b"not yet" => Err(Failure::postpone(Duration::from_secs(7), "its time has not come")),
            b"later" => Err(Failure::retry_after(Duration::from_secs(9), "busy")),
            b"error" => Ok(std::str::from_utf8(&job.body)?.parse::<u32>().map(drop)?),
            b"panic" => panic!("on purpose"),
            b"bad" => Err(Failure::reject("never")),
            b"slow" => std::future::pending().await,
            _ => Ok(()),
        }
    });
    eventually("all are settled", || {
        node.shared.released().len() + node.shared.acked().len() + node.shared.rejected().len() == 7
    })
    .await;
    assert_eq!(node.shared.acked(), [b"good".to_vec()].into());
    let released = node.shared.released();
    assert_eq!((released[b"later".as_ref()], released[b"error".as_ref()]), (9_000, 3_000));
    assert_eq!((released[b"panic".as_ref()], released[b"slow".as_ref()]), (3_000, 3_000));
    assert_eq!(released[b"not yet".as_ref()], 7_000);
    assert_eq!(node.shared.untouched(), [b"not yet".to_vec()].into());
    assert_eq!(node.shared.rejected(), [(b"bad".to_vec(), "never".to_owned())].into());
    let counts = running.stop().await;
    assert_eq!((counts.started, counts.acked, counts.retried, counts.rejected), (7, 1, 4, 1));
    assert_eq!((counts.postponed, counts.panicked, counts.timed_out, counts.unsettled), (1, 1, 1, 0));
}

#[tokio::test]
async fn a_handler_that_panics_before_its_future_is_contained_too() {
    let node = Node::start().await;
    node.shared.offer(&["panic", "good"], LONG);
    let running = run(node.client().queue("q").consumer(), |job| {
        assert_ne!(job.body, "panic");
        async { Ok(()) }
    });
    eventually("the other is done", || !node.shared.acked().is_empty()).await;
    assert_eq!(running.stop().await.panicked, 1);
}

#[tokio::test]
async fn no_more_are_handled_at_a_time_than_was_said() {
    let node = Node::start().await;
    let names: Vec<String> = (0..60).map(|number| format!("m{number}")).collect();
    node.shared.offer(&names.iter().map(String::as_str).collect::<Vec<_>>(), LONG);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let running = run(node.client().queue("q").consumer().concurrency(5), move |_| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&seen));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    eventually("all are done", || node.shared.acked().len() == 60).await;
    running.stop().await;
    assert_eq!(most.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_handler_sees_its_lease_and_is_told_when_it_is_lost() {
    let node = Node::start().await;
    node.shared.state().stale.insert(b"taken".to_vec());
    node.shared.offer(&["taken"], LONG / 30);
    let seen = Arc::new(Mutex::new(None));
    let told = Arc::clone(&seen);
    let running = run(node.client().queue("q").consumer().lease(LONG), move |job| {
        let told = Arc::clone(&told);
        async move {
            let left = job.deadline().saturating_duration_since(tokio::time::Instant::now());
            job.cancelled().cancelled().await;
            *told.lock().unwrap() = Some((left, job.receive_count, job.fencing_token));
            Ok(())
        }
    });
    eventually("it is told", || seen.lock().unwrap().is_some()).await;
    let (left, receive_count, fencing_token) = seen.lock().unwrap().unwrap();
    assert!(left <= LONG / 30);
    assert_eq!((receive_count, fencing_token), (1, 1));
    let counts = running.stop().await;
    assert_eq!((counts.acked, counts.unsettled), (0, 1));
}

#[tokio::test]
async fn a_rejection_without_a_dead_letter_queue_is_a_retry() {
    let node = Node::start().await;
    node.shared.state().has_no_dead_letter_queue = true;
    node.shared.offer(&["bad"], LONG);
    let retry = RetryPolicy::new(Duration::from_secs(3), LONG).jitter_percent(0);
    let running =
        run(node.client().queue("q").consumer().retry(retry), |_| async { Err(Failure::reject("no")) });
    eventually("it is released", || node.shared.released().contains_key(b"bad".as_ref())).await;
    assert_eq!(node.shared.released()[b"bad".as_ref()], 3_000);
    let counts = running.stop().await;
    assert_eq!((counts.rejected, counts.retried), (0, 1));
}

/// A handler that writes down what it began, and fails on what is named so.
fn noting(
    notes: &Arc<Mutex<Vec<String>>>,
) -> impl Fn(Job) -> futures::future::BoxFuture<'static, Result<(), Failure>> + use<> {
    let notes = Arc::clone(notes);
    move |job| {
        let notes = Arc::clone(&notes);
        Box::pin(async move {
            let body = String::from_utf8(job.body.to_vec()).unwrap();
            notes.lock().unwrap().push(body.clone());
            tokio::time::sleep(Duration::from_millis(10)).await;
            if body.starts_with("fails") { Err(Failure::retry("so")) } else { Ok(()) }
        })
    }
}

#[tokio::test]
async fn groups_are_in_order_and_beside_each_other() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Fifo, LONG);
    let names: Vec<(String, String)> =
        (0..60).map(|number| (format!("{}-{number:02}", number % 4), (number % 4).to_string())).collect();
    let offered: Vec<_> = names.iter().map(|(name, group)| (name.as_str(), Some(group.as_str()))).collect();
    node.shared.offer_groups(&offered, LONG);
    let notes = Arc::new(Mutex::new(Vec::new()));
    let running = run(node.client().queue("q").consumer().concurrency(8).buffer(52), noting(&notes));
    eventually("all are done", || node.shared.acked().len() == 60).await;
    running.stop().await;
    let notes = notes.lock().unwrap();
    for group in 0..4 {
        let of_group: Vec<_> = notes.iter().filter(|name| name.starts_with(&format!("{group}-"))).collect();
        assert!(of_group.is_sorted() && of_group.len() == 15, "{of_group:?}");
    }
    assert!(!notes.is_sorted(), "groups were beside each other");
}

#[tokio::test]
async fn what_is_behind_a_failure_of_its_group_goes_back_unhandled() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Fifo, LONG);
    let offered = [("a1", "a"), ("fails a2", "a"), ("a3", "a"), ("a4", "a"), ("b1", "b"), ("b2", "b")];
    node.shared.offer_groups(&offered.map(|(name, group)| (name, Some(group))), LONG);
    let notes = Arc::new(Mutex::new(Vec::new()));
    let running = run(node.client().queue("q").consumer(), noting(&notes));
    eventually("all are settled", || node.shared.released().len() + node.shared.acked().len() == 6).await;
    assert_eq!(node.shared.acked(), ["a1", "b1", "b2"].map(|name| name.as_bytes().to_vec()).into());
    let released = node.shared.released();
    assert_eq!((released[b"a3".as_ref()], released[b"a4".as_ref()]), (0, 0));
    assert_eq!(running.stop().await.returned, 2);
    assert!(!notes.lock().unwrap().iter().any(|name| name == "a3" || name == "a4"));
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

#[tokio::test]
async fn a_group_goes_on_after_what_panics_when_it_is_dropped() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Fifo, LONG);
    let offered = [("its future", "a"), ("a2", "a"), ("what it panics with", "b"), ("b2", "b")];
    node.shared.offer_groups(&offered.map(|(name, group)| (name, Some(group))), LONG);
    let running = run(node.client().queue("q").consumer().handler_timeout(SHORT), |job| async move {
        match job.body.as_ref() {
            b"its future" => {
                let _bomb = Bomb;
                std::future::pending().await
            }
            b"what it panics with" => std::panic::panic_any(Bomb),
            _ => Ok(()),
        }
    });
    eventually("all are given back", || node.shared.released().len() == 4).await;
    node.shared.offer_groups(&[("a3", Some("a")), ("b3", Some("b"))], LONG);
    eventually("the groups go on", || node.shared.acked().len() == 2).await;
    let counts = running.stop().await;
    assert_eq!((counts.started, counts.panicked, counts.returned, counts.acked), (4, 2, 2, 2));
}

#[tokio::test]
async fn tenants_of_a_standard_queue_do_not_wait_for_each_other() {
    let node = Node::start().await;
    node.shared.describe(&node.address, QueueKind::Standard, LONG);
    node.shared.offer_groups(&[("stuck", Some("t")), ("next", Some("t"))], LONG);
    let running = run(node.client().queue("q").consumer().stop_within(SHORT), |job| async move {
        if job.body == "stuck" {
            job.cancelled().cancelled().await;
            return Err(Failure::retry("it was told to end"));
        }
        Ok(())
    });
    eventually("the other is done", || node.shared.acked().len() == 1).await;
    running.stop().await;
}

/// Its place is free when the stop is told, and the next message is there.
#[tokio::test]
async fn nothing_begins_after_a_stop() {
    for _ in 0..8 {
        let node = Node::start().await;
        node.shared.offer(&["first", "second", "third"], LONG);
        let consumer = node.client().queue("q").consumer().concurrency(1).buffer(20);
        let (stop, counters) = (CancellationToken::new(), consumer.counters());
        let told = stop.clone();
        let handled = consumer.stop_on(stop).run(move |_| {
            told.cancel();
            async { Ok(()) }
        });
        handled.await.unwrap();
        let counts = counters.now();
        assert_eq!((counts.started, counts.acked), (1, 1));
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_handled_and_gives_back_what_waits() {
    let node = Node::start().await;
    node.shared.offer(&["handled", "waits"], LONG);
    let (begun, go_on) = (CancellationToken::new(), CancellationToken::new());
    let (tell, wait) = (begun.clone(), go_on.clone());
    let running = run(node.client().queue("q").consumer().concurrency(1).buffer(1), move |_| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.cancel();
            wait.cancelled().await;
            Ok(())
        }
    });
    begun.cancelled().await;
    eventually("both are pushed", || node.shared.state().pushed == 2).await;
    running.stop.cancel();
    eventually("one is released", || node.shared.released().contains_key(b"waits".as_ref())).await;
    assert!(!running.task.is_finished());
    go_on.cancel();
    let counts = running.stop().await;
    assert_eq!((counts.acked, counts.started), (1, 1));
    assert_eq!(node.shared.acked(), [b"handled".to_vec()].into());
}

#[tokio::test]
async fn handlers_that_do_not_end_are_told_and_then_dropped_and_their_messages_go_back() {
    let node = Node::start().await;
    node.shared.offer(&["heeds", "stays"], LONG);
    let begun = Arc::new(AtomicUsize::new(0));
    // What the handler of the second started, and nobody ends.
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (seen, keep) = (Arc::clone(&begun), Arc::clone(&kept));
    let running = run(node.client().queue("q").consumer().stop_within(SHORT), move |job| {
        let (begun, keep) = (Arc::clone(&seen), Arc::clone(&keep));
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            if job.body == "heeds" {
                job.cancelled().cancelled().await;
                return Err(Failure::retry_after(Duration::from_secs(7), "the program ends"));
            }
            keep.lock().unwrap().push(job.clone());
            std::future::pending().await
        }
    });
    eventually("both are begun", || begun.load(Ordering::SeqCst) == 2).await;
    running.stop().await;
    let released = node.shared.released();
    assert_eq!((released[b"heeds".as_ref()], released[b"stays".as_ref()]), (7_000, 0));
    assert_eq!(kept.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_run_that_is_dropped_gives_everything_back() {
    let node = Node::start().await;
    node.shared.offer(&["a", "b"], LONG);
    let running = run(node.client().queue("q").consumer().concurrency(1), |_| std::future::pending());
    eventually("both are pushed", || node.shared.state().pushed == 2).await;
    running.task.abort();
    eventually("both are released", || node.shared.released().len() == 2).await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_ends_the_run() {
    let node = Node::start().await;
    let error = node.client().queue("unknown").consumer().run(|_| async { Ok(()) }).await.unwrap_err();
    assert_eq!(error.reason, Reason::UnknownQueue);
}
