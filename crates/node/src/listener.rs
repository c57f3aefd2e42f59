//! A listener that lets only so many connections in at once, and secures them: the others wait in the backlog of the system until
//! one ends. So that each does, who says nothing is let go.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::connection::{Connection, Greeted, prepare};
use crate::stop_on_drop::StopOnDrop;
use crate::tls::{Listener, Tls};

/// After an accept that failed, for example because the process has too many files open.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that makes room for another one when it ends. Read from, it is one over HTTP/2.
pub struct Admitted {
    connection: Greeted<Connection>,
    permit: OwnedSemaphorePermit,
}

impl Admitted {
    fn new(connection: Connection, permit: OwnedSemaphorePermit) -> Self {
        Self { connection: Greeted::new(connection), permit }
    }

    pub fn connection(&self) -> &Connection {
        self.connection.get_ref()
    }

    /// The connection, and what makes room for another one when it is dropped.
    pub fn into_parts(self) -> (Connection, OwnedSemaphorePermit) {
        (self.connection.into_inner(), self.permit)
    }
}

/// The connections of a listener, at most `connections_max` of them at the same time, in the order in which they are ready.
/// Handshakes do not wait for each other; whose handshake fails is let go.
pub fn admit(
    listener: TcpListener,
    connections_max: usize,
    tls: Option<(Arc<Tls>, Listener)>,
) -> impl Stream<Item = io::Result<Admitted>> + Send {
    let room = Arc::new(Semaphore::new(connections_max));
    let accepted = futures::stream::unfold((listener, room), |(listener, room)| async move {
        let accepted = next(&listener, &room).await;
        Some((accepted, (listener, room)))
    });
    let secured = accepted.map(move |(stream, permit)| admit_one(stream, permit, tls.clone()));
    secured.buffer_unordered(connections_max).filter_map(|admitted| async { admitted.map(Ok) })
}

/// A handshake is work for a processor, and has a task of its own.
async fn admit_one(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    tls: Option<(Arc<Tls>, Listener)>,
) -> Option<Admitted> {
    let Some((tls, listener)) = tls else {
        return Some(Admitted::new(Connection::Plain(stream), permit));
    };
    let securing = tokio::spawn(secure(stream, permit, tls, listener));
    let _stops_with_this = StopOnDrop(securing.abort_handle());
    // A task that panicked has said so.
    securing.await.ok().flatten()
}

async fn secure(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    tls: Arc<Tls>,
    listener: Listener,
) -> Option<Admitted> {
    match tls.accept(listener, stream).await {
        Ok(connection) => Some(Admitted::new(connection, permit)),
        Err(error) => {
            tracing::debug!(%error, ?listener, "a connection cannot be secured");
            None
        }
    }
}

async fn next(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending().await
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%error, "a connection stays slow for small messages, or without signs of life");
                }
                return (stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Connected for Admitted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.connection().tcp().connect_info()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::io::AsyncReadExt as _;
    use tokio::time::timeout;

    use super::*;

    /// Nothing is ever said on it: neither the beginning of HTTP/2 nor that the client is gone.
    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_makes_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = Box::pin(admit(listener, 1, None));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut silent = admitted.next().await.unwrap().unwrap();
        assert!(SockRef::from(silent.connection().tcp()).keepalive().unwrap());
        let mut said = [0; 1];
        let read = timeout(Duration::from_secs(60), silent.read(&mut said)).await;
        let error = read.expect("it is kept without end").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_next_is_let_in_when_one_has_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = Box::pin(admit(listener, 2, None));
        let _clients = [
            TcpStream::connect(address).await,
            TcpStream::connect(address).await,
            TcpStream::connect(address).await,
        ];
        let first = admitted.next().await.unwrap().unwrap();
        let _second = admitted.next().await.unwrap().unwrap();
        assert!(futures::poll!(admitted.next()).is_pending());
        drop(first);
        assert!(admitted.next().await.unwrap().is_ok());
    }
}
