//! Stories of runs and what they prove: each way to fail, and the nearest one that holds.

use super::*;

const LEASE: Duration = Duration::from_secs(3);

struct Story(Instant);

impl Story {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// A delivery of row 1, `at_ms` into the story.
    fn record(&self, grant: u64, at_ms: u64, ending: Ending) -> Record {
        let received = self.0 + Duration::from_millis(at_ms);
        Record {
            row: 1,
            message: (0, 1),
            fencing_token: grant,
            receive_count: grant as u32,
            received,
            lease_until: received + LEASE,
            finished: received + Duration::from_millis(10),
            is_intact: true,
            is_processed: true,
            ending,
        }
    }

    /// A delivery whose worker came a second after the end of its lease.
    fn late(&self, grant: u64, ending: Ending) -> Record {
        let record = self.record(grant, 0, ending);
        Record { finished: record.lease_until + Duration::from_millis(1_000), ..record }
    }
}

fn one_sent() -> [SentRow; 1] {
    [SentRow { row: 1, message: (0, 1), unknown_tries: 0 }]
}

fn judge_one(records: &[Record]) -> Verdict {
    judge(&one_sent(), records, 0)
}

fn causes(verdict: &Verdict) -> Vec<(&'static str, u64)> {
    verdict.duplicates.iter().map(|(cause, count)| (*cause, *count)).collect()
}

#[test]
fn a_run_without_faults_holds() {
    let verdict = judge_one(&[Story::new().record(1, 0, Ending::Acked)]);
    assert!(verdict.holds() && verdict.acked == 1 && verdict.duplicates.is_empty(), "{verdict:?}");
}

#[test]
fn a_row_that_nobody_acked_is_lost() {
    let story = Story::new();
    assert_eq!(judge_one(&[]).lost, [1]);
    for ending in [Ending::Crashed, Ending::NotAcked, Ending::Stale, Ending::Gone] {
        let verdict = judge_one(&[story.late(1, ending)]);
        assert!(verdict.lost == [1] && !verdict.holds(), "{verdict:?}");
    }
    assert!(judge_one(&[story.record(1, 0, Ending::AckUnknown)]).holds());
}

#[test]
fn an_ack_without_the_work_is_a_loss() {
    let acked = Story::new().record(1, 0, Ending::Acked);
    assert_eq!(judge_one(&[Record { is_processed: false, ..acked }]).lost, [1]);
}

#[test]
fn a_second_message_does_not_make_up_for_the_one_that_was_answered() {
    let other = Record { message: (0, 9), ..Story::new().record(1, 0, Ending::Acked) };
    let sent = [SentRow { unknown_tries: 1, ..one_sent()[0] }];
    assert_eq!(judge(&sent, &[other], 0).lost, [1]);
}

#[test]
fn a_row_that_nobody_sent_is_invented() {
    let verdict = judge(&[], &[Story::new().record(1, 0, Ending::Acked)], 0);
    assert!(verdict.invented == [1] && !verdict.holds(), "{verdict:?}");
}

#[test]
fn another_body_than_that_of_the_row_breaks_the_proof() {
    let record = Record { is_intact: false, ..Story::new().record(1, 0, Ending::Acked) };
    let verdict = judge_one(&[record]);
    assert!(verdict.corrupted == 1 && !verdict.holds(), "{verdict:?}");
}

#[test]
fn what_is_left_in_the_queue_breaks_the_proof() {
    assert!(!judge(&one_sent(), &[Story::new().record(1, 0, Ending::Acked)], 1).holds());
}

#[test]
fn each_duplicate_has_its_cause() {
    let story = Story::new();
    let second = story.record(2, 3_500, Ending::Acked);
    for (first, cause) in [
        (story.record(1, 0, Ending::Crashed), Cause::ConsumerCrashed),
        (story.late(1, Ending::Stale), Cause::ConsumerTooSlow),
        (story.late(1, Ending::Gone), Cause::ConsumerTooSlow),
        (story.record(1, 0, Ending::AckUnknown), Cause::AnswerLost),
        (story.record(1, 0, Ending::NotAcked), Cause::AnswerLost),
    ] {
        let verdict = judge_one(&[first, second.clone()]);
        assert_eq!(causes(&verdict), [(cause.name(), 1)]);
        assert!(verdict.holds(), "{verdict:?}");
    }
}

#[test]
fn a_duplicate_after_an_ack_that_was_done_is_unexplained() {
    let story = Story::new();
    let records = [story.record(1, 0, Ending::Acked), story.record(2, 3_500, Ending::Acked)];
    let verdict = judge_one(&records);
    assert_eq!(causes(&verdict), [("unexplained", 1)]);
    assert!(!verdict.holds());
}

