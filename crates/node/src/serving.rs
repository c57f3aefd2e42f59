//! What a node serves its peers and its clients, on one port for each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use leasehold_proto::peer::peer_server::PeerServer;
use leasehold_proto::v1::cluster_server::ClusterServer;
use leasehold_proto::v1::messages_server::MessagesServer;
use leasehold_proto::v1::queues_server::QueuesServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::lane;
use crate::limits::{
    CLIENT_MESSAGE_BYTES_MAX, CONNECTION_WINDOW_BYTES, HTTP_FRAME_BYTES_MAX, PEER_MESSAGE_BYTES_MAX,
    STREAM_WINDOW_BYTES,
};
use crate::listener::{Admitted, admit};
use crate::node::Shell;
use crate::services::{ClusterService, MessagesService, PeerService, QueuesService, serve_lane};
use crate::tls::Listener;

const STREAMS_MAX: u32 = 1_024;

/// Completes when the node stops.
pub async fn until(mut stop: watch::Receiver<bool>) {
    // A sender that is gone stops the node too.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP_FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

/// Lanes and gRPC share the port.
pub async fn serve_peers(shell: Arc<Shell>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let connections_max = shell.config.limits.connections_max as usize;
    let (others, grpc) = mpsc::channel(1);
    let sorting =
        sort_peers(shell.clone(), admit(listener, connections_max, shell.tls(Listener::Peers)), others);
    let peer = PeerServer::new(PeerService::new(shell))
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let serving =
        server().add_service(peer).serve_with_incoming_shutdown(ReceiverStream::new(grpc), until(stop));
    // Connections are taken for as long as calls are served.
    tokio::select! {
        served = serving => report("peers", served),
        () = sorting => {}
    }
}

async fn sort_peers(
    shell: Arc<Shell>,
    admitted: impl Stream<Item = io::Result<Admitted>>,
    others: mpsc::Sender<io::Result<Admitted>>,
) {
    let mut admitted = std::pin::pin!(admitted);
    let mut connections = JoinSet::new();
    while let Some(Ok(connection)) = admitted.next().await {
        connections.spawn(sort_peer(shell.clone(), connection, others.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn sort_peer(shell: Arc<Shell>, connection: Admitted, others: mpsc::Sender<io::Result<Admitted>>) {
    let served = match lane::is_lane(connection.connection()).await {
        Ok(true) => {
            let (connection, _permit) = connection.into_parts();
            lane::accept(connection, |hello, frames| {
                let core = shell.core().map_err(|failure| failure.to_string())?;
                serve_lane(core, hello, frames, shell.stopped())
            })
            .await
        }
        Ok(false) => {
            // Who serves calls has stopped otherwise.
            let _ = others.send(Ok(connection)).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "the connection of a peer ended");
    }
}

/// The services for clients, health and reflection.
pub async fn serve_clients(shell: Arc<Shell>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let messages = MessagesServer::new(MessagesService::new(shell.clone()))
        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let admitted =
        admit(listener, shell.config.limits.connections_max as usize, shell.tls(Listener::Clients));
    let queues = QueuesServer::new(QueuesService::new(shell.clone()));
    // A record of a backup is what nodes send each other.
    let cluster = ClusterServer::new(ClusterService::new(shell.clone()))
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let (health_reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(leasehold_proto::DESCRIPTORS)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => reflection,
        Err(error) => return tracing::error!(%error, "the descriptors of the protocol are damaged"),
    };
    let report_health = tokio::spawn(async move {
        loop {
            let status = match shell.readiness_of_core() {
                Ok(()) => tonic_health::ServingStatus::Serving,
                Err(_) => tonic_health::ServingStatus::NotServing,
            };
            health_reporter.set_service_status("", status).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let router = server().add_service(messages).add_service(queues).add_service(cluster);
    let router = router.add_service(health).add_service(reflection);
    let served = router.serve_with_incoming_shutdown(admitted, until(stop)).await;
    report_health.abort();
    report("clients", served);
}

fn report(whom: &str, served: Result<(), tonic::transport::Error>) {
    if let Err(error) = served {
        tracing::error!(%error, whom, "the server ended");
    }
}
