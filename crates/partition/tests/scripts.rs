//! Runs `tests/scripts/*.txt`: commands, a line of dashes, and the output they must have.
//!
//! Source: the form follows etcd raft's `testdata`; each script names the behaviour it fixes. After a wanted change, write the
//! output anew with `REGENERATE=1 cargo test -p leasehold-partition --test scripts` and read the difference.
//!
//! ```text
//! send 1 body=a            queue 1; words without `=` come first
//! receive 1 n=1 lease=100  prints sequence.grant, the receipt of later commands
//! ----
//! sent 1
//! 1.1 receives=1 until=1100
//! ```
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

mod rig;

use std::collections::BTreeMap;
use std::fmt::Write;

use leasehold_partition::*;
use rig::Rig;

/// One line of a script, taken apart.
struct Line<'a> {
    words: Vec<&'a str>,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let (mut words, mut options) = (Vec::new(), BTreeMap::new());
        for part in text.split_whitespace() {
            match part.split_once('=') {
                Some((name, value)) => _ = options.insert(name, value),
                None => words.push(part),
            }
        }
        Self { words, options }
    }

    fn number(&self, at: usize) -> u64 {
        self.words[at].parse().unwrap_or_else(|_| panic!("a number, not {}", self.words[at]))
    }

    fn queue(&self) -> QueueId {
        QueueId(self.number(1))
    }

    fn option<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.options.get(name).map(|text| text.parse().unwrap_or_else(|_| panic!("a number: {name}={text}")))
    }

    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.options.get(name).map(|text| text.as_bytes())
    }
}

struct Script {
    rig: Rig,
    /// The slots of the messages granted, to make receipts of what a script writes.
    slots: BTreeMap<u64, u32>,
}

impl Script {
    fn run(&mut self, text: &str) -> String {
        let line = Line::parse(text);
        match line.words[0] {
            "pass" => {
                self.rig.pass(line.number(1));
                String::new()
            }
            "state" => self.state(line.queue()),
            "deadline" => format!("{:?}", self.rig.partition.next_deadline().unwrap_or_default()),
            "ready" => format!("{}", self.rig.partition.has_ready(line.queue())),
            "headroom" => self.headroom(line.queue()),
            "damping" => self.damping(line.queue()),
            "suspects" => self.suspects(line.queue()),
            "progress" => self.progress(line.queue()),
            "outbox" => self.outbox(&line),
            "peek" => self.peek(&line),
            "snapshot" => {
                let snapshot = self.rig.partition.snapshot();
                self.rig.partition = Partition::restore(&snapshot).unwrap();
                String::new()
            }
            "why" => self.why(line.number(1)),
            "transfer" => self.transfer(&line),
            _ => {
                let request = Request { id: request_id(&line), command: self.command(&line) };
                let applied = self.rig.apply_all(&[request]);
                self.show(&applied.replies[0])
            }
        }
    }

