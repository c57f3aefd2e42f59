//! A connector between a real node and an endpoint in this process.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold_client::v1::QueueSettings;
use leasehold_client::{
    CancellationToken, Client, Error, NewMessage, QueueKind, Reason, ReceiveOptions, RetryPolicy,
};
use leasehold_cluster_tests::{PATIENCE, Plan, TestCluster, eventually};
use leasehold_connect::testing::{AUTHORITY, Asked, Endpoint, OTHER_AUTHORITY, Reply};
use leasehold_connect::{Connector, Form, Kind, Numbers, Secrets, Settings, Tally};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const LEASE: Duration = Duration::from_secs(300);

/// A queue with its dead-letter queue.
struct Scene {
    cluster: TestCluster,
    client: Client,
}

impl Scene {
    async fn new(settings: QueueSettings) -> Self {
        Self::start(settings, Some("dead".to_owned())).await
    }

    async fn start(settings: QueueSettings, dead_letter_queue: Option<String>) -> Self {
        let cluster = TestCluster::start(Plan { nodes: 1, partitions: 2, ..Plan::default() }).await;
        let client = cluster.client();
        let dead = QueueSettings { kind: settings.kind, ..QueueSettings::default() };
        client.create_queue("dead", dead, 1).await.unwrap();
        let lease_ms = settings.lease_ms.or(Some(LEASE.as_millis() as u64));
        let settings = QueueSettings { lease_ms, dead_letter_queue, ..settings };
        client.create_queue("q", settings, 1).await.unwrap();
        Self { cluster, client }
    }

    async fn send(&self, bodies: impl IntoIterator<Item = impl Into<String>>) {
        let messages = bodies.into_iter().map(|body| NewMessage::new(body.into())).collect();
        self.send_messages(messages).await;
    }

    async fn send_messages(&self, messages: Vec<NewMessage>) {
        let sent = self.client.send("q", messages).await.unwrap();
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    }

    fn connect(&self, settings: Settings) -> Running {
        let stop = CancellationToken::new();
        let connector = Connector::new(self.client.clone(), settings, &stop).unwrap();
        Running { stop, numbers: connector.numbers(), task: tokio::spawn(connector.run()) }
    }

    /// Messages of the queue that are ready, leased and delayed.
    async fn left(&self) -> (u64, u64, u64) {
        let counters = self.client.describe_queue("q").await.unwrap().counters.unwrap();
        (counters.ready, counters.leased, counters.delayed)
    }

    async fn drained(&self) {
        eventually("the queue is empty", async || self.left().await == (0, 0, 0)).await;
    }

    /// Bodies in the dead-letter queue, each with why it was rejected.
    async fn dead(&self, count: usize) -> BTreeMap<String, Option<String>> {
        let mut dead = BTreeMap::new();
        let options =
            ReceiveOptions { messages_max: 10, wait: Duration::from_secs(5), ..ReceiveOptions::default() };
        eventually("the messages are dead", async || {
            for message in self.client.receive("dead", options.clone()).await.unwrap() {
                let why = message.attribute("leasehold-rejected");
                let why = why.map(|why| String::from_utf8(why.to_vec()).unwrap());
                dead.insert(String::from_utf8(message.body.to_vec()).unwrap(), why);
            }
            dead.len() >= count
        })
        .await;
        dead
    }
}

struct Running {
    stop: CancellationToken,
    numbers: Arc<Numbers>,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    async fn stop(self) -> Tally {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        self.numbers.now()
    }
}

/// To that endpoint, with retries that come soon.
fn settings(endpoint: &Endpoint) -> Settings {
    let retry = RetryPolicy::new(Duration::from_millis(10), Duration::from_millis(100));
    Settings { retry, ..Settings::new("q", endpoint.url()) }
}

fn failed(tally: &Tally, kind: Kind) -> u64 {
    tally.failed[kind as usize]
}

