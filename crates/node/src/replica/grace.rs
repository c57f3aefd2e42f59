//! How much later than its deadline a lease may be ended, so that no consumer loses time it was promised.
//!
//! A lease's deadline counts from the stamp of its entry, but the consumer counts from the answer, which leaves after the commit.
//! The leader remembers by how much answers lagged, grouped by the second in which their leases end, and ends those leases that
//! much later. What it inherited from another leader gets the most that any leader lets an answer lag.

use std::collections::BTreeMap;

use leasehold_partition::{Delivery, Partition};

use crate::limits::{ANSWER_ALLOWANCE_MS, INHERITED_GRACE_MS};

const BUCKET_MS: u64 = 1_000;

/// The lags of the answers of one leadership.
#[derive(Debug)]
pub struct Grace {
    /// Leases that end up to here may have been granted by an earlier leader.
    inherited_until_ms: u64,
    /// For the leases that end in a second: the largest lag of their answers. At most 12 h of seconds.
    lag_ms_by_second: BTreeMap<u64, u64>,
}

impl Grace {
    /// `longest_lease_end_ms` bounds the deadlines of the leases that were there before.
    pub fn inherit(longest_lease_end_ms: u64) -> Self {
        Self { inherited_until_ms: longest_lease_end_ms, lag_ms_by_second: BTreeMap::new() }
    }

    /// An answer that promises a lease until `deadline_ms` leaves `lag_ms` after its entry's stamp.
    pub fn answered(&mut self, deadline_ms: u64, lag_ms: u64) {
        let lag = self.lag_ms_by_second.entry(deadline_ms / BUCKET_MS).or_default();
        *lag = (*lag).max(lag_ms);
    }

    /// When the leases that end at `deadline_ms` may be ended: not before [`Grace::leases_as_of_ms`] says so, or they would be tried to
    /// be ended again and again until then.
    pub fn due_ms(&self, deadline_ms: u64) -> u64 {
        let mut due_ms = deadline_ms + ANSWER_ALLOWANCE_MS;
        loop {
            // Each step is for a longer lag than the one before.
            let missing_ms = deadline_ms.saturating_sub(self.leases_as_of_ms(due_ms));
            if missing_ms == 0 {
                return due_ms;
            }
            due_ms += missing_ms;
        }
    }

    /// Up to which deadline leases may be ended now. Every lease at or below it has had its slack.
    pub fn leases_as_of_ms(&self, now_ms: u64) -> u64 {
        let inherited = if self.inherited_until_ms == 0 { 0 } else { INHERITED_GRACE_MS };
        let first = now_ms.saturating_sub(inherited + ANSWER_ALLOWANCE_MS);
        let slack =
            self.lag_ms_by_second.range(..=now_ms / BUCKET_MS).map(|(_, lag)| *lag).max().unwrap_or_default();
        let inherited = if first <= self.inherited_until_ms { inherited } else { 0 };
        now_ms.saturating_sub(slack.max(inherited) + ANSWER_ALLOWANCE_MS)
    }

    /// Forgets the lags of leases that are over: none ends before `deadline_ms` any more.
    pub fn ended_through(&mut self, deadline_ms: u64) {
        while let Some(first) = self.lag_ms_by_second.first_entry()
            && *first.key() < deadline_ms / BUCKET_MS
        {
            first.remove();
        }
    }
}

/// When a lease began to count.
pub fn granted_ms(delivery: &Delivery) -> u64 {
    delivery.deadline_log_ms.saturating_sub(u64::from(delivery.lease_ms))
}

/// How long ago that was.
pub fn lag_ms(delivery: &Delivery, now_ms: u64) -> u64 {
    now_ms.saturating_sub(granted_ms(delivery))
}

/// Whether leases can be promised in full at `now_ms`. A request that is repeated gets the grants of its first try: they may be old,
/// or over and somebody else's; and a new leader would not know how late an answer left. An attempt that is repeated has leases that
/// count anew.
pub fn may_promise(state: &Partition, deliveries: &[Delivery], now_ms: u64) -> bool {
    deliveries.iter().all(|delivery| {
        state.holds_lease(&delivery.receipt) && lag_ms(delivery, now_ms) <= INHERITED_GRACE_MS
    })
}

