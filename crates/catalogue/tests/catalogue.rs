//! Commands on a catalogue: what they do, what they refuse, and that every replica agrees.
#![allow(clippy::unwrap_used)]

use leasehold_catalogue::{
    AddNode, AddPartitions, Catalogue, Command, CreateQueue, DeleteQueue, ForgetNode, Found, Founder, Kind,
    PartitionId, PlacePartition, QueueChange, QueueKind, Rebalance, Refusal, RemoveNode, Reply, RequestName,
    RestoreError, SetQueue, SettlePartition, shard_of_group,
};

/// A catalogue, and the commands that led to it.
struct Rig {
    catalogue: Catalogue,
    log: Vec<Vec<u8>>,
}

impl Rig {
    fn empty() -> Self {
        Self { catalogue: Catalogue::new(), log: Vec::new() }
    }

    fn founded(nodes: u64, partitions: u32, replication: u32) -> Self {
        let mut rig = Self::empty();
        let founders = (1..=nodes).map(|node| Founder {
            node,
            name: format!("n{node}"),
            peer_address: format!("10.0.0.{node}:7701"),
            client_address: format!("10.0.0.{node}:7700"),
            catalogue_replica: node,
        });
        let (cluster_id, secret) = (vec![1; 16], vec![2; 32]);
        let found =
            Found { cluster_id, secret, replication, partitions, founders: founders.collect(), version: 1 };
        assert_eq!(rig.apply(Kind::Found(found)), Reply::Done);
        rig
    }

    fn apply(&mut self, kind: Kind) -> Reply {
        self.log.push(Command::bytes(kind));
        let index = self.log.len() as u64;
        let reply = self.catalogue.apply(index, &self.log[self.log.len() - 1]).unwrap();
        self.catalogue.check_invariants().unwrap();
        reply
    }

    fn settle_all(&mut self) {
        let partitions = self.catalogue.partitions().cloned().collect::<Vec<_>>();
        for partition in partitions {
            let replicas = partition.replicas.iter().map(|replica| replica.id).collect();
            assert_eq!(
                self.apply(Kind::SettlePartition(SettlePartition { partition: partition.id, replicas })),
                Reply::Done
            );
        }
    }

    fn create(&mut self, name: &str, settings: QueueChange, shards: u32) -> Reply {
        let name = name.to_owned();
        self.apply(Kind::CreateQueue(CreateQueue { name, settings, shards, ..CreateQueue::default() }))
    }

    fn set(&mut self, name: &str, change: QueueChange) -> Reply {
        self.apply(Kind::SetQueue(SetQueue {
            name: name.to_owned(),
            change,
            wall_ms: 5,
            ..SetQueue::default()
        }))
    }

    /// Replicas and preferred leaders of each node.
    fn loads(&self) -> Vec<(usize, usize)> {
        let on = |node: u64| {
            let replicas =
                self.catalogue.partitions().filter(|p| p.replicas.iter().any(|replica| replica.node == node));
            let leads = self.catalogue.partitions().filter(|p| p.replicas[0].node == node);
            (replicas.count(), leads.count())
        };
        self.catalogue.nodes().map(|node| on(node.id)).collect()
    }
}

fn add(name: &str, port: u32) -> Kind {
    let peer_address = format!("10.0.1.1:{port}");
    Kind::AddNode(AddNode { name: name.to_owned(), peer_address, client_address: String::new() })
}

