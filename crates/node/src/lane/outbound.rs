//! One link to one peer: connects, reconnects, matches answers with calls, and notices silence.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use leasehold_catalogue::NodeId;
use leasehold_proto::peer::Failure;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::batch::Batches;
use super::frame::{BODY_BYTES_MAX, Frame, FrameKind};
use super::transport::{FrameStream, Transport, TransportError};
use super::{CallFailure, Origin, PeerEvent};
use crate::limits::{LIVENESS_INTERVAL_MS, RECONNECT_PAUSE_MS_MAX, RECONNECT_PAUSE_MS_MIN};

/// How a node opens its links.
pub struct Way {
    /// What it says of itself.
    pub origin: Origin,
    pub transport: Arc<dyn Transport>,
}

/// A link to a peer. Calls while it is down fail at once; it reconnects by itself until it is dropped.
pub struct Link {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    node: NodeId,
    origin: Origin,
    transport: Arc<dyn Transport>,
    address: Mutex<String>,
    /// Told that there is a reason to try again now.
    moved: Notify,
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
    /// Opens the link that also watches whether the peer is alive.
    pub fn open_control(node: NodeId, address: &str, way: &Way, liveness: Liveness) -> Self {
        Self::open(node, address, way, Watch::Liveness(liveness))
    }

    /// Opens a link that leaves watching to the other one, and breaks when that finds the peer silent.
    pub fn open_bulk(node: NodeId, address: &str, way: &Way, silences: watch::Receiver<()>) -> Self {
        Self::open(node, address, way, Watch::Follow(silences))
    }

    fn open(node: NodeId, address: &str, way: &Way, watch: Watch) -> Self {
        let shared = Arc::new(Shared {
            node,
            origin: way.origin.clone(),
            transport: way.transport.clone(),
            address: Mutex::new(address.to_owned()),
            moved: Notify::new(),
            connected: AtomicBool::new(false),
            next_call: AtomicU64::new(1),
            wire: Mutex::new(None),
        });
        let task = tokio::spawn(run(shared.clone(), watch)).abort_handle();
        Self { shared, task }
    }

    /// Connects to this address from now on, at once when there is no connection.
    pub fn connect_to(&self, address: &str) {
        address.clone_into(&mut self.shared.address.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.is_connected() {
            self.shared.moved.notify_one();
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
    /// [`CallFailure::Unreachable`] when the link is down, [`CallFailure::TooLong`] for what would break it: nothing was sent.
    pub fn call(
        &self,
        kind: FrameKind,
        group: u32,
        target: u64,
        body: Bytes,
    ) -> Result<PendingAnswer, CallFailure> {
        if body.len() > BODY_BYTES_MAX {
            return Err(CallFailure::TooLong(body.len()));
        }
        let call = self.shared.next_call.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut wire = self.shared.wire();
        let unreachable = CallFailure::Unreachable(self.shared.node);
        let Some(open) = wire.as_mut() else { return Err(unreachable) };
        if open.frames.send(Frame { call, kind: kind as u8, group, target, body }).is_err() {
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
            let _ = open.frames.send(Frame { call, kind: FrameKind::Cancel as u8, ..Frame::default() });
        }
    }

    fn settle(&self, frame: Frame) {
        let waiting = self.wire().as_mut().and_then(|wire| wire.pending.remove(&frame.call));
        let Some(waiting) = waiting else { return };
        let answer = if frame.kind() == Some(FrameKind::Failure) {
            Err(CallFailure::Refused(Failure::decode(frame.body).unwrap_or_default()))
        } else {
            Ok(frame.body)
        };
        // The caller may have stopped waiting; then nobody needs the answer.
        let _ = waiting.send(answer);
    }
}

/// How the control link watches its peer, and whom it tells.
pub struct Liveness {
    /// A peer that says nothing for this long is down.
    pub timeout: Duration,
    pub events: mpsc::UnboundedSender<PeerEvent>,
    pub reach: watch::Sender<()>,
    /// Told when the peer is silent, for the link that does not watch.
    pub silences: watch::Sender<()>,
}

enum Watch {
    Liveness(Liveness),
    Follow(watch::Receiver<()>),
}

impl Watch {
    fn report(&self, event: PeerEvent) {
        if let Self::Liveness(liveness) = self {
            // The node is stopping when nobody listens any more.
            let _ = liveness.events.send(event);
        }
    }

    fn reach_changed(&self) {
        if let Self::Liveness(liveness) = self {
            liveness.reach.send_replace(());
        }
    }
}

async fn run(shared: Arc<Shared>, mut watch: Watch) {
    let mut pause_ms = RECONNECT_PAUSE_MS_MIN;
    let mut down_reported = false;
    loop {
        match connect(&shared).await {
            Ok((frames, answers)) => {
                shared.connect(frames.clone());
                watch.reach_changed();
                if down_reported {
                    tracing::info!(peer = shared.node.0, "the peer answers again");
                }
                watch.report(PeerEvent::Up(shared.node));
                down_reported = false;
                pause_ms = RECONNECT_PAUSE_MS_MIN;
                let end = exchange(&shared, &mut watch, frames, answers).await;
                shared.disconnect();
                watch.reach_changed();
                if end == End::Silence {
                    tracing::warn!(peer = shared.node.0, "the peer is silent");
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
                pause_ms = match timeout(Duration::from_millis(pause_ms), shared.moved.notified()).await {
                    Ok(()) => RECONNECT_PAUSE_MS_MIN,
                    Err(_elapsed) => (pause_ms * 2).min(RECONNECT_PAUSE_MS_MAX),
                };
            }
        }
    }
}

/// Why a connection is over.
#[derive(PartialEq, Eq)]
enum End {
    /// It broke, or the peer closed it.
    Broken,
    /// The peer says nothing any more.
    Silence,
}

/// Reads answers until the stream ends or the peer falls silent.
async fn exchange(
    shared: &Arc<Shared>,
    watch: &mut Watch,
    frames: mpsc::UnboundedSender<Frame>,
    mut answers: FrameStream,
) -> End {
    let mut heard = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(LIVENESS_INTERVAL_MS));
    if let Watch::Follow(silences) = watch {
        silences.mark_unchanged();
    }
    loop {
        tokio::select! {
            batch = answers.next() => match batch {
                Some(batch) => {
                    heard = Instant::now();
                    batch.into_iter().for_each(|frame| shared.settle(frame));
                }
                None => return End::Broken,
            },
            // Without its other half the link is about to be dropped.
            () = next_silence(watch) => return End::Broken,
            _ = beat.tick(), if matches!(watch, Watch::Liveness(_)) => {
                let Watch::Liveness(liveness) = &*watch else { continue };
                if heard.elapsed() > liveness.timeout {
                    liveness.silences.send_replace(());
                    return End::Silence;
                }
                let sign_of_life = Frame { kind: FrameKind::Liveness as u8, ..Frame::default() };
                if frames.send(sign_of_life).is_err() {
                    return End::Broken;
                }
            },
        }
    }
}

/// Completes when the link that watches finds the peer silent.
async fn next_silence(watch: &mut Watch) {
    match watch {
        Watch::Follow(silences) => drop(silences.changed().await),
        Watch::Liveness(_) => std::future::pending().await,
    }
}

type Connection = (mpsc::UnboundedSender<Frame>, FrameStream);

async fn connect(shared: &Arc<Shared>) -> Result<Connection, TransportError> {
    let address = shared.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (frames, queue) = mpsc::unbounded_channel();
    let answers = shared.transport.open_lane(address, shared.origin.hello(), Batches::new(queue)).await?;
    Ok((frames, answers))
}
