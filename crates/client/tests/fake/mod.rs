//! A node in this process that forgets nothing, recognises request ids, and fails when it is told to.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "it is a test")]

mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use leasehold_client::v1::cluster_server::ClusterServer;
use leasehold_client::v1::messages_server::MessagesServer;
use leasehold_client::v1::queues_server::QueuesServer;
use leasehold_client::v1::{
    Delivery, MessageId, Outcome, PullSettle, PullStart, QueueKind, Reason, RoutesResponse, SendOutcome,
    SendRequest, SettleOutcome, ShardRoute,
};
use leasehold_client::{Client, MessageId as Id};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Server;

/// What goes wrong with the next request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Nothing happens, and the node says why.
    Refuse(Reason),
    /// It happens, but the answer is lost with the connection.
    LoseAnswer,
    /// Each message that is not stored yet is refused, but the first.
    RefuseItems(Reason),
}

/// What all nodes of a cluster share.
#[derive(Debug, Default)]
pub struct State {
    pub faults: VecDeque<Fault>,
    pub sends: Vec<SendRequest>,
    pub stored: Vec<Vec<u8>>,
    pub answered: HashMap<(u64, u64), BTreeMap<usize, SendOutcome>>,
    pub routes: Option<RoutesResponse>,
    pub purges: usize,
    pub starts: Vec<(String, PullStart)>,
    pub credit: u64,
    pub settles: Vec<PullSettle>,
    pub to_push: VecDeque<Delivery>,
    pub pushed: usize,
    pub stale: BTreeSet<Vec<u8>>,
    pub receives: usize,
    pub has_no_dead_letter_queue: bool,
    /// It belongs to no cluster.
    pub is_outside: bool,
}

#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    /// Changes when there is something to push.
    push: watch::Sender<()>,
    /// Changes to break the Pull streams.
    reset: watch::Sender<()>,
    /// Changes to end them in good order.
    end: watch::Sender<()>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Makes messages ready, named by their receipts.
    pub fn offer(&self, receipts: &[&str], lease: Duration) {
        let grouped = receipts.iter().map(|receipt| (*receipt, None)).collect::<Vec<_>>();
        self.offer_groups(&grouped, lease);
    }

    /// Makes messages ready, each perhaps of a group.
    pub fn offer_groups(&self, receipts: &[(&str, Option<&str>)], lease: Duration) {
        let mut state = self.state();
        for (sequence, (receipt, group)) in (1_u64..).zip(receipts) {
            state.to_push.push_back(Delivery {
                group: group.map(str::to_owned),
                receipt: receipt.as_bytes().to_vec().into(),
                id: Some(MessageId { partition: 1, sequence }),
                body: receipt.as_bytes().to_vec().into(),
                receive_count: 1,
                lease_ms: u64::try_from(lease.as_millis()).unwrap(),
                fencing_token: sequence,
                ..Default::default()
            });
        }
        drop(state);
        self.push.send_replace(());
    }

    /// Resets the Pull streams that are open.
    pub fn reset_streams(&self) {
        self.reset.send_replace(());
    }

    /// Ends the Pull streams that are open, as when the queue is deleted.
    pub fn end_streams(&self) {
        self.end.send_replace(());
    }

    pub fn lead_at(&self, addresses: &[&str]) {
        let shard = |(partition, address): (u32, &&str)| ShardRoute {
            partition,
            leader_address: (*address).to_owned(),
        };
        let shards = (0..).zip(addresses).map(shard).collect();
        self.state().routes = Some(RoutesResponse { shards, ..Default::default() });
    }

    /// What the queue is, led at the node itself.
    pub fn describe(&self, address: &str, kind: QueueKind, lease: Duration) {
        self.lead_at(&[address]);
        let lease_ms = u64::try_from(lease.as_millis()).unwrap();
        let state = &mut *self.state();
        let routes = state.routes.as_mut().unwrap();
        (routes.kind, routes.lease_ms) = (kind.into(), lease_ms);
    }

    pub fn acked(&self) -> BTreeSet<Vec<u8>> {
        self.state().settles.iter().flat_map(|settle| &settle.acks).map(|receipt| receipt.to_vec()).collect()
    }

    /// Receipts and delays.
    pub fn released(&self) -> BTreeMap<Vec<u8>, u64> {
        let state = self.state();
        let items = state.settles.iter().flat_map(|settle| &settle.releases);
        items.map(|item| (item.receipt.to_vec(), item.delay_ms)).collect()
    }

    /// Those of the releases with which nothing has failed.
    pub fn untouched(&self) -> BTreeSet<Vec<u8>> {
        let state = self.state();
        let items = state.settles.iter().flat_map(|settle| &settle.releases);
        items.filter(|item| item.untouched || item.put_off).map(|item| item.receipt.to_vec()).collect()
    }

    /// Receipts and reasons.
    pub fn rejected(&self) -> BTreeMap<Vec<u8>, String> {
        let state = self.state();
        let items = state.settles.iter().flat_map(|settle| &settle.rejects);
        items.map(|item| (item.receipt.to_vec(), item.why.clone())).collect()
    }

    /// How far the extensions of a message were to reach, in milliseconds.
    pub fn reaches(&self, receipt: &str) -> Vec<u64> {
        let state = self.state();
        let items = state.settles.iter().flat_map(|settle| &settle.extends);
        items.filter(|item| item.receipt == receipt).map(|item| item.lease_ms).collect()
    }

    pub fn extensions(&self) -> usize {
        self.state().settles.iter().map(|settle| settle.extends.len()).sum()
    }

    fn next_fault(&self) -> Option<Fault> {
        self.state().faults.pop_front()
    }

    /// Stores what was not stored under this request id before.
    fn store(&self, send: &SendRequest, fault: Option<Fault>) -> Vec<SendOutcome> {
        let mut state = self.state();
        let request = send.request.expect("every send has a request id");
        let mut answers = state.answered.remove(&(request.session, request.sequence)).unwrap_or_default();
        let mut outcomes = Vec::new();
        for (index, message) in send.messages.iter().enumerate() {
            let refused = match fault {
                Some(Fault::RefuseItems(reason)) if index > 0 => Some(reason),
                _ if message.body.starts_with(b"bad") => Some(Reason::QueueFull),
                _ => None,
            };
            outcomes.push(match (answers.get(&index), refused) {
                (Some(outcome), _) => outcome.clone(),
                (None, Some(reason)) => SendOutcome {
                    outcome: Outcome::NotDone.into(),
                    reason: reason.into(),
                    ..Default::default()
                },
                (None, None) => {
                    state.stored.push(message.body.to_vec());
                    let id = Id { partition: 0, sequence: state.stored.len() as u64 };
                    let outcome = SendOutcome { id: Some(id), ..Default::default() };
                    answers.insert(index, outcome.clone());
                    outcome
                }
            });
        }
        state.answered.insert((request.session, request.sequence), answers);
        outcomes
    }

    fn reject(&self, receipt: &[u8]) -> SettleOutcome {
        if self.state().has_no_dead_letter_queue {
            return SettleOutcome {
                outcome: Outcome::NotDone.into(),
                reason: Reason::NoDeadLetterQueue.into(),
                detail: "none".to_owned(),
            };
        }
        self.settle(receipt)
    }

    fn settle(&self, receipt: &[u8]) -> SettleOutcome {
        if self.state().stale.contains(receipt) {
            return SettleOutcome {
                outcome: Outcome::NotDone.into(),
                reason: Reason::ReceiptStale.into(),
                detail: "stale".to_owned(),
            };
        }
        SettleOutcome::default()
    }
}

