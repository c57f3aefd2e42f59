//! What is refused, in which words, and that refusing changes nothing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use leasehold_catalogue::{
    AddNode, AddPartitions, Catalogue, Command, CreateQueue, DeleteQueue, ForgetNode, Found, Founder, Kind,
    QueueChange, Refusal, RemoveNode, Reply, SetQueue, SetVersion, SettlePartition, TagQueue, UpdateNode,
};

fn founder(node: u64) -> Founder {
    Founder {
        node,
        name: format!("n{node}"),
        peer_address: format!("n{node}:7701"),
        client_address: format!("n{node}:7700"),
        catalogue_replica: node,
    }
}

fn found(founders: Vec<Founder>) -> Found {
    Found {
        cluster_id: vec![1; 16],
        secret: vec![2; 32],
        replication: 1,
        partitions: 4,
        founders,
        version: 1,
    }
}

fn founded() -> Catalogue {
    let mut catalogue = Catalogue::new();
    let found = Found { replication: 3, ..found((1..=3).map(founder).collect()) };
    assert_eq!(apply(&mut catalogue, Kind::Found(found)), Reply::Done);
    catalogue
}

fn apply(catalogue: &mut Catalogue, kind: Kind) -> Reply {
    let before = catalogue.state_hash();
    let reply = catalogue.apply(catalogue.revision() + 1, &Command::bytes(kind)).unwrap();
    catalogue.check_invariants().unwrap();
    let refused = matches!(reply, Reply::Refused { .. });
    assert!(!refused || catalogue.state_hash() == before, "a refusal changed something: {reply:?}");
    reply
}

fn refused(catalogue: &mut Catalogue, kind: Kind) -> (Refusal, String) {
    match apply(catalogue, kind) {
        Reply::Refused { refusal, detail } => (refusal, detail),
        other => panic!("not refused: {other:?}"),
    }
}

fn create(name: &str, settings: QueueChange) -> Kind {
    Kind::CreateQueue(CreateQueue { name: name.to_owned(), settings, ..CreateQueue::default() })
}

fn tag(set: &[(String, String)], remove: &[&str]) -> Kind {
    let remove = remove.iter().map(|key| (*key).to_owned()).collect();
    Kind::TagQueue(TagQueue { name: "q".to_owned(), set: set.iter().cloned().collect(), remove, wall_ms: 9 })
}

#[test]
fn a_founding_brings_distinct_ids_and_whole_secrets() {
    let same_id = vec![founder(1), Founder { node: 1, ..founder(2) }];
    let same_replica = vec![founder(1), Founder { catalogue_replica: 1, ..founder(2) }];
    let twice = "two nodes have the same id or the same replica of the catalogue";
    let id = |id: u64| format!("the id {id} of a node or replica: it can be 1 to 9223372036854775807");
    let cases = [
        (found(same_id), twice.to_owned()),
        (found(same_replica), twice.to_owned()),
        (found(vec![Founder { node: u64::MAX, ..founder(1) }]), id(u64::MAX)),
        (found(vec![Founder { catalogue_replica: u64::MAX, ..founder(1) }]), id(u64::MAX)),
        (found(vec![founder(0)]), id(0)),
        (
            Found { cluster_id: vec![1; 15], ..found(vec![founder(1)]) },
            "cluster_id has 15 bytes: it must have 16".to_owned(),
        ),
        (
            Found { secret: vec![], ..found(vec![founder(1)]) },
            "secret has 0 bytes: it must have 32".to_owned(),
        ),
        (
            found(vec![Founder { peer_address: "n1".to_owned(), ..founder(1) }]),
            "\"n1\" is no address: give host:port".to_owned(),
        ),
    ];
    for (found, expected) in cases {
        let mut catalogue = Catalogue::new();
        assert_eq!(refused(&mut catalogue, Kind::Found(found)), (Refusal::InvalidArgument, expected));
        assert!(catalogue.cluster().is_none());
    }
}

