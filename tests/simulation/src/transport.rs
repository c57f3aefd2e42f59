//! What takes the place of gRPC between nodes, and between clients and nodes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use leasehold_node::simulation::{
    Batches, Calls, Frame, FrameStream, SimulatedNode, Transport, TransportError,
};
use leasehold_proto::peer::{IdentifyResponse, LaneHello, SnapshotAnswer, SnapshotChunk};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::Request;

use crate::machine::Process;
use crate::network::{Connection, Direction, Effect, End, Network};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// As between real nodes.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The network as one node uses it.
pub struct SimulatedTransport {
    network: Arc<Network>,
    here: usize,
}

/// An address is `n` and the position of the node.
pub fn address_of(node: usize) -> String {
    format!("n{node}:7000")
}

fn node_at(address: &str) -> Option<usize> {
    address.strip_prefix('n')?.split(':').next()?.parse().ok()
}

fn refused() -> TransportError {
    TransportError::Refused("connection refused".to_owned())
}

impl SimulatedTransport {
    pub fn new(network: Arc<Network>, here: usize) -> Self {
        Self { network, here }
    }
}

fn hash_of(batch: &[Frame]) -> u64 {
    batch.iter().fold(0, |hash: u64, frame| {
        let parts = [
            frame.call,
            u64::from(frame.kind),
            u64::from(frame.group),
            frame.target,
            crc32c::crc32c(&frame.body).into(),
        ];
        parts
            .iter()
            .fold(hash, |hash, part| (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23))
    })
}

type Frames = mpsc::UnboundedSender<Vec<Frame>>;

/// Sends what comes out of a stream, until it ends or the connection does.
async fn pump(
    network: Arc<Network>,
    connection: Connection,
    direction: Direction,
    mut batches: impl Stream<Item = Vec<Frame>> + Unpin,
    far: Frames,
) {
    while let Some(batch) = batches.next().await {
        let (hash, far) = (hash_of(&batch), far.clone());
        // Who does not listen any more has closed the connection.
        let effect = Box::new(move |_: Option<&Process>| drop(far.send(batch)));
        if !network.push(connection, direction, hash, effect) {
            return;
        }
    }
    network.close(connection, direction);
}

fn hear(calls: &Mutex<Calls>, batch: &[Frame]) {
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    batch.iter().for_each(|frame| calls.ask(frame));
}

impl Transport for SimulatedTransport {
    fn open_lane(
        &self,
        address: String,
        hello: LaneHello,
        batches: Batches,
    ) -> BoxFuture<'static, Result<FrameStream, TransportError>> {
        let (network, here) = (self.network.clone(), self.here);
        Box::pin(async move {
            let to = node_at(&address).ok_or_else(refused)?;
            let (back, answers) = mpsc::unbounded_channel();
            let (forth, served) = mpsc::unbounded_channel();
            let (accept, accepted) = oneshot::channel();
            let connection = network.connect(End::Node(here), End::Node(to), Arc::new(back.clone()));
            network.keep_open(connection, Arc::new(forth.clone()));
            let calls = Arc::new(Mutex::new(Calls::default()));
            let opening = {
                let (network, calls) = (network.clone(), calls.clone());
                move |process: Option<&Process>| {
                    let frames = UnboundedReceiverStream::new(served);
                    let lane = process.and_then(|process| {
                        let lane = process.node()?.serve_lane(&hello, frames).ok()?;
                        Some((lane, process.witness().clone()))
                    });
                    let is_served = lane.is_some();
                    let answer: Effect = Box::new(move |_| {
                        // Who opens may have lost patience.
                        let _ = accept.send(is_served);
                    });
                    network.push(connection, Direction::Back, u64::from(is_served), answer);
                    if let Some((lane, witness)) = lane {
                        let batches = lane.inspect(move |batch| witness.answers(&calls, batch));
                        tokio::spawn(pump(network, connection, Direction::Back, batches, back));
                    }
                }
            };
            network.push(connection, Direction::Forth, 0, Box::new(opening));
            match timeout(CONNECT_TIMEOUT, accepted).await {
                Ok(Ok(true)) => {}
                Ok(_) => return Err(refused()),
                Err(_) => {
                    network.close(connection, Direction::Forth);
                    return Err(TransportError::Silent);
                }
            }
            let batches = batches.inspect(move |batch| hear(&calls, batch));
            tokio::spawn(pump(network, connection, Direction::Forth, batches, forth));
            Ok(UnboundedReceiverStream::new(answers).boxed())
        })
    }

    fn identify(&self, address: String) -> BoxFuture<'static, Result<IdentifyResponse, TransportError>> {
        let (network, here) = (self.network.clone(), self.here);
        Box::pin(async move {
            let to = node_at(&address).ok_or_else(refused)?;
            let call =
                Call::open(
                    &network,
                    End::Node(here),
                    to,
                    3,
                    |node: SimulatedNode| async move { node.identify() },
                );
            match call.answer().await {
                Answer::Came(answer) => Ok(answer),
                Answer::Refused | Answer::Broken => Err(refused()),
            }
        })
    }

    fn install_snapshot(
        &self,
        address: String,
        chunks: Request<ReceiverStream<SnapshotChunk>>,
    ) -> BoxFuture<'static, Result<SnapshotAnswer, TransportError>> {
        let (network, here) = (self.network.clone(), self.here);
        Box::pin(async move {
            let to = node_at(&address).ok_or_else(refused)?;
            let (metadata, _, mut chunks) = chunks.into_parts();
            let (forth, arrived) = mpsc::unbounded_channel();
            network.snapshot_begins();
            let call = Call::open(&network, End::Node(here), to, 1, move |node: SimulatedNode| {
                let request =
                    Request::from_parts(metadata, Default::default(), UnboundedReceiverStream::new(arrived));
                async move { node.take_snapshot(request).await }
            });
            while let Some(chunk) = chunks.next().await {
                let (hash, forth) = (chunk.state.len() as u64, forth.clone());
                network.push(
                    call.connection,
                    Direction::Forth,
                    hash,
                    Box::new(move |_| drop(forth.send(Ok(chunk)))),
                );
            }
            drop(forth);
            let is_dead = silence(network, call.connection);
            tokio::select! {
                biased;
                answer = call.answer() => match answer {
                    Answer::Came(answer) => answer.map_err(|status| TransportError::Failed(Box::new(status))),
                    Answer::Refused | Answer::Broken => Err(refused()),
                },
                () = is_dead => Err(TransportError::Silent),
            }
        })
    }
}