    fn command<'a>(&self, line: &Line<'a>) -> Command<'a> {
        let items_max = line.option("n").unwrap_or(100);
        match line.words[0] {
            "configure" => {
                let revision = line.option("revision").unwrap_or(self.rig.partition.revision_min() + 1);
                Command::Configure { queue: line.queue(), settings: settings(line), revision }
            }
            "delete" => Command::Delete { queue: line.queue(), revision: line.option("revision").unwrap() },
            "purge" => Command::Purge { queue: line.queue() },
            "send" => Command::Send { queue: line.queue(), messages: messages(line) },
            "receive" => Command::Receive {
                queue: line.queue(),
                messages_max: line.option("n").unwrap_or(10),
                bytes_max: line.option("bytes").unwrap_or(u64::MAX),
                lease_ms: line.option("lease"),
                attempt: line.bytes("attempt"),
                consumer: line.bytes("consumer").unwrap_or(b"worker"),
            },
            "ack" => Command::Ack { queue: line.queue(), receipts: self.receipts(line) },
            "extend" => Command::Extend { queue: line.queue(), items: self.items(line) },
            "release" => Command::Release { queue: line.queue(), items: self.items(line) },
            "reject" => Command::Reject {
                queue: line.queue(),
                items: line.words[2..]
                    .iter()
                    .map(|text| (self.receipt(text), b"no good".as_slice()))
                    .collect(),
            },
            "giveback" => Command::GiveBack { queue: line.queue(), receipts: self.receipts(line) },
            "postpone" => Command::Postpone { queue: line.queue(), items: self.items(line) },
            "budget" => {
                let floor_per_s = line.option("floor").unwrap_or(1);
                let budget = line.option("percent").map(|percent| RetryBudget { percent, floor_per_s });
                let revision = self.rig.partition.revision_min() + 1;
                Command::SetRetryBudget { queue: line.queue(), budget, revision }
            }
            "isolate" => {
                let isolation =
                    if line.words.get(2) == Some(&"off") { Isolation::Off } else { Isolation::On };
                let revision = self.rig.partition.revision_min() + 1;
                Command::SetIsolation { queue: line.queue(), isolation, revision }
            }
            "lost" => Command::Lost { queue: line.queue(), consumer: line.bytes("consumer").unwrap() },
            "mark" => Command::Mark,
            "expire" => Command::Expire {
                leases_as_of_ms: line.option("as_of").unwrap_or(self.rig.now_ms),
                items_max,
            },
            "done" => Command::TransferDone {
                queue: line.queue(),
                target: QueueId(line.number(2)),
                through_number: line.number(3),
            },
            "return" => {
                Command::TransferReturn { queue: line.queue(), target: QueueId(line.number(2)), items_max }
            }
            "redrive" => Command::RedriveStart {
                queue: line.queue(),
                target: line.option("target").map(QueueId),
                rate_per_s: line.option("rate").unwrap_or(0),
                id: line.option("id").unwrap(),
            },
            "cancel" => Command::RedriveCancel { queue: line.queue(), id: line.option("id").unwrap() },
            "step" => Command::RedriveStep { queue: line.queue(), items_max },
            other => panic!("no such command: {other}"),
        }
    }

    fn receipt(&self, text: &str) -> Receipt {
        let (sequence, grant) = text.split_once('.').expect("sequence.grant");
        let sequence = sequence.parse().unwrap();
        let slot = self.slots.get(&sequence).copied().unwrap_or(0);
        Receipt { slot, sequence, grant: grant.parse().unwrap() }
    }

    /// The receipts of a line, each with `ms=`.
    fn receipts(&self, line: &Line<'_>) -> Vec<Receipt> {
        line.words[2..].iter().map(|text| self.receipt(text)).collect()
    }

    fn items(&self, line: &Line<'_>) -> Vec<(Receipt, u32)> {
        let ms = line.option("ms").unwrap_or(0);
        self.receipts(line).into_iter().map(|receipt| (receipt, ms)).collect()
    }

    fn show(&mut self, reply: &Reply) -> String {
        match reply {
            Reply::Received { deliveries } if deliveries.is_empty() => "nothing".into(),
            Reply::Received { deliveries } => {
                let lines = deliveries.iter().map(|delivery| self.show_delivery(delivery));
                lines.collect::<Vec<_>>().join("\n")
            }
            Reply::Sent { outcomes } => {
                let words = outcomes.iter().map(|outcome| match outcome {
                    SendOutcome::Sent { key } => format!("sent {}", key.sequence),
                    SendOutcome::Duplicate { sequence } => format!("duplicate of {sequence}"),
                    SendOutcome::Refused { reason } => format!("refused {reason:?}"),
                });
                words.collect::<Vec<_>>().join(", ")
            }
            Reply::Settled { outcomes } => format!("{outcomes:?}"),
            Reply::Expired { leases, delays, dropped, forgotten, more } => {
                format!("leases={leases} delays={delays} dropped={dropped} forgotten={forgotten} more={more}")
            }
            Reply::RedriveStepped { moved, progress } => {
                let RedriveProgress { state, moved: all, kept, total, .. } = progress;
                format!("moved={moved} of all={all} kept={kept} total={total} {state:?}")
            }
            other => format!("{other:?}"),
        }
    }

    fn show_delivery(&mut self, delivery: &Delivery) -> String {
        let Receipt { slot, sequence, grant } = delivery.receipt;
        self.slots.insert(sequence, slot);
        let content = self.rig.content(delivery.content);
        let body = String::from_utf8_lossy(content.body);
        format!(
            "{sequence}.{grant} {body} receives={} until={}",
            delivery.receive_count, delivery.deadline_log_ms
        )
    }

    fn state(&self, queue: QueueId) -> String {
        let Some(shard) = self.rig.partition.shard(queue) else { return "no such queue".into() };
        let Counters { ready, leased, delayed, dead, .. } = shard.counters;
        format!("ready={ready} leased={leased} delayed={delayed} dead={dead}")
    }

    /// How far the last redrive is now.
    fn progress(&self, queue: QueueId) -> String {
        let Some(progress) = self.rig.partition.shard(queue).unwrap().redrive else { return "none".into() };
        let RedriveProgress { state, moved, kept, total, .. } = progress;
        format!("moved={moved} kept={kept} total={total} {state:?}")
    }

    fn suspects(&self, queue: QueueId) -> String {
        let shard = self.rig.partition.shard(queue).unwrap();
        let SuspectsView { isolation, waiting, on_trial } = shard.suspects;
        let Totals { expired, lost, .. } = shard.totals;
        format!("{isolation:?} waiting={waiting} on_trial={on_trial} expired={expired} lost={lost}")
    }

    fn damping(&self, queue: QueueId) -> String {
        let shard = self.rig.partition.shard(queue).unwrap();
        let Some(damping) = shard.damping else { return "no budget".into() };
        let DampingView { mood, since_wall_ms, held, allowed, failed, acked, repeated, .. } = damping;
        let Totals { held: held_in_all, spared, .. } = shard.totals;
        format!(
            "{mood:?} since={since_wall_ms} held={held} allowed={allowed} failed={failed} acked={acked} repeated={repeated} \
             held_in_all={held_in_all} spared={spared}"
        )
    }

    fn headroom(&self, queue: QueueId) -> String {
        let measured = self.rig.partition.headroom(queue);
        let lines = measured.iter().map(|(version, measure)| {
            let version = if version.is_empty() { "rest".into() } else { String::from_utf8_lossy(version) };
            let Measure { held, last_tenth, late, extended, expired } = measure;
            let held: Vec<_> =
                held.buckets().map(|(up_to_ms, count)| format!("{count}x{up_to_ms}ms")).collect();
            let counts = format!("last_tenth={last_tenth} late={late} extended={extended} expired={expired}");
            format!("{version}: held={held:?} {counts}")
        });
        let lines: Vec<_> = lines.collect();
        if lines.is_empty() { "nothing".into() } else { lines.join("\n") }
    }

    fn outbox(&self, line: &Line<'_>) -> String {
        let queue = line.queue();
        let mut out = String::new();
        for (target, _) in self.rig.partition.outbox_targets(queue) {
            for item in self.rig.partition.outbox(queue, target, 100) {
                let OutboxItem { number, key, reason, receive_count, .. } = item;
                let (sequence, target) = (key.sequence, target.0);
                let line = format!("{number}: {sequence} to {target} {reason:?} receives={receive_count}");
                writeln!(out, "{line}").unwrap();
            }
        }
        if out.is_empty() { "empty".into() } else { out.trim_end().into() }
    }

    fn peek(&self, line: &Line<'_>) -> String {
        let after = line.option("after").unwrap_or(0);
        let peek = self.rig.partition.peek(line.queue(), after, line.option("n").unwrap_or(100));
        let shown = peek.messages.iter().map(|view| format!("{} {:?}", view.key.sequence, view.state));
        let next = peek.next_after_sequence.map(|next| format!("next={next}"));
        shown.chain(next).collect::<Vec<_>>().join(", ")
    }

    /// The history of one message, from another replica that collects it.
    fn why(&self, sequence: u64) -> String {
        let mut replica = Partition::new();
        let mut lines = Vec::new();
        for (index, payload) in &self.rig.log {
            let applied = replica.apply(*index, payload, History::All).unwrap();
            let events = applied.effects.history.into_iter().filter(|event| event.sequence == sequence);
            lines.extend(events.map(|event| match event.kind {
                EventKind::Granted { grant, receive_count, lease_ms, consumer } => {
                    let consumer = String::from_utf8_lossy(&consumer).into_owned();
                    format!(
                        "{} Granted {grant} to {consumer}, receive {receive_count}, {lease_ms} ms",
                        event.log_time_ms
                    )
                }
                kind => format!("{} {kind:?}", event.log_time_ms),
            }));
        }
        lines.join("\n")
    }

    /// Carries the first `n` items of an outbox to their target, as a leader does.
    fn transfer(&mut self, line: &Line<'_>) -> String {
        let (queue, target) = (line.queue(), QueueId(line.number(2)));
        let items = self.rig.partition.outbox(queue, target, line.option("n").unwrap_or(100));
        let messages = items.iter().map(|item| {
            let content = self.rig.content(item.content);
            let (sequence, receive_count) = (item.key.sequence, item.receive_count);
            let origin = Some(Origin { queue, partition: 1, sequence, receive_count });
            (item.number, content.body.to_vec(), content.group.map(<[u8]>::to_vec), origin)
        });
        let messages: Vec<_> = messages.collect();
        let messages = messages.iter().map(|(number, body, group, origin)| {
            let content = Content { origin: *origin, group: group.as_deref(), ..Content::of_body(body) };
            TransferMessage { number: *number, message: NewMessage { content, ..NewMessage::default() } }
        });
        let source = Source { partition: 1, queue };
        let command = Command::Transfer { queue: target, source, messages: messages.collect() };
        let reply = self.rig.apply(command);
        format!("{reply:?}")
    }
}