#[test]
fn the_ends_of_every_range_are_inside_it() {
    let change = QueueChange::default;
    for settings in [
        QueueChange { lease_ms: Some(0), delay_ms: Some(0), deduplication_window_ms: Some(0), ..change() },
        QueueChange { lease_ms: Some(43_200_000), delay_ms: Some(900_000), ..change() },
        QueueChange {
            retention_ms: Some(60_000),
            in_flight_max: Some(1),
            message_bytes_max: Some(1),
            ..change()
        },
        QueueChange { retention_ms: Some(1_209_600_000), in_flight_max: Some(1_000_000), ..change() },
        QueueChange {
            message_bytes_max: Some(1_048_576),
            deduplication_window_ms: Some(86_400_000),
            ..change()
        },
        QueueChange { length_max: Some(u64::MAX), bytes_max: Some(u64::MAX), ..change() },
        QueueChange { adaptive_lease_ms_max: Some(43_200_000), ..change() },
        QueueChange { lease_ms: Some(7), adaptive_lease_ms_max: Some(7), ..change() },
        QueueChange { adaptive_lease_ms_max: Some(0), ..change() },
        QueueChange { retry_percent: Some(1), retry_floor_per_s: Some(1), ..change() },
        QueueChange { retry_percent: Some(1_000), retry_floor_per_s: Some(10_000), ..change() },
        QueueChange { retry_percent: Some(0), isolate_suspects: Some(false), kind: Some(1), ..change() },
        QueueChange { isolate_suspects: Some(true), ..change() },
    ] {
        assert!(matches!(apply(&mut founded(), create("q", settings)), Reply::Queue { created: true, .. }));
    }
}

#[test]
fn one_beyond_a_range_is_refused_by_creating_and_by_changing() {
    let change = QueueChange::default;
    let cases = [
        (
            QueueChange { retention_ms: Some(59_999), ..change() },
            "retention_ms is 59999: it can be 60000 to 1209600000",
        ),
        (
            QueueChange { retention_ms: Some(1_209_600_001), ..change() },
            "retention_ms is 1209600001: it can be 60000 to 1209600000",
        ),
        (
            QueueChange { in_flight_max: Some(1_000_001), ..change() },
            "in_flight_max is 1000001: it can be 1 to 1000000",
        ),
        (
            QueueChange { message_bytes_max: Some(0), ..change() },
            "message_bytes_max is 0: it can be 1 to 1048576",
        ),
        (
            QueueChange { message_bytes_max: Some(1_048_577), ..change() },
            "message_bytes_max is 1048577: it can be 1 to 1048576",
        ),
        (QueueChange { receives_max: Some(0), ..change() }, "receives_max is 0: it can be 1 to 1000"),
        (
            QueueChange { adaptive_lease_ms_max: Some(43_200_001), ..change() },
            "adaptive_lease_ms_max is 43200001: it can be 0 to 43200000",
        ),
        (
            QueueChange { adaptive_lease_ms_max: Some(29_999), ..change() },
            "adaptive_lease_ms_max is 29999: it can be 0 (off), or lease_ms (30000) to 43200000",
        ),
        (
            QueueChange { lease_ms: Some(8), adaptive_lease_ms_max: Some(7), ..change() },
            "adaptive_lease_ms_max is 7: it can be 0 (off), or lease_ms (8) to 43200000",
        ),
        (
            QueueChange { retry_percent: Some(1_001), ..change() },
            "retry_percent is 1001: it can be 0 to 1000",
        ),
        (
            QueueChange { retry_floor_per_s: Some(0), ..change() },
            "retry_floor_per_s is 0: it can be 1 to 10000",
        ),
    ];
    let mut catalogue = founded();
    apply(&mut catalogue, create("there", change()));
    for (change, expected) in cases {
        let expected = (Refusal::InvalidArgument, expected.to_owned());
        assert_eq!(refused(&mut catalogue, create("q", change.clone())), expected);
        let set = SetQueue { name: "there".to_owned(), change, wall_ms: 1, ..SetQueue::default() };
        assert_eq!(refused(&mut catalogue, Kind::SetQueue(set)), expected);
    }
}

