//! Queues are what was decided (I17): one that was made is there for everybody until its deletion is asked for, one that was deleted
//! stays deleted, and one that is made again is empty.
//!
//! Each name has one owner, whose steps follow each other. After a step of which nobody knows whether it was done, the name is given
//! up: it may be done at any later time.

use std::collections::BTreeMap;

use super::Violations;
use crate::history::{History, Op, Outcome, QueueStep};

struct Step<'a> {
    step: &'a QueueStep,
    began_us: u64,
    ended_us: u64,
    outcome: Outcome,
}

pub fn check(history: &History, counts: &mut BTreeMap<&'static str, u64>) -> Violations {
    let mut names: BTreeMap<&str, Vec<Step<'_>>> = BTreeMap::new();
    for op in &history.ops {
        if let Op::Queue { queue, step, began_us, ended_us, outcome } = op {
            let step = Step { step, began_us: *began_us, ended_us: *ended_us, outcome: *outcome };
            names.entry(queue).or_default().push(step);
        }
    }
    counts.insert("queues", names.len() as u64);
    let mut violations = Violations::new();
    for (name, mut steps) in names {
        steps.sort_by_key(|step| (step.began_us, step.ended_us));
        let spans = spans(&steps);
        for step in &steps {
            let found = match step.step {
                QueueStep::Look { messages } => looked(step, *messages, &spans),
                QueueStep::List { is_there } => listed(step, *is_there, &spans),
                QueueStep::Create | QueueStep::Delete | QueueStep::Fill => refused(step, &spans),
            };
            violations.extend(found.map(|found| format!("queue {name}: {found}")));
        }
    }
    violations
}

/// What is certain of a name between two of its owner's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// Made at the first time for certain, and empty until messages were asked to be put in.
    There {
        from_us: u64,
        empty_until_us: u64,
        until_us: u64,
    },
    Gone {
        from_us: u64,
        until_us: u64,
    },
}