#[test]
fn a_delivery_after_an_ack_breaks_the_proof_even_unprocessed() {
    let story = Story::new();
    let again = Record { is_processed: false, ..story.record(2, 3_500, Ending::Crashed) };
    let verdict = judge_one(&[story.record(1, 0, Ending::Acked), again]);
    assert!(verdict.duplicates.is_empty() && verdict.redelivered_after_ack == 1, "{verdict:?}");
    assert!(!verdict.holds());
}

#[test]
fn a_late_ack_that_is_taken_while_another_has_the_message_breaks_the_proof() {
    let story = Story::new();
    let verdict = judge_one(&[story.late(1, Ending::Acked), story.record(2, 3_100, Ending::Gone)]);
    assert!(verdict.redelivered_after_ack == 1 && !verdict.holds(), "{verdict:?}");
    let refused = judge_one(&[story.late(1, Ending::Stale), story.record(2, 3_100, Ending::Acked)]);
    assert!(refused.late_acks_refused == 1 && refused.holds(), "{refused:?}");
}

#[test]
fn a_second_message_of_a_row_needs_a_try_of_unknown_outcome() {
    let story = Story::new();
    let second = Record { message: (0, 9), ..story.record(1, 100, Ending::Acked) };
    let records = [story.record(1, 0, Ending::Acked), second];
    assert_eq!(causes(&judge_one(&records)), [("unexplained", 1)]);
    assert!(!judge_one(&records).holds());
    let sent = [SentRow { unknown_tries: 1, ..one_sent()[0] }];
    let verdict = judge(&sent, &records, 0);
    assert_eq!(causes(&verdict), [("send_repeated", 1)]);
    assert!(verdict.holds(), "{verdict:?}");
    let third = Record { message: (0, 10), ..records[1].clone() };
    let [first, second] = records;
    assert!(!judge(&sent, &[first, second, third], 0).holds());
}

#[test]
fn a_lease_that_another_gets_early_is_shortened() {
    let story = Story::new();
    for ending in [Ending::Crashed, Ending::NotAcked, Ending::AckUnknown] {
        let early = [story.record(1, 0, ending), story.record(2, 2_000, Ending::Acked)];
        let verdict = judge_one(&early);
        assert!(verdict.leases_shortened == 1 && !verdict.holds(), "{verdict:?}");
        assert_eq!(verdict.lease_margin_ms_min, Some(-1_000));
        let kept = judge_one(&[story.record(1, 0, ending), story.record(2, 3_001, Ending::Acked)]);
        assert!(kept.leases_shortened == 0 && kept.holds(), "{kept:?}");
        assert_eq!(kept.lease_margin_ms_min, Some(1));
    }
}

#[test]
fn a_lease_that_is_refused_in_time_is_shortened_whoever_comes_next() {
    let story = Story::new();
    for ending in [Ending::Stale, Ending::Gone] {
        let refused = [story.record(1, 0, ending), story.record(2, 3_500, Ending::Acked)];
        let verdict = judge_one(&refused);
        assert!(verdict.leases_shortened == 1 && !verdict.holds(), "{verdict:?}");
        assert_eq!(causes(&verdict), [("unexplained", 1)]);
    }
}

#[test]
fn tokens_and_receive_counts_grow_with_every_grant() {
    let story = Story::new();
    let first = story.record(2, 0, Ending::Crashed);
    let next = story.record(3, 3_500, Ending::Acked);
    assert!(judge_one(&[first.clone(), next.clone()]).holds());
    for wrong in [
        Record { fencing_token: 2, ..next.clone() },
        Record { receive_count: 2, ..next.clone() },
        Record { fencing_token: 1, receive_count: 1, ..next.clone() },
    ] {
        let verdict = judge_one(&[first.clone(), wrong]);
        assert!(verdict.fencing_violations > 0 && !verdict.holds(), "{verdict:?}");
    }
}

#[test]
fn only_leases_that_a_failover_could_shorten_are_counted() {
    let story = Story::new();
    let killed = story.0 + Duration::from_millis(1_000);
    let open = story.record(1, 0, Ending::Crashed);
    let elsewhere = Record { message: (1, 1), ..open.clone() };
    let records =
        [open, elsewhere, story.record(2, 1_500, Ending::Crashed), story.record(1, 0, Ending::Acked)];
    assert_eq!(leases_across(&records, killed, &[0]), 1);
    assert_eq!(leases_across(&records, killed + LEASE + LEASE, &[0, 1]), 0);
}