#[cfg(test)]
mod tests {
    use leasehold_partition::{
        BatchBuilder, Command, Content, History, NewMessage, QueueId, Reply, Request, RequestId, Settings,
    };

    use super::*;

    #[test]
    fn a_lease_ends_no_earlier_than_its_duration_after_the_answer() {
        let mut grace = Grace::inherit(0);
        grace.answered(30_000, 400);
        assert_eq!(grace.due_ms(30_000), 30_000 + 400 + ANSWER_ALLOWANCE_MS);
        assert!(grace.leases_as_of_ms(30_000 + 399 + ANSWER_ALLOWANCE_MS) < 30_000);
        assert!(grace.leases_as_of_ms(30_000 + 400 + ANSWER_ALLOWANCE_MS) >= 30_000);
    }

    #[test]
    fn inherited_leases_get_the_longest_lag_any_leader_allows() {
        let grace = Grace::inherit(5_000);
        assert!(grace.leases_as_of_ms(5_000 + INHERITED_GRACE_MS) < 5_000);
        assert_eq!(grace.leases_as_of_ms(5_000 + INHERITED_GRACE_MS + ANSWER_ALLOWANCE_MS), 5_000);
        let past = 5_000 + 2 * INHERITED_GRACE_MS + 2 * ANSWER_ALLOWANCE_MS;
        assert_eq!(grace.leases_as_of_ms(past), past - ANSWER_ALLOWANCE_MS);
    }

    #[test]
    fn a_lag_is_forgotten_with_its_leases() {
        let mut grace = Grace::inherit(0);
        grace.answered(1_500, 900);
        grace.answered(9_000, 3);
        grace.ended_through(2_400);
        assert_eq!(grace.due_ms(1_500), 1_500 + ANSWER_ALLOWANCE_MS);
        assert_eq!(grace.due_ms(9_000), 9_000 + 3 + ANSWER_ALLOWANCE_MS);
    }

    /// When a lease is due, and whether that is the first time at which it may be ended.
    #[track_caller]
    fn due(grace: &Grace, deadline_ms: u64) -> u64 {
        let due_ms = grace.due_ms(deadline_ms);
        assert!(grace.leases_as_of_ms(due_ms) >= deadline_ms, "an entry would end nothing");
        assert!(grace.leases_as_of_ms(due_ms - 1) < deadline_ms, "it could be ended before");
        due_ms
    }

    #[test]
    fn a_lease_is_due_when_it_may_be_ended_and_not_before() {
        let mut grace = Grace::inherit(0);
        grace.answered(30_000, 900);
        grace.answered(31_100, 5);
        assert_eq!(due(&grace, 31_100), 31_100 + 900 + ANSWER_ALLOWANCE_MS);
        grace.ended_through(31_100);
        assert_eq!(due(&grace, 31_100), 31_100 + 5 + ANSWER_ALLOWANCE_MS);
        // The slack of the next second begins before this one's is over.
        grace.answered(40_990, 5);
        grace.answered(41_500, 700);
        assert_eq!(due(&grace, 40_990), 40_990 + 700 + ANSWER_ALLOWANCE_MS);
    }

    #[test]
    fn a_lease_that_ends_soon_after_the_inherited_ones_is_due_when_it_may_be_ended() {
        let mut grace = Grace::inherit(5_000);
        grace.answered(5_100, 5);
        let due_ms = grace.due_ms(5_100);
        assert!(due_ms <= 5_100 + INHERITED_GRACE_MS + ANSWER_ALLOWANCE_MS, "{due_ms}");
        assert!(grace.leases_as_of_ms(due_ms) >= 5_100);
        assert_eq!(due(&grace, 4_900), 4_900 + INHERITED_GRACE_MS + ANSWER_ALLOWANCE_MS);
    }

    const QUEUE: QueueId = QueueId(1);