#[test]
fn nothing_is_held_back_in_a_fifo_queue() {
    let budget = "retry_percent is 20: a FIFO queue has no retry budget (0), because a message that waits holds back its group";
    let isolation = "isolate_suspects is true: a FIFO queue isolates none (false), because a message that waits holds back its \
                     group";
    let change = QueueChange::default;
    let cases = [
        (QueueChange { retry_percent: Some(20), ..change() }, budget),
        (QueueChange { isolate_suspects: Some(true), ..change() }, isolation),
    ];
    let mut catalogue = founded();
    apply(&mut catalogue, create("there", QueueChange { kind: Some(1), ..change() }));
    for (change, expected) in cases {
        let expected = (Refusal::InvalidArgument, expected.to_owned());
        let both = QueueChange { kind: Some(1), ..change.clone() };
        assert_eq!(refused(&mut catalogue, create("q", both)), expected);
        let set = SetQueue { name: "there".to_owned(), change, wall_ms: 1, ..SetQueue::default() };
        assert_eq!(refused(&mut catalogue, Kind::SetQueue(set)), expected);
    }
}

#[test]
fn a_queue_has_a_known_kind_and_keeps_it() {
    let mut catalogue = founded();
    let kind = |kind| QueueChange { kind: Some(kind), ..QueueChange::default() };
    let expected = |detail: &str| (Refusal::InvalidArgument, detail.to_owned());
    assert_eq!(
        refused(&mut catalogue, create("q", kind(7))),
        expected("kind is 7: it can be 0 (standard) or 1 (FIFO)")
    );
    apply(&mut catalogue, create("q", kind(1)));
    let set =
        |change| Kind::SetQueue(SetQueue { name: "q".to_owned(), change, wall_ms: 1, ..SetQueue::default() });
    assert_eq!(refused(&mut catalogue, set(kind(0))), expected("kind cannot change: make another queue"));
    assert!(matches!(apply(&mut catalogue, set(kind(1))), Reply::Queue { created: false, .. }));
}

#[test]
fn names_have_80_characters_at_most() {
    let mut catalogue = founded();
    apply(&mut catalogue, create(&"q".repeat(80), QueueChange::default()));
    let (refusal, detail) = refused(&mut catalogue, create(&"q".repeat(81), QueueChange::default()));
    assert_eq!(refusal, Refusal::InvalidArgument);
    assert!(
        detail.starts_with("a queue's name has 1 to 80 characters: ") && detail.ends_with(" has 81"),
        "{detail}"
    );
    let add = |name: &str, peer_address: &str| {
        let (name, peer_address) = (name.to_owned(), peer_address.to_owned());
        Kind::AddNode(AddNode { name, peer_address, client_address: String::new() })
    };
    let expected = "a node's name consists of letters, digits, '-', '_' and '.': \"n/4\" has '/'";
    assert_eq!(refused(&mut catalogue, add("n/4", "h:1")).1, expected);
    assert_eq!(refused(&mut catalogue, add("n4", "h")).1, "\"h\" is no address: give host:port");
}

#[test]
fn tags_are_set_and_removed_within_their_limits() {
    let mut catalogue = founded();
    apply(&mut catalogue, create("q", QueueChange::default()));
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let many = (0..50).map(|at| pair(&format!("k{at:02}"), "v")).collect::<Vec<_>>();
    assert_eq!(apply(&mut catalogue, tag(&many, &[])), Reply::Done);
    let expected = "a queue has at most 50 tags: these are 51";
    assert_eq!(refused(&mut catalogue, tag(&[pair("one-more", "v")], &[])).1, expected);
    assert_eq!(apply(&mut catalogue, tag(&[pair("one-more", "v")], &["k00"])), Reply::Done);
    let keys = catalogue.queue_by_name("q").unwrap().tags.keys().cloned().collect::<Vec<_>>();
    assert!(keys.len() == 50 && keys.contains(&"one-more".to_owned()) && !keys.contains(&"k00".to_owned()));
    assert_eq!(
        apply(&mut catalogue, tag(&[pair(&"k".repeat(128), &"v".repeat(256))], &["k01"])),
        Reply::Done
    );
    for (key, value) in [(String::new(), 1), ("k".repeat(129), 1), ("k02".to_owned(), 257)] {
        let (refusal, detail) = refused(&mut catalogue, tag(&[pair(&key, &"v".repeat(value))], &["k03"]));
        assert_eq!(refusal, Refusal::InvalidArgument);
        let expected =
            format!("the tag {key:?} does not fit: a key has 1 to 128 characters, a value at most 256");
        assert_eq!(detail, expected);
    }
    let tags = BTreeMap::from([(String::new(), String::new())]);
    let create = CreateQueue { name: "r".to_owned(), tags, ..CreateQueue::default() };
    assert_eq!(refused(&mut catalogue, Kind::CreateQueue(create)).0, Refusal::InvalidArgument);
}