fn bodies(asked: &[Asked]) -> Vec<String> {
    asked.iter().flat_map(Asked::bodies).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_in_batches_with_names_of_their_own() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|_| Reply::status(204)).await;
    scene.send((0..25).map(|number| format!("{number}"))).await;
    let settings = Settings { batch_window: Duration::from_millis(500), ..settings(&endpoint) };
    let running = scene.connect(settings);
    scene.drained().await;
    let tally = running.stop().await;
    let asked = endpoint.asked();
    assert!(asked.iter().all(|asked| asked.bodies().len() <= 10 && asked.header("leasehold-queue") == "q"));
    assert!(asked.iter().any(|asked| asked.bodies().len() > 1), "no request has several messages");
    let messages = asked.iter().flat_map(Asked::messages).collect::<Vec<_>>();
    assert_eq!(messages.len(), 25);
    let names =
        |field: &str| messages.iter().map(|told| told[field].as_str().unwrap()).collect::<HashSet<_>>();
    assert_eq!((names("body").len(), names("id").len(), names("idempotencyKey").len()), (25, 25, 25));
    assert!(messages.iter().all(|told| told["receiveCount"] == 1));
    assert_eq!((tally.acked, tally.requests), (25, asked.len() as u64));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_of_each_message_what_becomes_of_it() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|asked| {
        let item = |told: &serde_json::Value| match (told["body"].as_str().unwrap(), &told["receiveCount"]) {
            ("again", count) if count == 1 => Some(json!({ "itemIdentifier": told["id"] })),
            ("later", count) if count == 1 => {
                Some(json!({ "itemIdentifier": told["id"], "retryAfterMs": 1_000 }))
            }
            ("never", _) => Some(json!({ "itemIdentifier": told["id"], "reject": "no such user" })),
            _ => None,
        };
        Reply::failures(asked.messages().iter().filter_map(item).collect())
    })
    .await;
    let running = scene.connect(settings(&endpoint));
    scene.send(["again", "good", "never", "later"]).await;
    scene.drained().await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, tally.retried, tally.rejected, tally.halved), (3, 2, 1, 0));
    assert_eq!(scene.dead(1).await["never"].as_deref(), Some("no such user"));
    let messages = endpoint.asked().iter().flat_map(Asked::messages).collect::<Vec<_>>();
    for body in ["again", "later"] {
        let of = messages.iter().filter(|told| told["body"] == body).collect::<Vec<_>>();
        let [first, second] = of[..] else { panic!("{of:?}") };
        assert_eq!((&first["id"], &first["idempotencyKey"]), (&second["id"], &second["idempotencyKey"]));
        assert!(second["fencingToken"].as_u64() > first["fencingToken"].as_u64());
        assert_eq!(second["receiveCount"], 2);
    }
    assert_eq!(messages.iter().filter(|told| told["body"] == "good").count(), 1);
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_message_does_not_fail_its_neighbours() {
    let scene = Scene::new(QueueSettings { receives_max: Some(2), ..QueueSettings::default() }).await;
    let endpoint = Endpoint::start(|asked| {
        Reply::status(if asked.bodies().iter().any(|body| body == "poison") { 500 } else { 200 })
    })
    .await;
    scene.send(["1", "2", "3", "4", "5", "poison", "6", "7"]).await;
    let window = Duration::from_secs(2);
    let settings = Settings { batch_messages: 8, batch_window: window, ..settings(&endpoint) };
    let running = scene.connect(settings);
    assert_eq!(scene.dead(1).await, BTreeMap::from([("poison".to_owned(), None)]));
    scene.drained().await;
    let tally = running.stop().await;
    let asked = endpoint.asked();
    let messages = asked.iter().flat_map(Asked::messages).collect::<Vec<_>>();
    let good = messages.iter().filter(|told| told["body"] != "poison");
    assert!(good.clone().all(|told| told["receiveCount"] == 1), "a neighbour was received again");
    assert_eq!((tally.acked, tally.retried, tally.rejected), (7, 2, 0));
    // Alone at each of its receives; and every half was at most half as large.
    assert_eq!(asked.iter().filter(|asked| asked.bodies() == ["poison"]).count(), 2);
    assert!(tally.halved >= 1 && failed(&tally, Kind::Status) >= tally.halved + 2, "{tally:?}");
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_says_not_now_is_left_in_peace_and_no_receive_is_spent() {
    let scene = Scene::new(QueueSettings { receives_max: Some(1), ..QueueSettings::default() }).await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let endpoint = Endpoint::start(move |_| {
        let mut seen = seen.lock().unwrap();
        seen.push(Instant::now());
        match seen.len() {
            1 => Reply::status(429).header("retry-after", "1"),
            2 | 3 => Reply::status(503),
            _ => Reply::status(200),
        }
    })
    .await;
    scene.send(["1", "2", "3"]).await;
    let settings = Settings { concurrency: 1, concurrency_max: 1, ..settings(&endpoint) };
    let running = scene.connect(settings);
    scene.drained().await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, tally.retried, failed(&tally, Kind::Refused)), (3, 0, 3));
    let times = times.lock().unwrap().clone();
    assert!(times[1] - times[0] >= Duration::from_secs(1), "it came back before it was asked to");
    let messages = endpoint.asked().iter().flat_map(Asked::messages).collect::<Vec<_>>();
    assert!(messages.iter().all(|told| told["receiveCount"] == 1));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gets_no_answer_in_time_comes_again() {
    let scene = Scene::new(QueueSettings { receives_max: Some(2), ..QueueSettings::default() }).await;
    let endpoint = Endpoint::start(|asked| {
        let is_slow = asked.bodies().iter().any(|body| body == "slow");
        Reply::status(200).after(if is_slow { PATIENCE * 2 } else { Duration::ZERO })
    })
    .await;
    scene.send(["1", "slow", "2"]).await;
    let running = scene.connect(Settings { timeout: Duration::from_secs(2), ..settings(&endpoint) });
    let dead = scene.dead(1).await;
    assert!(dead.contains_key("slow"), "{dead:?}");
    scene.drained().await;
    let tally = running.stop().await;
    assert!(failed(&tally, Kind::TimedOut) >= 2, "{tally:?}");
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_away_gets_everything_when_it_is_back() {
    let scene = Scene::new(QueueSettings { receives_max: Some(1), ..QueueSettings::default() }).await;
    let endpoint = Endpoint::start(|_| Reply::status(200)).await;
    let settings = settings(&endpoint);
    let address = endpoint.stop().await;
    // One batch: what waits for another has a short lease, which a machine that stands still for seconds takes.
    scene.send((0..10).map(|number| format!("{number}"))).await;
    let running = scene.connect(settings);
    eventually("it was tried", async || failed(&running.numbers.now(), Kind::Unreachable) >= 4).await;
    let endpoint = Endpoint::start_at(address, |_| Reply::status(200)).await;
    scene.drained().await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, tally.retried), (10, 0));
    assert_eq!(bodies(&endpoint.asked()).len(), 10);
    assert!(endpoint.asked().iter().flat_map(Asked::messages).all(|told| told["receiveCount"] == 1));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_handled_in_order_over_failures() {
    const GROUPS: usize = 5;
    const EACH: usize = 12;
    let kind = Some(QueueKind::Fifo as i32);
    let scene = Scene::new(QueueSettings { kind, ..QueueSettings::default() }).await;
    let handled = Arc::new(Mutex::new(BTreeMap::<String, Vec<usize>>::new()));
    let failed_once = Arc::new(Mutex::new(BTreeSet::new()));
    let (seen, failures) = (Arc::clone(&handled), Arc::clone(&failed_once));
    let endpoint = Endpoint::start(move |asked| {
        let (mut seen, mut failures) = (seen.lock().unwrap(), failures.lock().unwrap());
        let messages = asked.messages();
        let number = |told: &serde_json::Value| told["body"].as_str().unwrap().parse::<usize>().unwrap();
        // Some batches fail as a whole, once.
        if messages.iter().any(|told| number(told) == 5 && failures.insert(format!("all {}", told["group"])))
        {
            return Reply::status(500);
        }
        let (mut items, mut stopped) = (Vec::new(), HashSet::new());
        for told in &messages {
            let group = told["group"].as_str().unwrap().to_owned();
            if number(told) % 4 == 2 && failures.insert(format!("{group} {}", number(told))) {
                items.push(json!({ "itemIdentifier": told["id"] }));
                stopped.insert(group);
            } else if !stopped.contains(&group) {
                // What is behind a failure of its group is left out without a word: the connector knows.
                seen.entry(group).or_default().push(number(told));
            }
        }
        Reply::failures(items)
    })
    .await;
    for number in 0..EACH {
        let of_all = (0..GROUPS).map(|group| {
            NewMessage::new(format!("{number}"))
                .group(format!("g{group}"))
                .deduplication_id(format!("{group} {number}"))
        });
        scene.send_messages(of_all.collect()).await;
    }
    let running = scene.connect(Settings { batch_messages: 7, ..settings(&endpoint) });
    scene.drained().await;
    let tally = running.stop().await;
    let handled = handled.lock().unwrap().clone();
    assert_eq!(handled.len(), GROUPS);
    for (group, numbers) in &handled {
        assert_eq!(*numbers, (0..EACH).collect::<Vec<_>>(), "{group} is out of order");
    }
    let several = |asked: &Asked| {
        let groups = asked.messages().iter().map(|told| told["group"].clone()).collect::<Vec<_>>();
        groups.iter().any(|group| groups.iter().filter(|other| *other == group).count() > 1)
    };
    assert!(endpoint.asked().iter().any(several), "no request has several messages of a group");
    assert_eq!(tally.acked, (GROUPS * EACH) as u64);
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_kept_while_a_request_runs() {
    let settings_of_queue = QueueSettings { lease_ms: Some(12_000), ..QueueSettings::default() };
    let scene = Scene::new(settings_of_queue).await;
    let endpoint = Endpoint::start(|_| Reply::status(200).after(Duration::from_secs(30))).await;
    scene.send(["long"]).await;
    let running = scene.connect(Settings { timeout: PATIENCE * 2, ..settings(&endpoint) });
    scene.drained().await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, endpoint.asked().len()), (1, 1));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_under_way_and_gives_back_the_rest() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|_| Reply::status(200).after(Duration::from_secs(2))).await;
    scene.send((0..20).map(|number| format!("{number}"))).await;
    let settings = Settings { batch_messages: 2, concurrency: 2, concurrency_max: 2, ..settings(&endpoint) };
    let running = scene.connect(settings);
    eventually("requests are under way", async || endpoint.asked().len() == 2).await;
    let tally = running.stop().await;
    assert!(endpoint.under_way_max() <= 2);
    assert_eq!(tally.acked as usize, bodies(&endpoint.asked()).len());
    assert_eq!(scene.left().await, (20 - tally.acked, 0, 0));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_ever() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|_| Reply::status(200).after(PATIENCE * 10)).await;
    scene.send(["1", "2"]).await;
    let timeout = Duration::from_secs(600);
    let settings = Settings { stop_within: Duration::from_millis(500), timeout, ..settings(&endpoint) };
    let running = scene.connect(settings);
    eventually("a request is under way", async || !endpoint.asked().is_empty()).await;
    let tally = running.stop().await;
    assert_eq!(tally.acked, 0);
    assert_eq!(scene.left().await, (2, 0, 0));
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_request_is_one_message_signed_and_rejected_by_its_status() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|asked| match &asked.body[..] {
        b"bad" => Reply::status(422),
        b"worse" => Reply::status(400).header("leasehold-reject", "it is worse"),
        _ => Reply::status(200),
    })
    .await;
    let image = NewMessage::new(&b"\xff\xd8"[..])
        .attribute("content-type", "String", "image/jpeg")
        .attribute("width", "Number", "640");
    scene.send_messages(vec![image, NewMessage::new("bad"), NewMessage::new("worse")]).await;
    let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let headers = vec![("Authorization".to_owned(), "Bearer token".to_owned())];
    let running = scene.connect(Settings {
        form: Form::Raw,
        reject_statuses: vec![422],
        secrets: Some(secrets),
        headers,
        ..settings(&endpoint)
    });
    scene.drained().await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, tally.rejected), (1, 2));
    let dead = scene.dead(2).await;
    assert_eq!(dead["worse"].as_deref(), Some("it is worse"));
    assert!(dead["bad"].as_deref().is_some_and(|why| why.starts_with("422")), "{dead:?}");
    let asked = endpoint.asked();
    let image = asked.iter().find(|asked| asked.body.starts_with(b"\xff\xd8")).unwrap();
    assert_eq!(
        (image.header("content-type"), image.header("leasehold-attribute-width")),
        ("image/jpeg", "640")
    );
    assert_eq!(
        (image.header("leasehold-receive-count"), image.header("authorization")),
        ("1", "Bearer token")
    );
    assert_eq!(image.header("webhook-id"), image.header("idempotency-key"));
    assert!(image.header("webhook-signature").starts_with("v1,"));
    let keys = asked.iter().map(|asked| asked.header("idempotency-key")).collect::<HashSet<_>>();
    assert_eq!(keys.len(), 3);
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_endpoint_that_is_vouched_for_gets_messages() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start_secured(|_| Reply::status(200)).await;
    scene.send(["1", "2"]).await;
    // Of another authority; and of the right one, under a name that is not in the certificate.
    let of_another = Some(OTHER_AUTHORITY.as_bytes().to_vec());
    let settings_of = |authorities| Settings { authorities, ..settings(&endpoint) };
    let url = endpoint.url().replace("127.0.0.1", "localhost");
    let named_otherwise = Settings { url, ..settings_of(Some(AUTHORITY.as_bytes().to_vec())) };
    for wrong in [settings_of(of_another), named_otherwise] {
        let running = scene.connect(wrong);
        eventually("it was tried", async || failed(&running.numbers.now(), Kind::Unreachable) >= 2).await;
        running.stop().await;
    }
    assert!(endpoint.asked().is_empty());
    let running = scene.connect(settings_of(Some(AUTHORITY.as_bytes().to_vec())));
    scene.drained().await;
    assert_eq!(running.stop().await.acked, 2);
    assert_eq!(bodies(&endpoint.asked()).len(), 2);
    scene.cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_ends_when_its_queue_is_not_there() {
    let scene = Scene::new(QueueSettings::default()).await;
    let endpoint = Endpoint::start(|_| Reply::status(200)).await;
    let settings = Settings { queue: "nothing".to_owned(), ..settings(&endpoint) };
    let error = scene.connect(settings).task.await.unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::UnknownQueue);
    // Nor does it go on when the queue goes away.
    let running = scene.connect(self::settings(&endpoint));
    scene.send(["1"]).await;
    scene.drained().await;
    scene.client.delete_queue("q").await.unwrap();
    let error = timeout(PATIENCE, running.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reason, Reason::UnknownQueue);
    scene.cluster.end().await;
}

