//! A message in the hands of a consumer, as the history has it: a grant when it is handed out; the work on it and what was asked under
//! its receipt when it is let go, however that comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_client::{Error, Message};
use leasehold_histories::history::{MessageId, Op, Outcome};
use leasehold_histories::random::Random;
use leasehold_histories::workload::LEASE;
use tokio::time::{Instant, sleep};

use super::super::{Stage, outcome, row_of};

/// How often a handler asks how long its lease lasts.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// One life of a consumer.
pub struct Life {
    pub stage: Arc<Stage>,
    pub queue: &'static str,
    pub seed: u64,
    pub consumer: u64,
    pub began_us: u64,
}

/// What a handler decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Ack,
    /// Without waiting for its answer.
    AckAndGo,
    Release(Duration),
    Postpone(Duration),
    Reject,
    GiveBack,
    /// Neither; the client crate releases it.
    Drop,
}

impl Life {
    /// What is done with a message and how long that takes. It follows from the seed and the token, so the same message comes to another
    /// end the next time.
    pub fn decide(&self, message: &Message) -> (Decision, Duration) {
        if self.stage.is_over.load(Ordering::Relaxed) {
            return (Decision::Ack, Duration::ZERO);
        }
        // Tokens are of a partition.
        let seed = self.seed.wrapping_mul(64).wrapping_add(message.id.partition.into());
        let mut random = Random::new(seed, message.fencing_token);
        let takes = match random.below(100) {
            0..4 => LEASE + Duration::from_millis(300 + random.below(1_500)),
            _ => Duration::from_millis(random.below(20)),
        };
        let decision = match random.below(100) {
            0..6 => Decision::Release(Duration::from_millis(random.below(300))),
            6..8 => Decision::Postpone(Duration::from_millis(random.below(300))),
            8..11 => Decision::Reject,
            11..17 => Decision::GiveBack,
            17..22 => Decision::Drop,
            22..27 => Decision::AckAndGo,
            _ => Decision::Ack,
        };
        (decision, takes)
    }
}

/// What was asked under a receipt.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Ack,
    Reject,
    Release(Duration),
}

/// Drop it before what it tells of: what is released meanwhile is so after its end.
pub struct Hold {
    life: Arc<Life>,
    row: u64,
    message: MessageId,
    grant: u64,
    began_us: Option<u64>,
    /// The end of the lease as it was told the last time.
    believed_us: u64,
    asked: Option<(Asked, u64)>,
    outcome: Outcome,
}

impl Hold {
    /// Writes down that the message was handed out just now.
    pub fn new(life: &Arc<Life>, message: &Message) -> Self {
        let recorder = &life.stage.recorder;
        let (row, grant) = (row_of(message), message.fencing_token);
        let message_id = (message.id.partition, message.id.sequence);
        let lease_until_us = recorder.us(message.lease_until.into_std());
        recorder.add(Op::Grant {
            row,
            message: message_id,
            grant,
            receive_count: message.receive_count,
            // A stream asks as long as it lives.
            began_us: life.began_us,
            ended_us: recorder.now_us(),
            lease_until_us,
        });
        let (began_us, asked, outcome) = (None, None, Outcome::Unknown);
        let (life, message) = (Arc::clone(life), message_id);
        Self { life, row, message, grant, began_us, believed_us: 0, asked, outcome }
    }

    fn now_us(&self) -> u64 {
        self.life.stage.recorder.now_us()
    }

    /// Works on it for so long, and looks at what is left of its lease, as `lease_left` tells.
    pub async fn work(&mut self, takes: Duration, lease_left: impl Fn() -> Duration) {
        self.began_us = Some(self.now_us());
        let end = Instant::now() + takes;
        loop {
            // Before, so that it is no later than what was left then.
            let now_us = self.now_us();
            self.look(now_us, lease_left());
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            sleep(rest.min(LOOK_AGAIN)).await;
        }
    }

    /// A lease that is lost was believed in until now at most.
    fn look(&mut self, now_us: u64, left: Duration) {
        let is_lost = left.is_zero();
        let until_us = now_us + left.as_micros() as u64;
        self.believed_us = if is_lost { self.believed_us.min(now_us) } else { until_us };
    }

    /// Something is asked for from now on.
    pub fn ask(&mut self, decision: Decision) {
        let asked = match decision {
            Decision::Ack | Decision::AckAndGo => Asked::Ack,
            Decision::Reject => Asked::Reject,
            Decision::Release(delay) | Decision::Postpone(delay) => Asked::Release(delay),
            Decision::GiveBack | Decision::Drop => Asked::Release(Duration::ZERO),
        };
        self.asked = Some((asked, self.now_us()));
    }

    /// And answered.
    pub fn answered(&mut self, result: &Result<(), Error>) {
        self.outcome = outcome(result.as_ref());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let ended_us = self.now_us();
        let (message, grant, outcome) = (self.message, self.grant, self.outcome);
        let (asked, asked_us) = self.asked.unwrap_or((Asked::Release(Duration::ZERO), ended_us));
        let recorder = &self.life.stage.recorder;
        if let Some(began_us) = self.began_us {
            recorder.add(Op::Handled {
                row: self.row,
                message,
                grant,
                consumer: self.life.consumer,
                began_us,
                held_us: self.believed_us.min(asked_us),
                until_us: asked_us,
            });
        }
        let began_us = asked_us;
        recorder.add(match asked {
            Asked::Ack => Op::Ack { message, grant, began_us, ended_us, outcome },
            Asked::Reject => Op::Reject { message, grant, began_us, ended_us, outcome },
            Asked::Release(delay) => {
                let delay_us = delay.as_micros() as u64;
                Op::Release { message, grant, began_us, ended_us, outcome, delay_us }
            }
        });
    }
}