fn request_id(line: &Line<'_>) -> Option<RequestId> {
    Some(RequestId {
        session: line.option("session")?,
        sequence: line.option("request").unwrap(),
        completed_below: line.option("completed").unwrap_or(0),
    })
}

fn settings(line: &Line<'_>) -> Settings {
    let usual = Settings::default();
    let dead_letter = line
        .option("dead")
        .map(|queue| DeadLetter { queue: QueueId(queue), receives_max: line.option("receives").unwrap() });
    Settings {
        kind: if line.options.get("kind") == Some(&"fifo") { Kind::Fifo } else { Kind::Standard },
        lease_ms: line.option("lease").unwrap_or(usual.lease_ms),
        delay_ms: line.option("delay").unwrap_or(usual.delay_ms),
        retention_ms: line.option("retention").unwrap_or(usual.retention_ms),
        dead_letter,
        dedup_window_ms: line.option("dedup").unwrap_or(usual.dedup_window_ms),
        in_flight_max: line.option("in_flight").unwrap_or(usual.in_flight_max),
        length_max: line.option("length").unwrap_or(0),
        bytes_max: line.option("bytes").unwrap_or(0),
    }
}

/// One message for each word after the queue: its body.
fn messages<'a>(line: &Line<'a>) -> Vec<NewMessage<'a>> {
    let bodies = line.words[2..].iter();
    let contents = bodies.map(|body| Content {
        group: line.bytes("group"),
        dedup_id: line.bytes("dedup"),
        ..Content::of_body(body.as_bytes())
    });
    let (delay_ms, expiry_ms) = (line.option("delay"), line.option("ttl"));
    contents.map(|content| NewMessage { delay_ms, expiry_ms, content }).collect()
}

