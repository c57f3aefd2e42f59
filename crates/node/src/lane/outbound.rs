//! One link to one peer: connects, reconnects, matches answers with calls, and notices silence.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use leasehold_catalogue::NodeId;
use leasehold_proto::peer::peer_client::PeerClient;
use leasehold_proto::peer::{Failure, Frame, FrameBatch, FrameKind};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::batch::Batches;
use super::{CallFailure, ClusterName, PeerEvent};
use crate::limits::{
    CONNECT_TIMEOUT_MS, CONNECTION_WINDOW_BYTES, LIVENESS_INTERVAL_MS, PEER_MESSAGE_BYTES_MAX,
    RECONNECT_PAUSE_MS_MAX, RECONNECT_PAUSE_MS_MIN, STREAM_WINDOW_BYTES,
};

/// A link to a peer. Calls while it is down fail at once; it reconnects by itself until it is dropped.
pub struct Link {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    node: NodeId,
    cluster: ClusterName,
    address: Mutex<String>,
    connected: AtomicBool,
    next_call: AtomicU64,
    wire: Mutex<Option<Wire>>,
}

/// What belongs to one connection and dies with it.
struct Wire {
    frames: mpsc::UnboundedSender<Frame>,
    pending: HashMap<u64, oneshot::Sender<Result<Bytes, CallFailure>>>,
}

/// An answer that is on its way. When a question is dropped before its answer, the peer is told that nobody waits any more.
pub struct PendingAnswer {
    shared: Arc<Shared>,
    call: u64,
    is_question: bool,
    answer: oneshot::Receiver<Result<Bytes, CallFailure>>,
}

impl PendingAnswer {
    /// Waits for the answer.
    pub async fn wait(mut self) -> Result<Bytes, CallFailure> {
        let answer = (&mut self.answer).await;
        self.is_question = false;
        answer.unwrap_or(Err(CallFailure::Lost(self.shared.node)))
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        if self.is_question {
            self.shared.cancel(self.call);
        }
    }
}

impl Link {
    pub fn open(node: NodeId, address: &str, cluster: &ClusterName, watch: Watch) -> Self {
        let shared = Arc::new(Shared {
            node,
            cluster: cluster.clone(),
            address: Mutex::new(address.to_owned()),
            connected: AtomicBool::new(false),
            next_call: AtomicU64::new(1),
            wire: Mutex::new(None),
        });
        let task = tokio::spawn(run(shared.clone(), watch)).abort_handle();
        Self { shared, task }
    }

    pub fn set_address(&self, address: &str) {
        let mut current = self.shared.address.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != address {
            address.clone_into(&mut current);
        }
    }

    pub fn address(&self) -> String {
        self.shared.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }

    /// Sends a call; the frames of one link arrive in the order of these calls.
    ///
    /// # Errors
    /// [`CallFailure::Unreachable`] when the link is down: nothing was sent.
    pub fn call(
        &self,
        kind: FrameKind,
        group: u32,
        target: u64,
        body: Bytes,
    ) -> Result<PendingAnswer, CallFailure> {
        let call = self.shared.next_call.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut wire = self.shared.wire();
        let unreachable = CallFailure::Unreachable(self.shared.node);
        let Some(open) = wire.as_mut() else { return Err(unreachable) };
        if open.frames.send(Frame { call, kind: kind as i32, group, target, body }).is_err() {
            return Err(unreachable);
        }
        open.pending.insert(call, sender);
        let is_question = kind == FrameKind::Query;
        Ok(PendingAnswer { shared: self.shared.clone(), call, is_question, answer })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.disconnect();
    }
}

impl Shared {
    fn wire(&self) -> MutexGuard<'_, Option<Wire>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, frames: mpsc::UnboundedSender<Frame>) {
        *self.wire() = Some(Wire { frames, pending: HashMap::new() });
        self.connected.store(true, Ordering::Release);
    }

    /// Dropping the senders wakes every waiting call with `Lost`.
    fn disconnect(&self) {
        self.connected.store(false, Ordering::Release);
        self.wire().take();
    }

    fn cancel(&self, call: u64) {
        if let Some(open) = self.wire().as_mut()
            && open.pending.remove(&call).is_some()
        {
            // A link that is breaking ends the question as well.
            let _ = open.frames.send(Frame { call, kind: FrameKind::Cancel as i32, ..Frame::default() });
        }
    }

    fn settle(&self, frame: Frame) {
        let waiting = self.wire().as_mut().and_then(|wire| wire.pending.remove(&frame.call));
        let Some(waiting) = waiting else { return };
        let answer = if frame.kind == FrameKind::Failure as i32 {
            Err(CallFailure::Refused(Failure::decode(frame.body).unwrap_or_default()))
        } else {
            Ok(frame.body)
        };
        // The caller may have stopped waiting; then nobody needs the answer.
        let _ = waiting.send(answer);
    }
}