fn refusal(reply: &Reply) -> (Refusal, &str) {
    match reply {
        Reply::Refused { refusal, detail } => (*refusal, detail),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn nothing_works_before_the_cluster_is_founded_and_it_is_founded_once() {
    let mut rig = Rig::empty();
    assert_eq!(refusal(&rig.create("q", QueueChange::default(), 1)).0, Refusal::NotFounded);
    let mut rig = Rig::founded(3, 4, 3);
    assert_eq!(refusal(&rig.apply(Kind::Found(Found::default()))).0, Refusal::AlreadyFounded);
}

#[test]
fn a_founding_that_cannot_work_says_why() {
    let founder = |node: u64| Founder {
        node,
        name: "same".to_owned(),
        peer_address: format!("h:{node}"),
        catalogue_replica: node,
        ..Founder::default()
    };
    let cases = [
        (
            Found { replication: 2, partitions: 1, ..Found::default() },
            "replication is 2: it can be 1, 3 or 5",
        ),
        (
            Found { replication: 3, partitions: 2000, ..Found::default() },
            "partitions is 2000: it can be 1 to 1024",
        ),
        (
            Found { replication: 3, partitions: 4, ..Found::default() },
            "3 replicas need as many nodes: there are 0",
        ),
        (
            Found {
                replication: 1,
                partitions: 4,
                founders: vec![founder(1), founder(2)],
                ..Found::default()
            },
            "two nodes have the same name or the same address",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(refusal(&Rig::empty().apply(Kind::Found(found))), (Refusal::InvalidArgument, expected));
    }
}

#[test]
fn a_cluster_that_is_founded_again_has_the_queues_and_nothing_of_the_old_nodes() {
    let mut old = Rig::founded(3, 4, 3);
    old.settle_all();
    for name in ["q", "dead", "gone"] {
        assert!(matches!(old.create(name, QueueChange::default(), 4), Reply::Queue { .. }));
    }
    let (name, remember_wall_ms) = ("gone".to_owned(), 7);
    old.apply(Kind::DeleteQueue(DeleteQueue { name, remember_wall_ms }));
    let founder = Founder {
        node: 1,
        name: "other".to_owned(),
        peer_address: "10.1.0.1:7701".to_owned(),
        client_address: "10.1.0.1:7700".to_owned(),
        catalogue_replica: 1,
    };
    let found = |replication| Found {
        cluster_id: vec![8; 16],
        secret: vec![9; 32],
        replication,
        partitions: 77,
        founders: vec![founder.clone()],
        version: 2,
    };
    let copy = || Catalogue::restore(&old.catalogue.snapshot()).unwrap();
    assert_eq!(copy().found_again(found(3)).unwrap_err(), "3 replicas need as many nodes: there are 1");
    assert!(Catalogue::new().found_again(found(1)).is_err());
    let new = copy().found_again(found(1)).unwrap();
    new.check_invariants().unwrap();
    assert_eq!(new.queues().collect::<Vec<_>>(), old.catalogue.queues().collect::<Vec<_>>());
    assert_eq!((new.revision(), new.nodes().len()), (old.catalogue.revision(), 1));
    assert_eq!(new.cluster().unwrap().id, [8; 16]);
    assert_eq!(new.partitions().len(), 4);
    assert!(new.partitions().all(|partition| partition.awaits_state && !partition.is_founded));
    // Its partitions wait until they have founded their groups, and it goes on where the old one was.
    let mut rig = Rig { catalogue: Catalogue::restore(&new.snapshot()).unwrap(), log: old.log.clone() };
    rig.settle_all();
    assert!(rig.catalogue.partitions().all(|partition| !partition.awaits_state && partition.is_founded));
    let [Reply::Queue { id: first, .. }, Reply::Queue { id: second, .. }] =
        [old.create("next", QueueChange::default(), 1), rig.create("next", QueueChange::default(), 1)]
    else {
        panic!("not created")
    };
    assert_eq!(first, second);
}

#[test]
fn placement_is_even_and_never_changes_between_versions() {
    let rig = Rig::founded(5, 32, 3);
    for (replicas, leads) in rig.loads() {
        assert!((19..=20).contains(&replicas) && (5..=8).contains(&leads), "{:?}", rig.loads());
    }
    // Recorded once: a different hash would place the partitions of an existing cluster's twin elsewhere.
    let first =
        rig.catalogue.partitions().take(4).map(|p| p.replicas.iter().map(|r| r.node).collect::<Vec<_>>());
    assert_eq!(first.collect::<Vec<_>>(), GOLDEN_PLACEMENT);
    let groups =
        ["", "a", "b", "order-1"].map(|group| shard_of_group(&[4, 9, 2, 7], group.as_bytes()).unwrap().0);
    assert_eq!(groups, GOLDEN_SHARDS);
}

const GOLDEN_PLACEMENT: [[u64; 3]; 4] = [[2, 1, 5], [3, 2, 1], [4, 5, 3], [1, 4, 2]];
const GOLDEN_SHARDS: [u32; 4] = [7, 4, 9, 9];

#[test]
fn a_new_node_takes_its_share_and_little_else_moves() {
    let mut rig = Rig::founded(3, 12, 3);
    rig.settle_all();
    let Reply::Node { id, catalogue_replica } = rig.apply(add("n4", 1)) else { panic!() };
    assert_eq!(rig.apply(add("n4", 1)), Reply::Node { id, catalogue_replica });
    assert_eq!(refusal(&rig.apply(add("n4", 2))).0, Refusal::NodeExists);
    rig.apply(Kind::Rebalance(Rebalance { moves_max: 100 }));
    assert_eq!(rig.loads().iter().map(|(replicas, _)| *replicas).collect::<Vec<_>>(), [9, 9, 9, 9]);
    let moved = rig.catalogue.partitions().filter(|partition| !partition.is_settled).count();
    assert_eq!(moved, 9);
    assert!(rig.catalogue.partitions().all(|partition| partition.previous.len() <= 1));
    // What is moving is left alone.
    let unsettled = rig.catalogue.partitions().find(|partition| !partition.is_settled).unwrap().id;
    let place = Kind::PlacePartition(PlacePartition { partition: unsettled, nodes: vec![1, 2, 3] });
    assert_eq!(refusal(&rig.apply(place)).0, Refusal::NotSettled);
    rig.settle_all();
    assert!(
        rig.catalogue.partitions().all(|partition| partition.is_settled && partition.previous.is_empty())
    );
}

#[test]
fn a_removed_node_is_forgotten_when_nothing_is_left_on_it() {
    let mut rig = Rig::founded(4, 8, 3);
    rig.settle_all();
    let remove = || Kind::RemoveNode(RemoveNode { name: "n2".to_owned() });
    assert_eq!(rig.apply(remove()), Reply::Done);
    assert!(
        rig.catalogue.partitions().all(|p| p.replicas.len() == 3 && p.replicas.iter().all(|r| r.node != 2))
    );
    assert_eq!(refusal(&rig.apply(Kind::ForgetNode(ForgetNode { id: 2 }))).0, Refusal::NodeInUse);
    assert_eq!(rig.apply(remove()), Reply::Done);
    rig.settle_all();
    assert_eq!(rig.apply(Kind::ForgetNode(ForgetNode { id: 2 })), Reply::Done);
    assert_eq!(rig.catalogue.nodes().len(), 3);
    // Its name can be used again; its id cannot.
    let Reply::Node { id, .. } = rig.apply(add("n2", 1)) else { panic!() };
    assert_eq!(id, 5);
}

#[test]
fn with_too_few_nodes_partitions_shrink_and_the_last_node_stays() {
    let mut rig = Rig::founded(3, 4, 3);
    rig.settle_all();
    let remove = |name: &str| Kind::RemoveNode(RemoveNode { name: name.to_owned() });
    assert_eq!(rig.apply(remove("n1")), Reply::Done);
    assert!(rig.catalogue.partitions().all(|partition| partition.replicas.len() == 2));
    assert_eq!(rig.catalogue.nodes().filter(|node| node.is_catalogue_voter).count(), 1);
    assert_eq!(rig.apply(remove("n2")), Reply::Done);
    assert_eq!(refusal(&rig.apply(remove("n3"))).0, Refusal::LastNode);
    assert_eq!(refusal(&rig.apply(remove("n9"))).0, Refusal::UnknownNode);
}

#[test]
fn queues_are_made_once_and_found_by_name() {
    let mut rig = Rig::founded(3, 4, 3);
    let Reply::Queue { id, created: true } = rig.create("orders", QueueChange::default(), 2) else {
        panic!()
    };
    assert_eq!(rig.create("orders", QueueChange::default(), 2), Reply::Queue { id, created: false });
    let other = QueueChange { lease_ms: Some(1), ..QueueChange::default() };
    assert_eq!(refusal(&rig.create("orders", other, 2)).0, Refusal::QueueExists);
    let queue = rig.catalogue.queue_by_name("orders").unwrap();
    assert_eq!(
        (queue.shards.len(), queue.settings.lease_ms, queue.settings.in_flight_max),
        (2, 30_000, 120_000)
    );
    assert_eq!(
        rig.apply(Kind::DeleteQueue(DeleteQueue { name: "orders".to_owned(), ..DeleteQueue::default() })),
        Reply::Done
    );
    let Reply::Queue { id: second, created: true } = rig.create("orders", QueueChange::default(), 1) else {
        panic!()
    };
    assert_ne!(id, second);
}

#[test]
fn many_queues_spread_evenly_over_the_partitions() {
    let mut rig = Rig::founded(3, 16, 3);
    for queue in 0..160 {
        rig.create(&format!("q{queue}"), QueueChange::default(), 1);
    }
    assert!(rig.catalogue.partitions().all(|partition| partition.shards == 10));
}

#[test]
fn each_limit_of_a_queue_names_the_setting_and_the_range() {
    let mut rig = Rig::founded(3, 4, 3);
    let change = QueueChange::default;
    let cases = [
        (
            QueueChange { lease_ms: Some(43_200_001), ..change() },
            "lease_ms is 43200001: it can be 0 to 43200000",
        ),
        (QueueChange { delay_ms: Some(900_001), ..change() }, "delay_ms is 900001: it can be 0 to 900000"),
        (
            QueueChange { retention_ms: Some(1), ..change() },
            "retention_ms is 1: it can be 60000 to 1209600000",
        ),
        (QueueChange { in_flight_max: Some(0), ..change() }, "in_flight_max is 0: it can be 1 to 1000000"),
        (
            QueueChange { message_bytes_max: Some(2_000_000), ..change() },
            "message_bytes_max is 2000000: it can be 1 to 1048576",
        ),
        (QueueChange { receives_max: Some(1001), ..change() }, "receives_max is 1001: it can be 1 to 1000"),
        (QueueChange { receives_max: Some(3), ..change() }, "receives_max needs a dead_letter_queue"),
        (
            QueueChange { deduplication_window_ms: Some(86_400_001), ..change() },
            "deduplication_window_ms is 86400001: it can be 0 to 86400000",
        ),
    ];
    for (settings, expected) in cases {
        assert_eq!(refusal(&rig.create("q", settings, 1)), (Refusal::InvalidArgument, expected));
    }
    let names = [
        ("", "a queue's name has 1 to 80 characters: \"\" has 0"),
        ("a b", "a queue's name consists of letters, digits, '-', '_' and '.': \"a b\" has ' '"),
    ];
    for (name, expected) in names {
        assert_eq!(refusal(&rig.create(name, change(), 1)), (Refusal::InvalidArgument, expected));
    }
    let expected = "shards is 5: the cluster has 4 partitions";
    assert_eq!(refusal(&rig.create("q", change(), 5)), (Refusal::InvalidArgument, expected));
}

#[test]
fn a_dead_letter_queue_exists_is_alike_and_outlives_its_sources() {
    let mut rig = Rig::founded(3, 4, 3);
    let to = |name: &str| QueueChange { dead_letter_queue: Some(name.to_owned()), ..QueueChange::default() };
    assert_eq!(refusal(&rig.create("work", to("dead"), 1)).0, Refusal::UnknownQueue);
    let fifo = QueueChange { kind: Some(QueueKind::Fifo as i32), ..QueueChange::default() };
    rig.create("dead", QueueChange::default(), 1);
    rig.create("fifo", fifo, 1);
    assert!(matches!(rig.create("work", to("dead"), 1), Reply::Queue { created: true, .. }));
    let settings = rig.catalogue.queue_by_name("work").unwrap().settings.clone();
    assert_eq!(settings.dead_letter.unwrap().receives_max, 10);
    assert_eq!(refusal(&rig.set("work", to("fifo"))).0, Refusal::InvalidArgument);
    assert_eq!(refusal(&rig.set("work", to("work"))).0, Refusal::InvalidArgument);
    let delete = || Kind::DeleteQueue(DeleteQueue { name: "dead".to_owned(), ..DeleteQueue::default() });
    let reply = rig.apply(delete());
    assert_eq!(
        refusal(&reply),
        (Refusal::QueueInUse, "dead is the dead-letter queue of work: give that another one first")
    );
    assert!(matches!(rig.set("work", to("")), Reply::Queue { .. }));
    assert_eq!(rig.apply(delete()), Reply::Done);
}

#[test]
fn a_snapshot_and_the_tail_of_the_log_give_what_the_whole_log_gives() {
    let mut rig = Rig::founded(3, 8, 3);
    let mut random = 7_u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for step in 0..400 {
        let name = format!("q{}", next(20));
        let kind = match next(9) {
            0..=3 => {
                let settings = QueueChange { lease_ms: Some(next(3)), ..QueueChange::default() };
                Kind::CreateQueue(CreateQueue {
                    name,
                    settings,
                    shards: next(4) as u32,
                    ..CreateQueue::default()
                })
            }
            4 => Kind::DeleteQueue(DeleteQueue { name, ..DeleteQueue::default() }),
            5 => {
                let dead_letter_queue = Some(format!("q{}", next(20)));
                let change = QueueChange { dead_letter_queue, ..QueueChange::default() };
                Kind::SetQueue(SetQueue { name, change, wall_ms: step, ..SetQueue::default() })
            }
            6 => add(&format!("n{}", next(8)), step as u32 + 1),
            7 => Kind::RemoveNode(RemoveNode { name: format!("n{}", next(8)) }),
            _ => Kind::Rebalance(Rebalance { moves_max: 3 }),
        };
        rig.apply(kind);
        if next(10) == 0 {
            rig.settle_all();
        }
        if next(40) == 0 {
            rig.apply(Kind::AddPartitions(AddPartitions { count: 1 }));
        }
    }
    let middle = rig.log.len() / 2;
    let mut half = Catalogue::new();
    for (at, command) in rig.log[..middle].iter().enumerate() {
        half.apply(at as u64 + 1, command).unwrap();
    }
    let mut restored = Catalogue::restore(&half.snapshot()).unwrap();
    assert_eq!(restored, half);
    for (at, command) in rig.log.iter().enumerate().skip(middle) {
        restored.apply(at as u64 + 1, command).unwrap();
    }
    assert_eq!((restored.state_hash(), &restored), (rig.catalogue.state_hash(), &rig.catalogue));
}

#[test]
fn a_damaged_snapshot_is_noticed() {
    let whole = Rig::founded(3, 4, 3).catalogue.snapshot();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(Catalogue::restore(&bytes).is_err(), "byte {at}");
    }
    let mut newer = whole;
    newer[8] = 9;
    assert_eq!(Catalogue::restore(&newer), Err(RestoreError::NewerVersion(9)));
}

#[test]
fn replies_are_read_back_as_written() {
    let refused = Reply::Refused { refusal: Refusal::LastNode, detail: "why".to_owned() };
    for reply in [
        Reply::Done,
        Reply::Node { id: 4, catalogue_replica: 9 },
        Reply::Queue { id: 7, created: true },
        refused,
    ] {
        assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    }
}

#[test]
fn pages_of_queues_follow_their_names() {
    let mut rig = Rig::founded(3, 4, 3);
    for name in ["b", "a1", "a3", "a2"] {
        rig.create(name, QueueChange::default(), 1);
    }
    let names = |prefix: &str, after: &str| {
        rig.catalogue.queues_named(prefix, after).map(|queue| queue.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("a", ""), ["a1", "a2", "a3"]);
    assert_eq!(names("a", "a1"), ["a2", "a3"]);
    assert_eq!(names("", "a3"), ["b"]);
    assert_eq!(rig.catalogue.partition(PartitionId(9)), None);
}

#[test]
fn a_creation_that_comes_after_its_client_gave_it_up_is_not_executed() {
    let mut rig = Rig::founded(3, 4, 3);
    let create = |name: &str| {
        Kind::CreateQueue(CreateQueue { name: name.to_owned(), shards: 1, ..CreateQueue::default() })
    };
    let mut ask = |sequence, completed_below, kind| {
        let request = RequestName { session: 7, sequence, completed_below };
        rig.log.push(Command::bytes_for(Some(request), kind));
        let reply = rig.catalogue.apply(rig.log.len() as u64, &rig.log[rig.log.len() - 1]).unwrap();
        rig.catalogue.check_invariants().unwrap();
        // What is known of clients is part of the state.
        rig.catalogue = Catalogue::restore(&rig.catalogue.snapshot()).unwrap();
        reply
    };
    assert!(matches!(ask(1, 1, create("q")), Reply::Queue { created: true, .. }));
    assert!(matches!(ask(1, 1, create("q")), Reply::Queue { created: false, .. }));
    let delete = DeleteQueue { name: "q".to_owned(), ..DeleteQueue::default() };
    assert_eq!(ask(2, 2, Kind::DeleteQueue(delete)), Reply::Done);
    let late = ask(1, 1, create("q"));
    assert!(matches!(late, Reply::Refused { refusal: Refusal::RequestOver, .. }), "{late:?}");
    assert!(matches!(ask(3, 3, create("q")), Reply::Queue { created: true, .. }));
}
