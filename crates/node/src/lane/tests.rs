//! Links to a peer that says nothing any more, and whose connections stay open.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::Stream;
use leasehold_proto::peer::peer_server::{Peer as PeerService, PeerServer};
use leasehold_proto::peer::{
    Frame, FrameBatch, FrameKind, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse,
    SnapshotAnswer, SnapshotChunk,
};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::*;

const NODE: NodeId = NodeId(2);
const LIVENESS_TIMEOUT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(60);

/// A peer that is alive until it falls silent, and that never answers a question.
#[derive(Clone, Default)]
struct Fading(Arc<AtomicBool>);

#[tonic::async_trait]
impl PeerService for Fading {
    type LaneStream = Pin<Box<dyn Stream<Item = Result<FrameBatch, Status>> + Send>>;

    async fn lane(
        &self,
        request: Request<Streaming<FrameBatch>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let (answers, stream) = mpsc::channel(64);
        let is_silent = self.0.clone();
        tokio::spawn(async move {
            let mut frames = request.into_inner();
            while let Ok(Some(batch)) = frames.message().await {
                let is_liveness = |frame: &Frame| frame.kind() == FrameKind::Liveness;
                if !is_silent.load(Ordering::Relaxed) && batch.frames.iter().any(is_liveness) {
                    let answer = Frame { kind: FrameKind::Answer as i32, ..Frame::default() };
                    if answers.send(Ok(FrameBatch { frames: vec![answer] })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn install_snapshot(
        &self,
        _: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test]
async fn a_silent_peer_loses_the_calls_of_both_links() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = Fading::default();
    let is_silent = service.0.clone();
    let server = Server::builder()
        .add_service(PeerServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let (events, mut heard) = mpsc::unbounded_channel();
    let lanes = Lanes::new(ClusterName::of(&[1; 16]), LIVENESS_TIMEOUT, events);
    let peer = lanes.peer(NODE, &address);
    assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap(), Some(PeerEvent::Up(NODE)));
    let connected = async {
        while !peer.bulk.is_connected() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, connected).await.unwrap();
    let mut calls = [&peer.control, &peer.bulk].map(|link| {
        let call = link.call(FrameKind::Query, 1, 0, Bytes::new()).unwrap();
        Box::pin(call.wait())
    });
    // A slow answer is no silence.
    for call in &mut calls {
        assert!(timeout(LIVENESS_TIMEOUT * 2, call).await.is_err());
    }
    is_silent.store(true, Ordering::Relaxed);
    for call in calls {
        let lost = timeout(PATIENCE, call).await.unwrap();
        assert!(matches!(lost, Err(CallFailure::Lost(NODE))), "{lost:?}");
    }
    assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap(), Some(PeerEvent::Down(NODE)));
}
