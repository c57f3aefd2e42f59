//! The service `Peer`: what the nodes of one cluster say to each other.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use leasehold_proto::peer::peer_server::Peer;
use leasehold_proto::peer::{
    FrameBatch, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, SnapshotAnswer, SnapshotChunk,
};
use tonic::{Request, Response, Status, Streaming};

use crate::inbound::Inbound;
use crate::lane::LaneServer;
use crate::node::Shell;
use crate::raft::receive_snapshot;

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
    type LaneStream = Pin<Box<dyn Stream<Item = Result<FrameBatch, Status>> + Send>>;

    async fn lane(
        &self,
        request: Request<Streaming<FrameBatch>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let core = self.shell.core()?;
        if let Some(caller) = core.lanes.origin().check(request.metadata())? {
            core.lanes.follow_caller(&caller);
        }
        let server = LaneServer::new(move || Inbound::new(core.clone()));
        Ok(Response::new(server.serve(request.into_inner(), self.shell.stopped())))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        let core = self.shell.core()?;
        core.lanes.origin().check(request.metadata())?;
        let answer = receive_snapshot(&*core, &core.log, request.into_inner()).await?;
        Ok(Response::new(answer))
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
