//! What interfaces need of queues beside their settings: labels, pauses, changes that depend on a read, and who sends where.
#![allow(clippy::unwrap_used)]

use leasehold_catalogue::{
    Catalogue, Command, CreateQueue, DeleteQueue, Found, Founder, Kind, PacePurge, QueueChange, RedriveAllow,
    RedriveRule, Refusal, Reply, SetQueue,
};

fn founded() -> Catalogue {
    let mut catalogue = Catalogue::new();
    let founder = Founder {
        node: 1,
        name: "n1".to_owned(),
        peer_address: "n1:1".to_owned(),
        client_address: "n1:2".to_owned(),
        catalogue_replica: 1,
    };
    let (cluster_id, secret) = (vec![1; 16], vec![2; 32]);
    let found =
        Found { cluster_id, secret, replication: 1, partitions: 4, founders: vec![founder], version: 1 };
    assert_eq!(apply(&mut catalogue, Kind::Found(found)), Reply::Done);
    catalogue
}

fn apply(catalogue: &mut Catalogue, kind: Kind) -> Reply {
    let reply = catalogue.apply(catalogue.revision() + 1, &Command::bytes(kind)).unwrap();
    catalogue.check_invariants().unwrap();
    assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
    reply
}

fn refused(catalogue: &mut Catalogue, kind: Kind) -> (Refusal, String) {
    let before = catalogue.state_hash();
    match catalogue.apply(catalogue.revision() + 1, &Command::bytes(kind)).unwrap() {
        Reply::Refused { refusal, detail } => {
            assert_eq!(catalogue.state_hash(), before, "a refusal changed something");
            (refusal, detail)
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn create(name: &str, settings: QueueChange) -> Kind {
    Kind::CreateQueue(CreateQueue { name: name.to_owned(), settings, ..CreateQueue::default() })
}

fn allow(rule: RedriveRule, queues: &[&str]) -> QueueChange {
    let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
    let redrive_allow = Some(RedriveAllow { rule: rule as i32, queues });
    QueueChange { redrive_allow, ..QueueChange::default() }
}

fn set(name: &str, change: QueueChange) -> Kind {
    Kind::SetQueue(SetQueue { name: name.to_owned(), change, wall_ms: 1, ..SetQueue::default() })
}

fn sends_to(dead: &str) -> QueueChange {
    QueueChange { dead_letter_queue: Some(dead.to_owned()), ..QueueChange::default() }
}

#[test]
fn a_dead_letter_queue_chooses_whose_messages_it_takes() {
    let mut catalogue = founded();
    apply(&mut catalogue, create("dead", allow(RedriveRule::Named, &["a", "later"])));
    apply(&mut catalogue, create("a", sends_to("dead")));
    let (refusal, detail) = refused(&mut catalogue, create("b", sends_to("dead")));
    assert_eq!(refusal, Refusal::InvalidArgument);
    assert!(detail.contains("redrive_allow"), "{detail}");
    apply(&mut catalogue, create("later", sends_to("dead")));
    apply(&mut catalogue, set("dead", allow(RedriveRule::Nobody, &[])));
    // Who sends there goes on, and may say so again.
    apply(&mut catalogue, set("a", QueueChange { receives_max: Some(3), ..sends_to("dead") }));
    assert_eq!(
        apply(&mut catalogue, create("later", sends_to("dead"))),
        Reply::Queue { id: 3, created: false }
    );
    refused(&mut catalogue, create("b", sends_to("dead")));
    apply(&mut catalogue, set("dead", allow(RedriveRule::Any, &[])));
    apply(&mut catalogue, create("b", sends_to("dead")));
    let dead = catalogue.queue_by_name("dead").unwrap().queue_id();
    assert_eq!(catalogue.dead_letter_sources(dead, "a").collect::<Vec<_>>(), ["b", "later"]);
    for wrong in [
        allow(RedriveRule::Named, &[]),
        allow(RedriveRule::Any, &["a"]),
        allow(RedriveRule::Named, &["q"; 11]),
    ] {
        refused(&mut catalogue, set("dead", wrong));
    }
}

#[test]
fn labels_are_bounded_and_go_with_an_empty_value() {
    let mut catalogue = founded();
    let labels = |pairs: &[(&str, &str)]| QueueChange {
        labels: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..QueueChange::default()
    };
    apply(&mut catalogue, create("q", labels(&[("a", "1"), ("b", "2")])));
    apply(&mut catalogue, set("q", labels(&[("a", ""), ("c", "3")])));
    let kept = catalogue.queue_by_name("q").unwrap().settings.labels.clone();
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [("b".into(), "2".into()), ("c".into(), "3".into())]);
    let large = "x".repeat(33 * 1024);
    let names = (0..33).map(|number| format!("n{number}")).collect::<Vec<_>>();
    let many = names.iter().map(|name| (name.as_str(), "x")).collect::<Vec<_>>();
    for wrong in
        [labels(&[("", "x")]), labels(&[(&"n".repeat(65), "x")]), labels(&[("a", &large)]), labels(&many)]
    {
        assert_eq!(refused(&mut catalogue, set("q", wrong)).0, Refusal::InvalidArgument);
    }
}

#[test]
fn pauses_are_kept_by_those_who_ask_for_them() {
    let mut catalogue = founded();
    let make = |wall_ms, pause_ms| {
        let name = "q".to_owned();
        Kind::CreateQueue(CreateQueue { name, wall_ms, pause_ms, ..CreateQueue::default() })
    };
    let delete = |remember_wall_ms| Kind::DeleteQueue(DeleteQueue { name: "q".to_owned(), remember_wall_ms });
    let purge = |wall_ms| Kind::PacePurge(PacePurge { name: "q".to_owned(), wall_ms, pause_ms: 60_000 });
    apply(&mut catalogue, make(1_000, 60_000));
    apply(&mut catalogue, purge(2_000));
    assert_eq!(refused(&mut catalogue, purge(61_999)).0, Refusal::TooSoon);
    // The same request again, whose answer was lost.
    apply(&mut catalogue, purge(2_000));
    apply(&mut catalogue, purge(62_000));
    apply(&mut catalogue, delete(70_000));
    assert_eq!(refused(&mut catalogue, make(129_999, 60_000)).0, Refusal::TooSoon);
    let restored = Catalogue::restore(&catalogue.snapshot()).unwrap();
    assert_eq!(restored, catalogue);
    apply(&mut catalogue, make(129_999, 0));
    apply(&mut catalogue, delete(0));
    apply(&mut catalogue, make(130_000, 60_000));
    // Only so many are remembered.
    for number in 0..1_100 {
        let name = format!("n{number}");
        apply(&mut catalogue, create(&name, QueueChange::default()));
        apply(&mut catalogue, Kind::DeleteQueue(DeleteQueue { name, remember_wall_ms: 200_000 + number }));
    }
}

#[test]
fn a_change_may_ask_for_the_revision_that_was_read() {
    let mut catalogue = founded();
    apply(&mut catalogue, create("q", QueueChange::default()));
    let read = catalogue.queue_by_name("q").unwrap().revision;
    let set = |if_revision| {
        let change = QueueChange { lease_ms: Some(5), ..QueueChange::default() };
        Kind::SetQueue(SetQueue {
            name: "q".to_owned(),
            change,
            wall_ms: 1,
            if_revision,
            ..SetQueue::default()
        })
    };
    apply(&mut catalogue, set(read));
    assert_eq!(refused(&mut catalogue, set(read)).0, Refusal::Changed);
    apply(&mut catalogue, set(0));
}

#[test]
fn settings_and_tags_change_together_or_not_at_all() {
    let mut catalogue = founded();
    apply(&mut catalogue, create("q", QueueChange::default()));
    let tags = |catalogue: &Catalogue| catalogue.queue_by_name("q").unwrap().tags.clone();
    let lease_ms = |catalogue: &Catalogue| catalogue.queue_by_name("q").unwrap().settings.lease_ms;
    let set = |lease_ms, if_revision, key: &str| {
        let change = QueueChange { lease_ms: Some(lease_ms), ..QueueChange::default() };
        let tags = [(key.to_owned(), "v".to_owned())].into();
        let tags_removed = vec!["first".to_owned()];
        let name = "q".to_owned();
        Kind::SetQueue(SetQueue { name, change, wall_ms: 1, if_revision, tags, tags_removed })
    };
    apply(&mut catalogue, set(5_000, 0, "second"));
    let (before, read) = (tags(&catalogue), catalogue.queue_by_name("q").unwrap().revision);
    assert_eq!(before.keys().collect::<Vec<_>>(), ["second"]);
    assert_eq!(lease_ms(&catalogue), 5_000);
    // Settings that do not fit, a revision that is gone, and tags that do not fit each refuse all of it.
    for wrong in [set(u64::MAX, 0, "third"), set(6_000, read - 1, "third"), set(6_000, 0, "")] {
        refused(&mut catalogue, wrong);
        assert_eq!(tags(&catalogue), before);
        assert_eq!(lease_ms(&catalogue), 5_000);
        assert_eq!(catalogue.queue_by_name("q").unwrap().revision, read);
    }
}
