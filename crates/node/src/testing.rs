//! What unit tests share: a replica on a log of its own, and peers that take everything and never answer.

use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use leasehold_catalogue::NodeId;
use leasehold_proto::peer::{LaneHello, SnapshotAnswer, SnapshotChunk};
use leasehold_raft_log::{Log, Options, RealFileSystem};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::lane::{Batches, FrameStream, Lanes, Origin, Transport, TransportError};
use crate::raft::{Group, GroupId, GroupOptions, Machine, Network};

/// The node that a test is on, and the id of its replica.
pub const HERE: u64 = 1;
pub const ADDRESS: &str = "127.0.0.1:1";

/// Longer than any test takes.
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Opens streams on which nothing ever comes.
struct Mute;

impl Transport for Mute {
    fn open_lane(
        &self,
        _address: String,
        _hello: LaneHello,
        frames: Batches,
    ) -> BoxFuture<'static, Result<FrameStream, TransportError>> {
        let stream = futures::stream::poll_fn(move |_| {
            // The stream is open for as long as its other half is.
            let _open = &frames;
            Poll::Pending
        });
        Box::pin(async move { Ok(stream.boxed()) })
    }

    fn install_snapshot(
        &self,
        _address: String,
        _chunks: Request<ReceiverStream<SnapshotChunk>>,
    ) -> BoxFuture<'static, Result<SnapshotAnswer, TransportError>> {
        Box::pin(std::future::pending())
    }
}

/// Lanes to peers that are reached and say nothing.
pub fn silent_lanes() -> Arc<Lanes> {
    let (events, _heard) = mpsc::unbounded_channel();
    let origin = Origin::new(&[7; 16], NodeId(HERE), ADDRESS);
    Arc::new(Lanes::new(origin, Arc::new(Mute), LIVENESS_TIMEOUT, events))
}

/// A replica that belongs to nobody yet.
pub async fn group(dir: &Path, id: GroupId, machine: Arc<dyn Machine>, lanes: Arc<Lanes>) -> Group {
    let options = Options { segment_bytes: 64 * 1024, ..Options::default() };
    let (log, _) = Log::open(Arc::new(RealFileSystem::default()), dir, options).unwrap();
    let network = Network::new(id, lanes, log.clone());
    let options =
        GroupOptions { id, replica: HERE, heartbeat_ms: 50, election_ms_min: 200, election_ms_max: 400 };
    Group::start(options, machine, log, network).await.unwrap()
}