/// The owner's steps, until one is unknown.
fn spans(steps: &[Step<'_>]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let first_us =
        steps.iter().find(|step| *step.step == QueueStep::Create).map_or(u64::MAX, |step| step.began_us);
    spans.push(Span::Gone { from_us: 0, until_us: first_us });
    for step in steps {
        let next = match step.step {
            QueueStep::Create => {
                Span::There { from_us: step.ended_us, empty_until_us: u64::MAX, until_us: u64::MAX }
            }
            QueueStep::Delete => Span::Gone { from_us: step.ended_us, until_us: u64::MAX },
            QueueStep::Fill => {
                if let Some(Span::There { empty_until_us, .. }) = spans.last_mut() {
                    *empty_until_us = (*empty_until_us).min(step.began_us);
                }
                continue;
            }
            QueueStep::Look { .. } | QueueStep::List { .. } => continue,
        };
        if let Some(Span::There { until_us, .. } | Span::Gone { until_us, .. }) = spans.last_mut() {
            *until_us = (*until_us).min(step.began_us);
        }
        match step.outcome {
            Outcome::Done => spans.push(next),
            // Refused, as far as the owner knows: `refused` judges it.
            Outcome::NotDone => break,
            Outcome::Unknown => break,
        }
    }
    spans
}

/// What holds for all of an operation's time.
fn certain(step: &Step<'_>, spans: &[Span]) -> Option<Span> {
    spans.iter().copied().find(|span| {
        let (Span::There { from_us, until_us, .. } | Span::Gone { from_us, until_us }) = span;
        *from_us <= step.began_us && step.ended_us <= *until_us
    })
}

fn looked(step: &Step<'_>, messages: Option<u64>, spans: &[Span]) -> Option<String> {
    match (certain(step, spans)?, messages) {
        (Span::There { from_us, .. }, None) => {
            Some(format!("made at {from_us} us, and unknown at {} us", step.began_us))
        }
        (Span::There { from_us, empty_until_us, .. }, Some(messages)) => (messages > 0
            && step.ended_us <= empty_until_us)
            .then(|| format!("made at {from_us} us, and not empty: {messages} messages")),
        (Span::Gone { from_us: 0, .. }, Some(_)) => Some("there before it was made".to_owned()),
        (Span::Gone { from_us, .. }, Some(_)) => {
            Some(format!("deleted at {from_us} us, and there at {} us", step.began_us))
        }
        (Span::Gone { .. }, None) => None,
    }
}

fn listed(step: &Step<'_>, is_there: bool, spans: &[Span]) -> Option<String> {
    match (certain(step, spans)?, is_there) {
        (Span::There { .. }, false) => Some("made, and not listed at the end".to_owned()),
        (Span::Gone { .. }, true) => Some("deleted, and listed at the end".to_owned()),
        _ => None,
    }
}

/// The owner alone makes and deletes it, so that nothing of it is refused.
fn refused(step: &Step<'_>, spans: &[Span]) -> Option<String> {
    let is_known = spans.iter().any(|span| {
        let (Span::There { until_us, .. } | Span::Gone { until_us, .. }) = span;
        *until_us >= step.began_us
    });
    let is_refused = step.outcome == Outcome::NotDone && is_known;
    is_refused.then(|| format!("{:?} at {} us was refused to its owner", step.step, step.began_us))
}

#[cfg(test)]
mod tests {
    use super::super::story::history;
    use super::*;

    const CREATE: QueueStep = QueueStep::Create;
    const DELETE: QueueStep = QueueStep::Delete;
    const ABSENT: QueueStep = QueueStep::Look { messages: None };

    fn look(messages: u64) -> QueueStep {
        QueueStep::Look { messages: Some(messages) }
    }

    fn found(steps: &[(QueueStep, u64, Outcome)]) -> usize {
        let op = |(step, began_us, outcome): &(QueueStep, u64, Outcome)| Op::Queue {
            queue: "q".to_owned(),
            step: *step,
            began_us: *began_us,
            ended_us: began_us + 10,
            outcome: *outcome,
        };
        check(&history(steps.iter().map(op).collect()), &mut BTreeMap::new()).len()
    }

    #[test]
    fn a_queue_that_is_made_filled_deleted_and_made_again_empty_is_fine() {
        let done = Outcome::Done;
        let list = QueueStep::List { is_there: true };
        let steps =
            [(ABSENT, 5, done), (CREATE, 100, done), (look(0), 200, done), (QueueStep::Fill, 250, done)];
        let again = [(look(3), 300, done), (DELETE, 400, done), (CREATE, 500, done), (look(0), 600, done)];
        let all = [&steps[..], &again, &[(list, 700, done)]].concat();
        assert_eq!(found(&all), 0);
    }

    #[test]
    fn each_violation_is_found() {
        let done = Outcome::Done;
        assert_eq!(found(&[(CREATE, 100, done), (ABSENT, 200, done)]), 1, "forgotten");
        assert_eq!(found(&[(look(0), 10, done), (CREATE, 100, done)]), 1, "before its time");
        assert_eq!(found(&[(CREATE, 100, done), (look(2), 200, done)]), 1, "not empty");
        assert_eq!(found(&[(CREATE, 100, done), (DELETE, 200, Outcome::NotDone)]), 1, "refused");
        let deleted = [(CREATE, 100, done), (DELETE, 200, done)];
        let listed = (QueueStep::List { is_there: true }, 300, done);
        assert_eq!(found(&[&deleted[..], &[listed]].concat()), 1, "deleted and listed");
        let unlisted = (QueueStep::List { is_there: false }, 300, done);
        assert_eq!(found(&[(CREATE, 100, done), unlisted]), 1, "made and not listed");
        assert_eq!(found(&[&deleted[..], &[(look(0), 300, done)]].concat()), 1, "deleted and there");
    }

    #[test]
    fn what_is_under_way_or_unknown_excuses() {
        let done = Outcome::Done;
        assert_eq!(found(&[(CREATE, 100, done), (ABSENT, 105, done)]), 0);
        let unknown = [(CREATE, 100, done), (DELETE, 200, Outcome::Unknown)];
        let listed = |is_there| (QueueStep::List { is_there }, 300, done);
        for is_there in [true, false] {
            assert_eq!(found(&[&unknown[..], &[(ABSENT, 250, done), listed(is_there)]].concat()), 0);
        }
    }
}