    fn apply(state: &mut Partition, now_ms: u64, id: Option<RequestId>, command: Command<'_>) -> Reply {
        let mut batch = BatchBuilder::new(now_ms, now_ms);
        batch.push_request(&Request { id, command }).unwrap();
        let index = state.applied_index() + 1;
        state.apply(index, &batch.finish(), History::Skip).unwrap().replies.remove(0)
    }

    /// A named receive, as a client repeats it that has no answer.
    fn receive(state: &mut Partition, now_ms: u64) -> Vec<Delivery> {
        let id = RequestId { session: 1, sequence: 1, completed_below: 0 };
        let (queue, attempt, lease_ms) = (QUEUE, None, Some(60_000));
        let command =
            Command::Receive { queue, messages_max: 1, bytes_max: 1, lease_ms, attempt, consumer: b"" };
        match apply(state, now_ms, Some(id), command) {
            Reply::Received { deliveries } => deliveries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repeated_receive_promises_young_leases_that_are_held_and_no_others() {
        let mut state = Partition::new();
        let settings = Settings::default();
        apply(&mut state, 1_000, None, Command::Configure { queue: QUEUE, settings, revision: 1 });
        let messages = vec![NewMessage { content: Content::of_body(b"x"), ..NewMessage::default() }];
        apply(&mut state, 1_000, None, Command::Send { queue: QUEUE, messages });
        let first = receive(&mut state, 2_000);
        assert_eq!((first.len(), lag_ms(&first[0], 2_300)), (1, 300));
        assert!(may_promise(&state, &first, 2_300));
        assert_eq!(receive(&mut state, 2_500), first, "the answer is remembered");
        assert!(!may_promise(&state, &first, 2_000 + INHERITED_GRACE_MS + 1), "a new leader allows less");
        let items = vec![(first[0].receipt, 0)];
        apply(&mut state, 2_600, None, Command::Release { queue: QUEUE, items });
        let again = receive(&mut state, 2_700);
        assert!(!may_promise(&state, &again, 2_700), "it was given back");
    }

    /// However long after its first try.
    #[test]
    fn a_repeated_attempt_promises_the_same_leases() {
        let mut state = Partition::new();
        let settings = Settings::default();
        apply(&mut state, 1_000, None, Command::Configure { queue: QUEUE, settings, revision: 1 });
        let messages = vec![NewMessage { content: Content::of_body(b"x"), ..NewMessage::default() }];
        apply(&mut state, 1_000, None, Command::Send { queue: QUEUE, messages });
        let mut attempt = |now_ms| {
            let (lease_ms, attempt) = (Some(60_000), Some(b"a".as_slice()));
            let (queue, consumer) = (QUEUE, b"".as_slice());
            let command =
                Command::Receive { queue, messages_max: 1, bytes_max: 1, lease_ms, attempt, consumer };
            let Reply::Received { deliveries } = apply(&mut state, now_ms, None, command) else {
                panic!("a receive is answered as one");
            };
            assert!(may_promise(&state, &deliveries, now_ms + 300));
            deliveries[0]
        };
        let (first, again) = (attempt(2_000), attempt(2_000 + 2 * INHERITED_GRACE_MS));
        assert_eq!((first.receipt, first.receive_count), (again.receipt, again.receive_count));
        assert_eq!(again.deadline_log_ms, first.deadline_log_ms + 2 * INHERITED_GRACE_MS);
    }

    #[test]
    fn a_repeated_receive_promises_nothing_that_was_settled() {
        let mut state = Partition::new();
        let settings = Settings::default();
        apply(&mut state, 1_000, None, Command::Configure { queue: QUEUE, settings, revision: 1 });
        let messages = vec![NewMessage { content: Content::of_body(b"x"), ..NewMessage::default() }];
        apply(&mut state, 1_000, None, Command::Send { queue: QUEUE, messages });
        let receipts = receive(&mut state, 2_000).into_iter().map(|delivery| delivery.receipt).collect();
        apply(&mut state, 2_100, None, Command::Ack { queue: QUEUE, receipts });
        let again = receive(&mut state, 2_200);
        assert_eq!(again.len(), 1, "the answer is remembered");
        assert!(!may_promise(&state, &again, 2_200));
    }
}
