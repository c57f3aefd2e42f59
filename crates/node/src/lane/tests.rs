//! A peer that falls silent while its connections stay open, as behind a cable that was pulled.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use leasehold_catalogue::NodeId;
use leasehold_proto::peer::peer_server::{Peer as PeerCalls, PeerServer};
use leasehold_proto::peer::{
    Frame, FrameBatch, FrameKind, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse,
    SnapshotAnswer, SnapshotChunk,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const LIVENESS_TIMEOUT: Duration = Duration::from_millis(600);

/// Serves signs of life, and never answers anything else.
struct Mute;

impl Dispatch for Mute {
    fn dispatch(&mut self, _frame: Frame, _kind: FrameKind, _answers: &Answers) {}
}

#[tonic::async_trait]
impl PeerCalls for Mute {
    type LaneStream = Pin<Box<dyn Stream<Item = Result<FrameBatch, Status>> + Send>>;

    async fn lane(
        &self,
        request: Request<Streaming<FrameBatch>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let server = LaneServer::new(|| Mute);
        Ok(Response::new(server.serve(request.into_inner(), std::future::pending())))
    }

    async fn install_snapshot(
        &self,
        _request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn identify(
        &self,
        _request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn join(&self, _request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn serve_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = crate::listener::admit(listener, 8);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(PeerServer::new(Mute))
            .serve_with_incoming(connections),
    );
    address
}

/// Passes bytes on for as long as the cable is in; afterwards connections stay open and nothing comes through.
async fn cable_to(peer: SocketAddr, is_in: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(peer).await.unwrap();
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::spawn(pass(near_read, far_write, is_in.clone()));
            tokio::spawn(pass(far_read, near_write, is_in.clone()));
        }
    });
    address
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut is_in: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        is_in.wait_for(|is_in| *is_in).await.unwrap();
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn next(events: &mut mpsc::UnboundedReceiver<PeerEvent>) -> PeerEvent {
    timeout(PATIENCE, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_silent_peer_breaks_both_links_and_comes_back() {
    let (cable, is_in) = watch::channel(true);
    let address = cable_to(serve_peer().await, is_in).await.to_string();
    let (sender, mut events) = mpsc::unbounded_channel();
    let node = NodeId(2);
    let origin = Origin::new(&[7; 16], NodeId(1), "127.0.0.1:1");
    let lanes = Lanes::new(origin, Arc::new(Grpc), LIVENESS_TIMEOUT, sender);
    let mut reach = lanes.reach();
    let peer = lanes.peer(node, &address);
    assert_eq!(next(&mut events).await, PeerEvent::Up(node));
    timeout(PATIENCE, async {
        while !peer.bulk.is_connected() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let command = peer.bulk.call(FrameKind::Command, 1, 1, Bytes::new()).unwrap();
    reach.mark_unchanged();

    cable.send_replace(false);
    assert_eq!(next(&mut events).await, PeerEvent::Down(node));
    assert!(!lanes.is_reachable(node));
    timeout(PATIENCE, reach.changed()).await.unwrap().unwrap();
    let answer = timeout(PATIENCE, command.wait()).await.expect("the bulk link breaks with the other one");
    assert!(matches!(answer, Err(CallFailure::Lost(lost)) if lost == node), "{answer:?}");

    cable.send_replace(true);
    assert_eq!(next(&mut events).await, PeerEvent::Up(node));
    assert!(lanes.is_reachable(node));
}

#[tokio::test]
async fn links_opened_when_nobody_knew_the_address_go_there_once_it_is_known() {
    let address = serve_peer().await.to_string();
    let (sender, mut events) = mpsc::unbounded_channel();
    let origin = Origin::new(&[1; 16], NodeId(1), "one:7000");
    let lanes = Lanes::new(origin, Arc::new(Grpc), LIVENESS_TIMEOUT, sender);
    lanes.peer(NodeId(2), "");
    while !matches!(next(&mut events).await, PeerEvent::Down(NodeId(2))) {}
    lanes.peer(NodeId(2), &address);
    while !matches!(next(&mut events).await, PeerEvent::Up(NodeId(2))) {}
    assert_eq!(lanes.address(NodeId(2)), Some(address));
}
