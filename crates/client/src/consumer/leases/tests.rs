//! Leases in a clock of their own.

use leasehold_proto::v1;
use tokio::time::advance;

use super::*;

const LEASE: Duration = Duration::from_secs(30);
const WAITING: Duration = Duration::from_secs(5);

fn held(keep_for: Duration) -> (Leases, u64, Arc<LeaseState>) {
    let mut leases = Leases::new(keep_for, CancellationToken::new());
    leases.set_reaches(Reaches { waiting: Some(WAITING), processing: Some(LEASE) });
    let (key, state) = hold(&mut leases);
    (leases, key, state)
}

fn by_hub(at: Instant, reach: Duration) -> Extension {
    Extension { by: AskedBy::Hub, at, reach }
}

fn by_holder(at: Instant, reach: Duration) -> Extension {
    Extension { by: AskedBy::Holder, at, reach }
}

fn hold(leases: &mut Leases) -> (u64, Arc<LeaseState>) {
    let wire = v1::Delivery { lease_ms: 5_000, ..Default::default() };
    leases.hold(&Message::from_wire(wire, Instant::now()), 1, None)
}

#[tokio::test(start_paused = true)]
async fn a_waiting_lease_is_short_and_extended_at_half_time_again_and_again() {
    let (mut leases, key, state) = held(LEASE * 10);
    for _ in 0..5 {
        assert!(leases.take_due(Instant::now()).is_empty());
        advance(WAITING / 2).await;
        let now = Instant::now();
        assert_eq!(leases.take_due(now), vec![Due { key, reach: WAITING }]);
        leases.extended(key, by_hub(now, WAITING), &Ok(()));
        assert_eq!(state.until(), Some(now + WAITING));
    }
}

#[tokio::test(start_paused = true)]
async fn the_processing_lease_starts_with_the_work() {
    let (mut leases, key, state) = held(LEASE * 10);
    advance(WAITING / 4).await;
    let now = Instant::now();
    assert_eq!(leases.begin(key, now), Some(Due { key, reach: LEASE }));
    leases.extended(key, by_hub(now, LEASE), &Ok(()));
    assert_eq!(state.until(), Some(now + LEASE));
    advance(LEASE / 2).await;
    assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
}

#[tokio::test(start_paused = true)]
async fn work_that_begins_during_an_extension_is_extended_after_it() {
    let (mut leases, key, state) = held(LEASE * 10);
    advance(WAITING / 2).await;
    let asked = Instant::now();
    assert_eq!(leases.take_due(asked).len(), 1);
    assert_eq!(leases.begin(key, asked), None);
    leases.extended(key, by_hub(asked, WAITING), &Ok(()));
    assert_eq!(leases.take_due(asked), vec![Due { key, reach: LEASE }]);
    leases.extended(key, by_hub(asked, LEASE), &Ok(()));
    assert_eq!(state.until(), Some(asked + LEASE));
}

#[tokio::test(start_paused = true)]
async fn short_work_needs_no_extension() {
    let (mut leases, key, _) = held(LEASE * 10);
    leases.forget(key);
    for _ in 0..100 {
        let (key, _) = hold(&mut leases);
        leases.begin(key, Instant::now());
        advance(Duration::from_millis(100)).await;
        leases.forget(key);
    }
    let (key, _) = hold(&mut leases);
    assert_eq!(leases.begin(key, Instant::now()), None);
    // This one takes long after all.
    advance(WAITING / 2).await;
    assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
    // Too little is left of a lease that has waited.
    let (key, _) = hold(&mut leases);
    advance(WAITING - Duration::from_millis(300)).await;
    assert_eq!(leases.begin(key, Instant::now()), Some(Due { key, reach: LEASE }));
}