/// Waits until the other end of a connection does not answer a ping in time, as HTTP/2 does while a call is under way.
async fn silence(network: Arc<Network>, connection: Connection) {
    loop {
        sleep(PING_INTERVAL).await;
        let (heard, pong) = oneshot::channel();
        let back = network.clone();
        let ping: Effect = Box::new(move |_| {
            let pong: Effect = Box::new(move |_| {
                // Who pinged may be gone.
                let _ = heard.send(());
            });
            back.push(connection, Direction::Back, 2, pong);
        });
        network.push(connection, Direction::Forth, 2, ping);
        if !matches!(timeout(PING_TIMEOUT, pong).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// How a call ended for who made it.
pub enum Answer<T> {
    Came(T),
    /// Nobody was there: nothing happened.
    Refused,
    /// The connection broke: nobody knows.
    Broken,
}

/// A call on a connection of its own; the connection is closed with it, and what serves it ends then.
pub struct Call<T> {
    network: Arc<Network>,
    pub connection: Connection,
    answer: oneshot::Receiver<Option<T>>,
}

/// The way back, which whoever answers takes.
type Slot<T> = Arc<Mutex<Option<oneshot::Sender<Option<T>>>>>;

fn settle<T>(slot: &Slot<T>, answer: Option<T>) {
    if let Some(sender) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Who asked may have given up.
        let _ = sender.send(answer);
    }
}

impl<T: Send + 'static> Call<T> {
    pub fn open<F>(
        network: &Arc<Network>,
        from: End,
        to: usize,
        hash: u64,
        serve: impl FnOnce(SimulatedNode) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let slot: Slot<T> = Arc::new(Mutex::new(Some(sender)));
        let connection = network.connect(
            from,
            End::Node(to),
            Arc::new(OnDrop(Some({
                let slot = slot.clone();
                move || drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take())
            }))),
        );
        let served = Arc::new(OnceLock::<AbortHandle>::new());
        network.keep_open(
            connection,
            Arc::new(OnDrop(Some({
                let served = served.clone();
                move || served.get().into_iter().for_each(AbortHandle::abort)
            }))),
        );
        let effect = {
            let network = network.clone();
            move |node: Option<SimulatedNode>| {
                let Some(node) = node else {
                    let refusal: Effect = Box::new(move |_| settle(&slot, None));
                    network.push(connection, Direction::Back, 0, refusal);
                    return;
                };
                let serving = serve(node);
                let task = tokio::spawn(async move {
                    let answer = serving.await;
                    network.push(
                        connection,
                        Direction::Back,
                        1,
                        Box::new(move |_| settle(&slot, Some(answer))),
                    );
                });
                let _ = served.set(task.abort_handle());
            }
        };
        network.push(
            connection,
            Direction::Forth,
            hash,
            Box::new(move |process| effect(process.and_then(|process| process.node()).cloned())),
        );
        Self { network: network.clone(), connection, answer }
    }

    pub async fn answer(mut self) -> Answer<T> {
        match (&mut self.answer).await {
            Ok(Some(answer)) => Answer::Came(answer),
            Ok(None) => Answer::Refused,
            Err(_) => Answer::Broken,
        }
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.network.close(self.connection, Direction::Forth);
    }
}

/// Does something when it is dropped.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done();
        }
    }
}