/// A script with the output it has now.
fn rewrite(text: &str) -> String {
    let mut script = Script { rig: Rig::new(), slots: BTreeMap::new() };
    let (mut out, mut produced, mut in_output) = (String::new(), String::new(), false);
    for line in text.lines().chain([""]) {
        match line {
            "" => {
                if in_output || !produced.is_empty() {
                    out += &produced;
                }
                out.push('\n');
                (produced, in_output) = (String::new(), false);
            }
            "----" => {
                out += "----\n";
                in_output = true;
            }
            _ if in_output => {}
            comment if comment.starts_with('#') => writeln!(out, "{comment}").unwrap(),
            command => {
                writeln!(out, "{command}").unwrap();
                let shown = script.run(command);
                if !shown.is_empty() {
                    writeln!(produced, "{shown}").unwrap();
                }
            }
        }
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn scripts_have_the_output_they_show() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ext| ext == "txt")).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are scripts");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let now = rewrite(&text);
        if std::env::var_os("REGENERATE").is_some() {
            std::fs::write(&path, now).unwrap();
            continue;
        }
        for (at, (written, shown)) in text.lines().zip(now.lines()).enumerate() {
            assert_eq!(written, shown, "{}:{}", path.display(), at + 1);
        }
        assert_eq!(text.lines().count(), now.lines().count(), "{}", path.display());
    }
}
