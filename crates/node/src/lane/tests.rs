//! A peer that falls silent while its connections stay open, as behind a cable that was pulled.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use leasehold_catalogue::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::connection::Connection;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// A machine that is busy with other things does not stand still for so long.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(3);
const CLUSTER: [u8; 16] = [7; 16];

/// Serves signs of life, and never answers anything else.
struct Mute;

impl Dispatch for Mute {
    fn dispatch(&mut self, _frame: Frame, _kind: FrameKind, _answers: &Answers) {}
}

async fn serve_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let here = Origin::new(&CLUSTER, NodeId(2), "");
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let here = here.clone();
            tokio::spawn(accept(Connection::Plain(stream), move |hello, frames| {
                here.meet(hello)?;
                Ok(LaneServer::new(|| Mute).serve(frames, std::future::pending()))
            }));
        }
    });
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
    let origin = Origin::new(&CLUSTER, NodeId(1), "127.0.0.1:1");
    let lanes = Lanes::new(origin, Arc::new(Sockets::default()), LIVENESS_TIMEOUT, sender);
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
    let origin = Origin::new(&CLUSTER, NodeId(1), "one:7000");
    let lanes = Lanes::new(origin, Arc::new(Sockets::default()), LIVENESS_TIMEOUT, sender);
    lanes.peer(NodeId(2), "");
    while !matches!(next(&mut events).await, PeerEvent::Down(NodeId(2))) {}
    lanes.peer(NodeId(2), &address);
    while !matches!(next(&mut events).await, PeerEvent::Up(NodeId(2))) {}
    assert_eq!(lanes.address(NodeId(2)), Some(address));
}

/// What a peer that is asked this way answers before it hangs up.
async fn answer_to(opening: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(serve_peer().await).await.unwrap();
    stream.write_all(opening).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it hangs up").unwrap();
    answer
}

#[tokio::test]
async fn a_peer_of_another_version_is_told_so() {
    let answer = answer_to(b"LEASEHOLD LANE 9\nwhatever it says then").await;
    assert!(String::from_utf8_lossy(&answer).contains("LEASEHOLD LANE 1"), "{answer:?}");
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused() {
    let hello = Origin::new(&[8; 16], NodeId(1), "one:7000").hello();
    let (_frames, queue) = mpsc::unbounded_channel();
    let address = serve_peer().await.to_string();
    let opened = Sockets::default().open_lane(address, hello, batch::Batches::new(queue)).await;
    let Err(TransportError::Refused(refusal)) = opened else { panic!("it is served") };
    assert!(refusal.contains("another cluster"), "{refusal}");
}

#[tokio::test]
async fn a_damaged_batch_breaks_the_lane() {
    let mut stream = TcpStream::connect(serve_peer().await).await.unwrap();
    let hello = prost::Message::encode_to_vec(&Origin::new(&CLUSTER, NodeId(1), "one:7000").hello());
    stream.write_all(b"LEASEHOLD LANE 1\n").await.unwrap();
    stream.write_u32_le(hello.len() as u32).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    assert_eq!(stream.read_u32_le().await.unwrap(), 0, "an empty welcome");
    let sign_of_life = frame::Encoded::new(&[Frame { call: 5, ..Frame::default() }]);
    let mut bytes = Vec::new();
    bytes::BufMut::put(&mut bytes, sign_of_life);
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await.unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    stream.write_all(&bytes).await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it hangs up").unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Answers each call with as many bytes as its target says.
struct Long;

impl Dispatch for Long {
    fn dispatch(&mut self, frame: Frame, _kind: FrameKind, answers: &Answers) {
        answers.done(frame.call, vec![0; frame.target as usize].into());
    }
}

#[tokio::test]
async fn what_is_too_long_for_a_lane_fails_alone() {
    let (sender, _events) = mpsc::unbounded_channel();
    let origin = Origin::new(&CLUSTER, NodeId(1), "one:7000");
    let lanes = Lanes::new(origin, Arc::new(Sockets::default()), LIVENESS_TIMEOUT, sender);
    let long = Bytes::from(vec![0; frame::BODY_BYTES_MAX + 1]);
    let called = lanes.peer(NodeId(2), "").bulk.call(FrameKind::Query, 1, 1, long);
    assert!(matches!(called, Err(CallFailure::TooLong(_))));

    let asked = |length: usize| {
        let (call, target) = (length as u64, length as u64);
        Frame { call, kind: FrameKind::Query as u8, target, ..Frame::default() }
    };
    let calls = vec![asked(frame::BODY_BYTES_MAX + 1), asked(frame::BODY_BYTES_MAX)];
    let calls = futures::stream::iter([calls]).chain(futures::stream::pending());
    let mut answers = LaneServer::new(|| Long).serve(calls, std::future::pending());
    let mut heard = Vec::new();
    while heard.len() < 2 {
        heard.extend(timeout(PATIENCE, answers.next()).await.unwrap().expect("the lane goes on"));
    }
    heard.sort_by_key(|answer| answer.call);
    assert_eq!((heard[0].kind(), heard[0].body.len()), (Some(FrameKind::Answer), frame::BODY_BYTES_MAX));
    assert_eq!(heard[1].kind(), Some(FrameKind::Failure));
}

#[tokio::test]
async fn the_longest_body_fits_into_a_batch_with_what_gathered_before_it() {
    use crate::limits::{FRAME_BATCH_BYTES_MAX, FRAME_BATCH_FRAMES_MAX};

    let (sender, queue) = mpsc::unbounded_channel();
    let before = FRAME_BATCH_FRAMES_MAX - 1;
    for at in 0..before {
        let bytes = if at == 0 { FRAME_BATCH_BYTES_MAX - 1 } else { 0 };
        sender.send(Frame { body: vec![0; bytes].into(), ..Frame::default() }).unwrap();
    }
    sender.send(Frame { body: vec![0; frame::BODY_BYTES_MAX].into(), ..Frame::default() }).unwrap();
    drop(sender);
    let batches = batch::Batches::new(queue).collect::<Vec<_>>().await;
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [FRAME_BATCH_FRAMES_MAX]);
    let mut encoded = frame::Encoded::new(&batches[0]);
    let mut head = [0; frame::BATCH_HEAD_BYTES];
    bytes::Buf::copy_to_slice(&mut encoded, &mut head);
    assert!(frame::BatchHead::decode(head).is_ok());
}

#[tokio::test]
async fn what_is_sent_ends_with_what_is_heard() {
    // A peer that welcomes, and then takes nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let welcomed = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_u32_le(0).await.unwrap();
        stream
    });
    let hello = Origin::new(&CLUSTER, NodeId(1), "one:7000").hello();
    let (frames, queue) = mpsc::unbounded_channel();
    let answers = Sockets::default().open_lane(address, hello, batch::Batches::new(queue)).await.unwrap();
    let _stream = welcomed.await.unwrap();
    let body = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..64 {
        frames.send(Frame { body: body.clone(), ..Frame::default() }).unwrap();
    }
    drop(answers);
    timeout(PATIENCE, frames.closed()).await.expect("nobody holds the frames any more");
}