#[test]
fn what_does_not_exist_is_named() {
    let mut catalogue = founded();
    let gone = || "gone".to_owned();
    let queue = (Refusal::UnknownQueue, "queue gone does not exist".to_owned());
    let set = SetQueue { name: gone(), ..SetQueue::default() };
    assert_eq!(refused(&mut catalogue, Kind::SetQueue(set)), queue);
    let tag = TagQueue { name: gone(), ..TagQueue::default() };
    assert_eq!(refused(&mut catalogue, Kind::TagQueue(tag)), queue);
    assert_eq!(
        refused(&mut catalogue, Kind::DeleteQueue(DeleteQueue { name: gone(), ..DeleteQueue::default() })),
        queue
    );
    let to_gone = QueueChange { dead_letter_queue: Some(gone()), ..QueueChange::default() };
    let expected = "dead_letter_queue gone does not exist: create it first";
    assert_eq!(refused(&mut catalogue, create("q", to_gone)).1, expected);
    let node = (Refusal::UnknownNode, "no node is named gone".to_owned());
    assert_eq!(refused(&mut catalogue, Kind::RemoveNode(RemoveNode { name: gone() })), node);
    let update = UpdateNode { id: 9, peer_address: "h:1".to_owned(), client_address: "h:2".to_owned() };
    let unknown = (Refusal::UnknownNode, "no node 9 is in the cluster, or it is leaving".to_owned());
    assert_eq!(refused(&mut catalogue, Kind::UpdateNode(update)), unknown);
    let settle = SettlePartition { partition: 4, replicas: vec![] };
    let unknown = (Refusal::UnknownPartition, "there is no partition 4".to_owned());
    assert_eq!(refused(&mut catalogue, Kind::SettlePartition(settle)), unknown);
    for (count, expected) in [
        (0, "0 partitions more would be 4: there can be 1 to 1024"),
        (u32::MAX, "4294967295 partitions more would be 4294967299: there can be 1 to 1024"),
    ] {
        assert_eq!(refused(&mut catalogue, Kind::AddPartitions(AddPartitions { count })).1, expected);
    }
}

#[test]
fn repeating_a_command_changes_nothing_more() {
    let mut catalogue = founded();
    let settings = QueueChange { lease_ms: Some(7), ..QueueChange::default() };
    let Reply::Queue { id, created: true } = apply(&mut catalogue, create("q", settings.clone())) else {
        panic!()
    };
    assert_eq!(apply(&mut catalogue, create("q", settings)), Reply::Queue { id, created: false });
    assert_eq!(catalogue.queues().len(), 1);
    let partition = catalogue.partitions().next().unwrap().clone();
    let replicas = partition.replicas.iter().map(|replica| replica.id).collect::<Vec<_>>();
    for _ in 0..2 {
        let settle = SettlePartition { partition: partition.id, replicas: replicas.clone() };
        assert_eq!(apply(&mut catalogue, Kind::SettlePartition(settle)), Reply::Done);
        let update =
            UpdateNode { id: 2, peer_address: "new:1".to_owned(), client_address: "new:2".to_owned() };
        assert_eq!(apply(&mut catalogue, Kind::UpdateNode(update)), Reply::Done);
        assert_eq!(apply(&mut catalogue, Kind::ForgetNode(ForgetNode { id: 99 })), Reply::Done);
    }
    assert_eq!(catalogue.node_by_name("n2").unwrap().peer_address, "new:1");
    for (version, expected) in [(3, 3), (2, 3), (3, 3)] {
        assert_eq!(apply(&mut catalogue, Kind::SetVersion(SetVersion { version })), Reply::Done);
        assert_eq!(catalogue.cluster().unwrap().version, expected);
    }
}

#[test]
fn bytes_that_are_no_command_change_nothing() {
    let mut catalogue = founded();
    let before = catalogue.clone();
    for bytes in [&b""[..], b"\xff", b"\x0a\x05\x01", b"\xfa\x01\x00"] {
        assert!(catalogue.apply(7, bytes).is_err(), "{bytes:?}");
    }
    assert_eq!(catalogue, before);
}