/// A node; dies when dropped, its connections with it.
pub struct Node {
    pub address: String,
    pub shared: Arc<Shared>,
    runtime: Option<Runtime>,
    /// Its only thread waits for this.
    silence: Option<mpsc::Sender<()>>,
}

impl Node {
    pub async fn start() -> Self {
        Self::join(Arc::default()).await
    }

    pub async fn join(shared: Arc<Shared>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = services::Service { address: address.clone(), shared: Arc::clone(&shared) };
        let server = Server::builder()
            .add_service(MessagesServer::new(service.clone()).max_decoding_message_size(8 * 1024 * 1024))
            .add_service(QueuesServer::new(service.clone()))
            .add_service(ClusterServer::new(service));
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, shared, runtime: Some(runtime), silence: None }
    }

    pub fn client(&self) -> Client {
        Client::connect([self.address.clone()]).unwrap()
    }

    /// Answers nothing any more, while its connections stay open.
    pub fn fall_silent(&mut self) {
        let (silence, end) = mpsc::channel();
        let (begun, begin) = mpsc::channel();
        self.silence = Some(silence);
        self.runtime.as_ref().unwrap().spawn(async move {
            begun.send(()).unwrap();
            let _ = end.recv();
        });
        begin.recv().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.silence.take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An address at which nobody listens, for as long as the process lives.
pub fn dead_address() -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    std::mem::forget(socket);
    address
}

/// As a node writes it.
pub fn refusal(reason: Reason, outcome: Outcome, retry_after_ms: u64) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("leasehold-reason", MetadataValue::from_static(reason.as_str_name()));
    metadata.insert("leasehold-outcome", MetadataValue::from_static(outcome.as_str_name()));
    if retry_after_ms > 0 {
        metadata.insert("leasehold-retry-after-ms", MetadataValue::from(retry_after_ms));
    }
    Status::with_metadata(tonic::Code::Unknown, "injected", metadata)
}

/// Waits until something is so, for as long as a slow machine may take.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to this: {what}");
}
