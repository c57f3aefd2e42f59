//! A producer in one life after the other: of groups or not, with one batch under way or eight.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::{Error, Pending, Producer, Reason, Sent};
use leasehold_histories::history::{Op, Outcome};
use leasehold_histories::random::Random;
use leasehold_histories::workload::{Workload, is_one_by_one, is_ordered, life_of_producer, row_of_stream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::super::{RETRY_PAUSE, Stage, outcome};
use super::end;
use crate::workload::{GROUPS_QUEUE, QUEUE, message};

/// Few, so that what is handed over at once is of several batches.
const BATCH_MESSAGES_MAX: usize = 4;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
const BATCHES_MAX: u32 = 8;
/// Messages that are handed over without a pause.
const BURST_MAX: u64 = 12;

/// Sends until the run is over.
pub async fn producer(stage: Arc<Stage>, number: u64, mut random: Random) {
    for lived in 0.. {
        if stage.is_over.load(Ordering::Relaxed) {
            return;
        }
        let call = stage.calls.read().await;
        live(&stage, life_of_producer(number, lived), &mut random).await;
        drop(call);
        sleep(RETRY_PAUSE).await;
    }
}

/// From its start until everything it sent has an answer, or is not waited for.
async fn live(stage: &Arc<Stage>, life: u64, random: &mut Random) {
    let Ok(client) = stage.client() else { return };
    let queue = if is_ordered(life) { GROUPS_QUEUE } else { QUEUE };
    let batches_max = if is_one_by_one(life) { 1 } else { BATCHES_MAX as usize };
    let producer = client
        .queue(queue)
        .producer()
        .batch(BATCH_MESSAGES_MAX, BATCH_BYTES_MAX)
        .batches_in_flight(batches_max)
        .start();
    let mut answers = JoinSet::new();
    send(stage, &producer, life, random, &mut answers).await;
    let what = format!("a producer in life {life}");
    match random.below(3) {
        0 => {
            end(stage, &what, producer.close()).await;
        }
        1 => drop(producer),
        _ => {
            drop(producer);
            answers.shutdown().await;
        }
    }
    end(stage, &what, async { while answers.join_next().await.is_some() {} }).await;
    // What is left has no answer, and says so before the history is read.
    answers.shutdown().await;
}

async fn send(
    stage: &Arc<Stage>,
    producer: &Producer,
    life: u64,
    random: &mut Random,
    answers: &mut JoinSet<()>,
) {
    let end = Instant::now() + Duration::from_millis(500 + random.below(3_500));
    // A message of a group waits for those before it, so that fewer can be worked off.
    let pauses = if is_ordered(life) { 3 } else { 1 };
    let pause_ms_max = pauses * Workload::Streams.pause_ms_max();
    let mut place = 0;
    while Instant::now() < end && !stage.is_over.load(Ordering::Relaxed) {
        for _ in 0..1 + random.below(BURST_MAX) {
            let row = row_of_stream(life, place);
            place += 1;
            let sending =
                Sending { stage: stage.clone(), row, began_us: stage.recorder.now_us(), is_told: false };
            match producer.enqueue(message(stage.workload, row, stage.bodies)).await {
                Ok(pending) => drop(answers.spawn(answer(sending, pending))),
                Err(error) => sending.ended(&Err(error)),
            }
        }
        sleep(Duration::from_millis(random.below(pause_ms_max))).await;
    }
}

async fn answer(sending: Sending, pending: Pending) {
    let result = pending.await;
    sending.ended(&result);
}

/// A message that was handed over; nobody knows what became of it when this is dropped without an answer.
struct Sending {
    stage: Arc<Stage>,
    row: u64,
    began_us: u64,
    is_told: bool,
}

impl Sending {
    fn ended(mut self, result: &Result<Sent, Error>) {
        if result.as_ref().is_err_and(|error| error.reason == Reason::QueueFull) {
            self.stage.full.fetch_add(1, Ordering::Relaxed);
        }
        let message = result.as_ref().ok().map(|sent| (sent.id.partition, sent.id.sequence));
        self.tell(outcome(result.as_ref()), message);
    }

    fn tell(&mut self, outcome: Outcome, message: Option<(u32, u64)>) {
        self.is_told = true;
        let (row, began_us, ended_us) = (self.row, self.began_us, self.stage.recorder.now_us());
        self.stage.recorder.add(Op::Send { row, began_us, ended_us, outcome, message });
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(Outcome::Unknown, None);
        }
    }
}