/// What waits for an endpoint that is away goes back in time, without having failed: another connector may reach another one.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_waited_for_too_long_goes_back_and_no_receive_is_spent() {
    let scene = Scene::new(QueueSettings { receives_max: Some(2), ..QueueSettings::default() }).await;
    let endpoint = Endpoint::start(|_| Reply::status(503)).await;
    scene.send((0..30).map(|number| format!("{number}"))).await;
    let away = Settings {
        concurrency: 1,
        timeout: Duration::from_secs(1),
        keep_for: Duration::from_secs(4),
        ..settings(&endpoint)
    };
    let running = scene.connect(away);
    eventually("all came back three times", async || running.numbers.now().returned > 90).await;
    let tally = running.stop().await;
    assert_eq!((tally.acked, tally.retried, tally.unsettled), (0, 0, 0), "{tally:?}");
    let endpoint = Endpoint::start(|_| Reply::status(200)).await;
    let running = scene.connect(settings(&endpoint));
    scene.drained().await;
    assert_eq!(running.stop().await.acked, 30);
    scene.cluster.end().await;
}

/// Of a queue that has nowhere to put it, it comes again; and those behind it after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_that_is_refused_holds_back_its_group() {
    let kind = Some(QueueKind::Fifo as i32);
    let scene = Scene::start(QueueSettings { kind, ..QueueSettings::default() }, None).await;
    let handled = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&handled);
    let endpoint = Endpoint::start(move |asked| {
        let mut seen = seen.lock().unwrap();
        for told in asked.messages() {
            let is_first = told["body"] == "1" && !seen.contains(&"rejected 1".to_owned());
            if is_first {
                seen.push("rejected 1".to_owned());
                return Reply::failures(vec![json!({ "itemIdentifier": told["id"], "reject": "not now" })]);
            }
            seen.push(told["body"].as_str().unwrap().to_owned());
        }
        Reply::status(200)
    })
    .await;
    let of_one_group = ["1", "2", "3"].map(|body| NewMessage::new(body).group("g").deduplication_id(body));
    scene.send_messages(of_one_group.to_vec()).await;
    let running = scene.connect(settings(&endpoint));
    scene.drained().await;
    running.stop().await;
    assert_eq!(*handled.lock().unwrap(), ["rejected 1", "1", "2", "3"]);
    scene.cluster.end().await;
}
