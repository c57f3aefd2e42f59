//! What every client did and was told: one operation a line, in JSON, so that it can be judged again.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::workload::Workload;

/// How an operation ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    NotDone,
    Unknown,
    Done,
}

/// One message of the queue: partition and sequence.
pub type MessageId = (u32, u64);

/// One operation. Times are microseconds since the start of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// The first line: what kind of run this is.
    Began {
        workload: Workload,
    },
    /// A row was sent; `message` is what the answer named.
    Send {
        row: u64,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
        message: Option<MessageId>,
    },
    /// A lease was granted; the client believes in it until `lease_until_us`.
    Grant {
        row: u64,
        message: MessageId,
        grant: u64,
        receive_count: u32,
        began_us: u64,
        ended_us: u64,
        lease_until_us: u64,
    },
    Ack {
        message: MessageId,
        grant: u64,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
    },
    /// Given back: ready again after a delay.
    Release {
        message: MessageId,
        grant: u64,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
        #[serde(default)]
        delay_us: u64,
    },
    /// Never again: to the dead-letter queue.
    Reject {
        message: MessageId,
        grant: u64,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
    },
    /// A consumer of the client crate worked on a message until `until_us`, and believed that it held its lease until `held_us`, which
    /// is not after that. Each life of a consumer has a number.
    Handled {
        row: u64,
        message: MessageId,
        grant: u64,
        consumer: u64,
        began_us: u64,
        held_us: u64,
        until_us: u64,
    },
    /// A lease was made to end so long after this.
    Extend {
        message: MessageId,
        grant: u64,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
        lease_us: u64,
    },
    /// The same request, with the same id, was answered twice: what it was, and what was answered.
    Repeat {
        request: String,
        first: Vec<String>,
        again: Vec<String>,
    },
    /// A queue of the workload about queues was made, deleted or looked for.
    Queue {
        queue: String,
        step: QueueStep,
        began_us: u64,
        ended_us: u64,
        outcome: Outcome,
    },
    /// A fault begins: its name, and what is done, for the reader.
    Fault {
        number: usize,
        at_us: u64,
        fault: String,
        what: String,
    },
    FaultEnded {
        number: usize,
        at_us: u64,
    },
    /// No fault is in force from now on, and senders go on: each of these partitions must serve again.
    Healed {
        at_us: u64,
        partitions: Vec<u32>,
    },
    /// A row was found in the dead-letter queue, as this message of it.
    DeadLetter {
        row: u64,
        message: MessageId,
        /// How often it was received before it died, as it says itself; 0 when it does not. Old histories do not have this.
        #[serde(default)]
        receive_count: Option<u32>,
    },
    /// The end: what the queue still held when everything was healed and drained, as its counters say.
    Remaining {
        messages: u64,
        #[serde(default)]
        bytes: u64,
    },
    /// The end: replicas that were compared, those that were too busy for it, and those that differ.
    Replicas {
        equal: u64,
        busy: Vec<String>,
        diverged: Vec<String>,
    },
}

/// What was done with a queue, and what the answer said when there was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueStep {
    /// By the one who owns the name.
    Create,
    /// By the one who owns the name.
    Delete,
    /// Anybody asked whether it is there, and how many messages it has.
    Look { messages: Option<u64> },
    /// The owner put messages in.
    Fill,
    /// At the end a node was asked for all queues.
    List { is_there: bool },
}

#[derive(Debug, Default)]
pub struct History {
    pub ops: Vec<Op>,
}

impl History {
    /// As the first line says.
    pub fn workload(&self) -> Workload {
        match self.ops.first() {
            Some(Op::Began { workload }) => *workload,
            _ => Workload::default(),
        }
    }

    /// # Errors
    /// When the file cannot be read or is no history.
    pub fn load(path: &Path) -> Result<Self, String> {
        let failed = |error: String| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let mut ops = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|error| failed(error.to_string()))?;
            ops.push(serde_json::from_str(&line).map_err(|error| failed(error.to_string()))?);
        }
        Ok(Self { ops })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for op in &self.ops {
            serde_json::to_writer(&mut file, op)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

/// Where all clients write.
pub struct Recorder {
    start: Instant,
    ops: Mutex<Vec<Op>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { start: Instant::now(), ops: Mutex::new(Vec::new()) }
    }
}

impl Recorder {
    pub fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_micros() as u64
    }

    pub fn now_us(&self) -> u64 {
        self.us(Instant::now())
    }

    pub fn add(&self, op: Op) {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner).push(op);
    }

    /// Looks at what was recorded so far.
    pub fn look<T>(&self, read: impl FnOnce(&[Op]) -> T) -> T {
        read(&self.ops.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn take(&self) -> History {
        History { ops: std::mem::take(&mut *self.ops.lock().unwrap_or_else(PoisonError::into_inner)) }
    }
}