#[tokio::test(start_paused = true)]
async fn it_is_not_extended_beyond_the_maximum_and_lost_when_it_ends() {
    let (mut leases, key, state) = held(WAITING);
    let began = Instant::now();
    assert_eq!(leases.begin(key, began), Some(Due { key, reach: LEASE }));
    leases.extended(key, by_hub(began, LEASE), &Ok(()));
    advance(LEASE / 2).await;
    assert!(leases.take_due(Instant::now()).is_empty());
    assert_eq!(state.until(), Some(began + LEASE));
    advance(LEASE / 2).await;
    assert!(leases.take_due(Instant::now()).is_empty());
    assert!(state.until().is_none());
    assert_eq!(leases.take_unwanted(), [], "somebody works on it, or has");
    let (mut leases, key, _) = held(LEASE);
    leases.forget(key);
    assert_eq!(leases.next_deadline(), None);
}

#[tokio::test(start_paused = true)]
async fn an_extension_without_an_answer_ends_with_the_lease() {
    let (mut leases, key, state) = held(LEASE * 10);
    advance(WAITING / 2).await;
    assert_eq!(leases.take_due(Instant::now()).len(), 1);
    advance(WAITING / 2).await;
    assert!(leases.take_due(Instant::now()).is_empty());
    assert!(state.until().is_none());
    leases.extended(key, by_hub(Instant::now(), WAITING), &Ok(()));
    assert!(state.until().is_none(), "what was said to be lost stays lost");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_loses_it_and_a_failure_is_tried_again() {
    let (mut leases, key, state) = held(LEASE * 10);
    advance(WAITING / 2).await;
    assert_eq!(leases.take_due(Instant::now()).len(), 1);
    leases.extended(key, by_hub(Instant::now(), WAITING), &Err(Error::timed_out("")));
    assert!(leases.next_deadline().is_some_and(|next| next < state.until().unwrap()));
    let stale = Error::not_done(Reason::ReceiptStale, "");
    leases.extended(key, by_hub(Instant::now(), WAITING), &Err(stale));
    assert_eq!(state.until(), None);
}

#[tokio::test(start_paused = true)]
async fn what_the_holder_asks_for_is_the_reach_from_then_on_unless_it_is_refused() {
    let (mut leases, key, state) = held(LEASE * 10);
    let began = Instant::now();
    assert!(leases.begin(key, began).is_some());
    leases.extended(key, by_hub(began, LEASE), &Ok(()));
    advance(LEASE / 4).await;
    leases.holder_asks(key, LEASE * 1_440);
    let too_long = Error::not_done(Reason::LeaseTooLong, "");
    leases.extended(key, by_holder(Instant::now(), LEASE * 1_440), &Err(too_long));
    assert_eq!(state.until(), Some(began + LEASE), "it stays as it was");
    advance(LEASE / 2).await;
    assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }], "and is extended on");
    leases.extended(key, by_hub(Instant::now(), LEASE), &Ok(()));
    leases.holder_asks(key, LEASE * 2);
    leases.extended(key, by_holder(Instant::now(), LEASE * 2), &Ok(()));
    advance(LEASE).await;
    assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE * 2 }]);
}

