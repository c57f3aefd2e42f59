//! The service `Peer`: what the nodes of one cluster say to each other.

use std::sync::Arc;

use futures::Stream;
use leasehold_proto::peer::peer_server::Peer;
use leasehold_proto::peer::{
    IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, LaneHello, SnapshotAnswer, SnapshotChunk,
};
use tonic::{Request, Response, Status, Streaming};

use crate::core::Core;
use crate::inbound::Inbound;
use crate::lane::{Frame, FrameStream, LaneServer};
use crate::node::Shell;
use crate::raft::receive_snapshot;

/// Serves a lane that a node of this cluster opens, until `stop`.
///
/// # Errors
/// When the caller is of another cluster; says what to look at.
pub fn serve_lane(
    core: Arc<Core>,
    hello: &LaneHello,
    frames: impl Stream<Item = Vec<Frame>> + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<FrameStream, String> {
    let caller = core.lanes.origin().meet(hello)?;
    core.lanes.follow_caller(&caller);
    let server = LaneServer::new(move || Inbound::new(core.clone()));
    Ok(server.serve(frames, stop))
}

/// Installs a snapshot that a node of this cluster sends.
pub async fn take_snapshot(
    core: &Core,
    request: Request<impl Stream<Item = Result<SnapshotChunk, Status>> + Send>,
) -> Result<SnapshotAnswer, Status> {
    core.lanes.origin().check(request.metadata())?;
    receive_snapshot(core, &core.log, request.into_inner()).await
}

/// Serves other nodes.
pub struct PeerService {
    shell: Arc<Shell>,
}

impl PeerService {
    pub fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        let core = self.shell.core()?;
        Ok(Response::new(take_snapshot(&core, request).await?))
    }

    async fn identify(
        &self,
        _request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(self.shell.identify()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.shell.join(request.into_inner()).await?;
        Ok(Response::new(JoinResponse {}))
    }
}
