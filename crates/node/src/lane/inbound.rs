//! The serving side of lanes: reads the frames of a peer and hands each to the [`Dispatch`].

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use leasehold_proto::peer::Failure;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::batch::Batches;
use super::frame::{BODY_BYTES_MAX, Frame, FrameKind};
use super::transport::FrameStream;

/// Where the answers of one inbound lane go. Cheap to clone; answers may come in any order.
#[derive(Clone)]
pub struct Answers {
    frames: mpsc::UnboundedSender<Frame>,
}

impl Answers {
    /// Answers a call. A peer that has hung up hears nothing; it counts the call as lost. An answer that would break the lane is none,
    /// and its call is of unknown outcome.
    pub fn done(&self, call: u64, body: Bytes) {
        if body.len() > BODY_BYTES_MAX {
            let detail = format!("an answer of {} bytes: a lane takes {BODY_BYTES_MAX}", body.len());
            return self.failed(call, &Failure { detail, ..Failure::default() });
        }
        let _ = self.frames.send(Frame { call, kind: FrameKind::Answer as u8, body, ..Frame::default() });
    }

    /// Answers a call with a failure.
    pub fn failed(&self, call: u64, failure: &Failure) {
        let body = Bytes::from(failure.encode_to_vec());
        let _ = self.frames.send(Frame { call, kind: FrameKind::Failure as u8, body, ..Frame::default() });
    }

    /// Completes when the peer has hung up.
    pub async fn closed(&self) {
        self.frames.closed().await;
    }
}

/// What serves the frames of peers. One value per lane, so it may keep what belongs to the connection.
pub trait Dispatch: Send + 'static {
    /// Serves one frame without waiting: long work goes to a task of its own.
    fn dispatch(&mut self, frame: Frame, kind: FrameKind, answers: &Answers);
}

/// Serves lanes; `factory` makes the dispatch of each.
pub struct LaneServer<F> {
    factory: Arc<F>,
}

impl<F, D> LaneServer<F>
where
    F: Fn() -> D + Send + Sync + 'static,
    D: Dispatch,
{
    pub fn new(factory: F) -> Self {
        Self { factory: Arc::new(factory) }
    }

    /// Serves one lane until the peer hangs up or it is time to stop; the stream carries the answers, and ends then too.
    pub fn serve(
        &self,
        frames: impl Stream<Item = Vec<Frame>> + Send + 'static,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> FrameStream {
        let (sender, queue) = mpsc::unbounded_channel();
        let answers = Answers { frames: sender };
        let mut dispatch = (self.factory)();
        let (serving, has_ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let _serving = serving;
            let (mut frames, mut stop) = (std::pin::pin!(frames), std::pin::pin!(stop));
            loop {
                let batch = tokio::select! {
                    batch = frames.next() => batch,
                    () = answers.closed() => break,
                    () = &mut stop => break,
                };
                let Some(batch) = batch else { break };
                for frame in batch {
                    serve_frame(&mut dispatch, frame, &answers);
                }
            }
        });
        Box::pin(Batches::new(queue).take_until(has_ended))
    }
}

fn serve_frame<D: Dispatch>(dispatch: &mut D, frame: Frame, answers: &Answers) {
    match frame.kind() {
        Some(FrameKind::Liveness) => answers.done(frame.call, Bytes::new()),
        Some(kind) => dispatch.dispatch(frame, kind, answers),
        None => {
            let detail =
                format!("this node does not know frames of kind {}; is it older than its peer?", frame.kind);
            answers.failed(frame.call, &Failure { detail, ..Failure::default() });
        }
    }
}