/// How a link notices that its peer says nothing any more: a broken process breaks its connections, a stopped one or a cut network
/// does not.
pub enum Watch {
    /// It asks the peer all the time, and tells the node and the other link.
    Liveness { timeout: Duration, events: mpsc::UnboundedSender<PeerEvent>, silences: watch::Sender<u64> },
    /// The other link asks: when it finds silence, calls on this one must not wait for it to end either.
    Silences(watch::Receiver<u64>),
}

impl Watch {
    fn report(&self, event: PeerEvent) {
        if let Self::Liveness { events, .. } = self {
            // The node is stopping when nobody listens any more.
            let _ = events.send(event);
        }
    }

    /// Whether the other link finds silence; for ever when this link asks itself.
    async fn told_silent(&mut self) {
        if let Self::Silences(silences) = self
            && silences.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

async fn run(shared: Arc<Shared>, mut watch: Watch) {
    let mut pause_ms = RECONNECT_PAUSE_MS_MIN;
    let mut down_reported = false;
    loop {
        match connect(&shared).await {
            Ok((frames, answers)) => {
                shared.connect(frames.clone());
                if down_reported {
                    tracing::info!(peer = shared.node.0, "the peer answers again");
                }
                watch.report(PeerEvent::Up(shared.node));
                down_reported = false;
                pause_ms = RECONNECT_PAUSE_MS_MIN;
                let silent = exchange(&shared, &mut watch, frames, answers).await;
                shared.disconnect();
                if silent {
                    watch.report(PeerEvent::Down(shared.node));
                    down_reported = true;
                }
            }
            Err(error) => {
                if !down_reported {
                    tracing::warn!(peer = shared.node.0, %error, "the peer cannot be reached");
                    watch.report(PeerEvent::Down(shared.node));
                    down_reported = true;
                }
                sleep(Duration::from_millis(pause_ms)).await;
                pause_ms = (pause_ms * 2).min(RECONNECT_PAUSE_MS_MAX);
            }
        }
    }
}

/// Reads answers until the stream ends. Returns whether it ended because the peer fell silent.
async fn exchange(
    shared: &Arc<Shared>,
    watch: &mut Watch,
    frames: mpsc::UnboundedSender<Frame>,
    mut answers: Streaming<FrameBatch>,
) -> bool {
    let silence_max = match watch {
        Watch::Liveness { timeout, .. } => Some(*timeout),
        Watch::Silences(silences) => {
            // What was found before this connection says nothing about it.
            silences.mark_unchanged();
            None
        }
    };
    let mut heard = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(LIVENESS_INTERVAL_MS));
    loop {
        tokio::select! {
            batch = answers.message() => match batch {
                Ok(Some(batch)) => {
                    heard = Instant::now();
                    batch.frames.into_iter().for_each(|frame| shared.settle(frame));
                }
                Ok(None) | Err(_) => return false,
            },
            () = watch.told_silent() => return false,
            _ = beat.tick(), if silence_max.is_some() => {
                if silence_max.is_some_and(|silence_max| heard.elapsed() > silence_max) {
                    tracing::warn!(peer = shared.node.0, "the peer is silent");
                    if let Watch::Liveness { silences, .. } = watch {
                        silences.send_modify(|count| *count += 1);
                    }
                    return true;
                }
                let liveness = Frame { kind: FrameKind::Liveness as i32, ..Frame::default() };
                if frames.send(liveness).is_err() {
                    return false;
                }
            }
        }
    }
}

type Connection = (mpsc::UnboundedSender<Frame>, Streaming<FrameBatch>);

async fn connect(shared: &Arc<Shared>) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let address = shared.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let patience = Duration::from_millis(CONNECT_TIMEOUT_MS);
    let channel = open_channel(&address).await?;
    let (frames, queue) = mpsc::unbounded_channel();
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let answers =
        timeout(patience, client.lane(shared.cluster.label(Batches::new(queue)))).await??.into_inner();
    Ok((frames, answers))
}

/// Opens an HTTP/2 connection to a peer's listener.
///
/// # Errors
/// When the address is not one, or nobody answers there within the connect timeout.
pub async fn open_channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
}