#[tokio::test(start_paused = true)]
async fn work_that_began_before_the_lease_of_the_queue_was_known_gets_it() {
    let mut leases = Leases::new(LEASE * 10, CancellationToken::new());
    leases.set_reaches(Reaches { waiting: Some(WAITING), processing: None });
    let (key, _) = hold(&mut leases);
    assert_eq!(leases.begin(key, Instant::now()), Some(Due { key, reach: WAITING }));
    leases.extended(key, by_hub(Instant::now(), WAITING), &Ok(()));
    leases.set_reaches(Reaches { waiting: Some(WAITING), processing: Some(LEASE) });
    advance(WAITING / 2).await;
    assert_eq!(leases.take_due(Instant::now()), vec![Due { key, reach: LEASE }]);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_become_shorter_is_believed_to_be() {
    let (mut leases, key, state) = held(LEASE * 10);
    let began = Instant::now();
    assert!(leases.begin(key, began).is_some());
    leases.extended(key, by_hub(began, LEASE), &Ok(()));
    leases.holder_asks(key, WAITING);
    assert_eq!(state.until(), Some(began + WAITING), "before the answer");
    leases.extended(key, by_holder(began, WAITING), &Err(Error::timed_out("")));
    assert_eq!(state.until(), Some(began + WAITING), "without one");
    assert_eq!(leases.take_due(began), vec![Due { key, reach: LEASE }]);
    leases.extended(key, by_hub(began, LEASE), &Ok(()));
    assert_eq!(state.until(), Some(began + LEASE));
}

#[tokio::test(start_paused = true)]
async fn who_made_a_lease_shorter_is_told_when_it_ended_although_no_answer_came() {
    let (mut leases, key, state) = held(LEASE * 10);
    let began = Instant::now();
    assert!(leases.begin(key, began).is_some());
    leases.extended(key, by_hub(began, LEASE), &Ok(()));
    leases.holder_asks(key, WAITING);
    assert_eq!(leases.next_deadline(), Some(began + WAITING));
    advance(WAITING).await;
    assert!(leases.take_due(Instant::now()).is_empty());
    assert!(state.until().is_none());
    // One that was not made shorter is looked at when it would have been.
    let (key, state) = hold(&mut leases);
    let before = leases.next_deadline();
    leases.holder_asks(key, LEASE);
    assert_eq!(leases.next_deadline(), before);
    assert_eq!(state.until(), Some(Instant::now() + WAITING));
}

/// Either may be the last that the node did.
#[tokio::test(start_paused = true)]
async fn after_two_extensions_at_once_comes_another() {
    let (mut leases, key, _) = held(LEASE * 10);
    leases.begin(key, Instant::now());
    leases.holder_asks(key, LEASE * 2);
    let asked = Instant::now();
    leases.extended(key, by_hub(asked, LEASE), &Ok(()));
    assert!(leases.take_due(asked).is_empty(), "none goes beside the holder's");
    leases.extended(key, by_holder(asked, LEASE * 2), &Ok(()));
    assert_eq!(leases.take_due(asked), vec![Due { key, reach: LEASE * 2 }]);
    leases.extended(key, by_hub(asked, LEASE * 2), &Ok(()));
    assert!(leases.take_due(asked).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_may_not_grow_as_far_grows_by_half() {
    let longest = Duration::from_secs(12 * 60 * 60);
    let mut leases = Leases::new(longest * 2, CancellationToken::new());
    leases.set_reaches(Reaches { waiting: Some(WAITING), processing: Some(longest) });
    let (key, state) = hold(&mut leases);
    let granted = Instant::now();
    advance(Duration::from_secs(1)).await;
    let mut due = leases.begin(key, Instant::now()).into_iter().collect::<Vec<_>>();
    let mut asked = 0;
    // Most of the twelve hours are had, by few requests.
    while state.until().is_some() {
        for Due { reach, .. } in std::mem::take(&mut due) {
            let now = Instant::now();
            let is_too_long = now + reach > granted + longest;
            let refused = || Err(Error::not_done(Reason::LeaseTooLong, "over 12 h"));
            leases.extended(key, by_hub(now, reach), &if is_too_long { refused() } else { Ok(()) });
            asked += 1;
        }
        if let Some(next) = leases.next_deadline() {
            advance(next.saturating_duration_since(Instant::now())).await;
        }
        due = leases.take_due(Instant::now());
    }
    let lasted = granted.elapsed();
    assert!(lasted <= longest && lasted > longest - Duration::from_secs(10), "{lasted:?}");
    assert!(asked < 100, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_begins_to_work_on_is_given_back_and_does_not_expire() {
    let (mut leases, key, state) = held(WAITING);
    while state.until().is_some() {
        let next = leases.next_deadline().unwrap();
        advance(next.saturating_duration_since(Instant::now())).await;
        let now = Instant::now();
        for Due { reach, .. } in leases.take_due(now) {
            assert_eq!(leases.take_unwanted(), []);
            leases.extended(key, by_hub(now, reach), &Ok(()));
        }
    }
    assert_eq!(leases.take_unwanted(), [key]);
    // Its delivery waits on: nobody begins on it any more, and none is asked for in its place before it is dropped.
    assert_eq!(leases.begin(key, Instant::now()), None);
    assert_eq!((leases.next_deadline(), leases.len()), (None, 1));
    assert!(leases.is_given_back(key));
    leases.forget(key);
    assert_eq!(leases.len(), 0);
    assert_eq!(leases.next_deadline(), None);
}
