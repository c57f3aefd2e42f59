//! How streams to a peer are opened: lanes over TCP or TLS and snapshots over gRPC, or by what a simulation puts in their place.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use leasehold_proto::peer::peer_client::PeerClient;
use leasehold_proto::peer::{IdentifyRequest, IdentifyResponse, LaneHello, SnapshotAnswer, SnapshotChunk};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::batch::Batches;
use super::frame::Frame;
use super::tcp;
use crate::limits::{
    CONNECT_TIMEOUT_MS, CONNECTION_WINDOW_BYTES, HTTP_FRAME_BYTES_MAX, KEEP_ALIVE_INTERVAL_MS,
    KEEP_ALIVE_TIMEOUT_MS, PEER_MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
use crate::tls::Tls;

/// Frames of one direction of a lane; it ends with the connection.
pub type FrameStream = BoxStream<'static, Vec<Frame>>;

/// Why a stream could not be opened, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("cannot connect: {0}")]
    Channel(#[from] tonic::transport::Error),
    #[error("the peer does not answer")]
    Silent,
    #[error("the peer refused: {0}")]
    Refused(String),
    #[error("the peer refused: {0}")]
    Failed(#[from] Box<Status>),
}

/// Opens streams to peers; `address` is host:port.
pub trait Transport: Send + Sync + 'static {
    /// Opens a lane: `frames` go there, and answers come back.
    fn open_lane(
        &self,
        address: String,
        hello: LaneHello,
        frames: Batches,
    ) -> BoxFuture<'static, Result<FrameStream, TransportError>>;

    /// Asks who is there. Where all addresses are known, nobody has to be asked.
    fn identify(&self, address: String) -> BoxFuture<'static, Result<IdentifyResponse, TransportError>> {
        let _unknown = address;
        Box::pin(async { Err(TransportError::Silent) })
    }

    /// Sends a snapshot over a connection of its own.
    fn install_snapshot(
        &self,
        address: String,
        chunks: Request<ReceiverStream<SnapshotChunk>>,
    ) -> BoxFuture<'static, Result<SnapshotAnswer, TransportError>>;
}

/// Streams over the network, secured where the node has TLS.
#[derive(Clone, Default)]
pub struct Sockets {
    tls: Option<Arc<Tls>>,
}

impl Sockets {
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls }
    }

    /// Opens an HTTP/2 connection to a peer's listener. It breaks when the peer says nothing for a while, also when nobody asks: a
    /// snapshot whose receiver has lost power would be waited for without end.
    ///
    /// # Errors
    /// When the address is not one, or nobody answers there within the connect timeout.
    pub async fn open_channel(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_millis(KEEP_ALIVE_INTERVAL_MS))
            .keep_alive_timeout(Duration::from_millis(KEEP_ALIVE_TIMEOUT_MS))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(HTTP_FRAME_BYTES_MAX);
        match &self.tls {
            Some(tls) => endpoint.connect_with_connector(tls.dialer()).await,
            None => endpoint.connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS)).connect().await,
        }
    }
}

impl Transport for Sockets {
    fn open_lane(
        &self,
        address: String,
        hello: LaneHello,
        frames: Batches,
    ) -> BoxFuture<'static, Result<FrameStream, TransportError>> {
        Box::pin(tcp::open(address, self.tls.clone(), hello, frames))
    }

    fn identify(&self, address: String) -> BoxFuture<'static, Result<IdentifyResponse, TransportError>> {
        let sockets = self.clone();
        Box::pin(async move {
            let mut client = PeerClient::new(sockets.open_channel(&address).await?);
            Ok(client.identify(IdentifyRequest {}).await.map_err(Box::new)?.into_inner())
        })
    }

    fn install_snapshot(
        &self,
        address: String,
        chunks: Request<ReceiverStream<SnapshotChunk>>,
    ) -> BoxFuture<'static, Result<SnapshotAnswer, TransportError>> {
        let sockets = self.clone();
        Box::pin(async move {
            let channel = sockets.open_channel(&address).await?;
            let mut client = PeerClient::new(channel).max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
            Ok(client.install_snapshot(chunks).await.map_err(Box::new)?.into_inner())
        })
    }
}
