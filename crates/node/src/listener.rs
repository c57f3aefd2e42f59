//! A listener that lets only so many connections in at once: the others wait in the backlog of the system until one ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After an accept that failed, for example because the process has too many files open.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that makes room for another one when it ends.
pub struct Admitted {
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
}

impl Admitted {
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The connection, and what makes room for another one when it is dropped.
    pub fn into_parts(self) -> (TcpStream, OwnedSemaphorePermit) {
        (self.stream, self.permit)
    }
}

/// The connections of a listener, at most `connections_max` of them at the same time.
pub fn admit(
    listener: TcpListener,
    connections_max: usize,
) -> impl Stream<Item = io::Result<Admitted>> + Send {
    let room = Arc::new(Semaphore::new(connections_max));
    futures::stream::unfold((listener, room), |(listener, room)| async move {
        let admitted = next(&listener, &room).await;
        Some((Ok(admitted), (listener, room)))
    })
}

async fn next(listener: &TcpListener, room: &Arc<Semaphore>) -> Admitted {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending().await
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection stays slow for small messages");
                }
                return Admitted { stream, permit };
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
        self.stream.connect_info()
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn the_next_is_let_in_when_one_has_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = Box::pin(admit(listener, 2));
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
