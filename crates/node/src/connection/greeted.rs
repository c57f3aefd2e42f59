//! A connection over HTTP/2 whose client must begin before long.
//!
//! A server of HTTP/2 asks for signs of life only when the client has said what it begins with, and waits for that without end:
//! connections that say nothing would take the places of all others, until the node starts again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What a client sends first (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
/// As long as a handshake of TLS may take, which comes before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that ends when its client does not begin in time.
#[derive(Debug)]
pub struct Greeted<C> {
    connection: C,
    /// Bytes of the preface that have not come.
    missing: usize,
    /// Runs while they are waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<C> Greeted<C> {
    pub fn new(connection: C) -> Self {
        Self { connection, missing: PREFACE_BYTES, patience: None }
    }

    pub fn get_ref(&self) -> &C {
        &self.connection
    }

    pub fn into_inner(self) -> C {
        self.connection
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Greeted<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.connection).poll_read(context, buffer);
        if this.missing == 0 {
            return read;
        }
        if read.is_ready() {
            this.missing = this.missing.saturating_sub(buffer.filled().len() - before);
            if this.missing == 0 {
                this.patience = None;
            }
            return read;
        }
        let patience = || Box::pin(sleep(PATIENCE));
        ready!(this.patience.get_or_insert_with(patience).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not begin in time")))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Greeted<C> {
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
        slices: &[IoSlice<'_>],
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Says so many bytes, one a second, and reads until it fails or has what comes a minute later.
    async fn read_after(bytes: usize) -> (io::Result<usize>, Duration) {
        let (near, mut far) = tokio::io::duplex(64);
        let saying = async {
            for _ in 0..bytes {
                // Who gave up does not listen any more.
                let _ = far.write_all(b"x").await;
                sleep(Duration::from_secs(1)).await;
            }
            sleep(Duration::from_secs(60)).await;
            let _ = far.write_all(b"later").await;
            far
        };
        let reading = async {
            let mut near = Greeted::new(near);
            let began = Instant::now();
            let mut said = vec![0; bytes];
            let mut read = near.read_exact(&mut said).await;
            if read.is_ok() {
                read = near.read(&mut [0; 5]).await;
            }
            (read, began.elapsed())
        };
        let (read, _far) = tokio::join!(timeout(Duration::from_secs(600), reading), saying);
        read.expect("it waits without end")
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_too_little_is_let_go() {
        for bytes in [0, 1, 5, PREFACE_BYTES - 1] {
            let (read, waited) = read_after(bytes).await;
            assert_eq!(read.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut), "{bytes}");
            assert!(waited >= PATIENCE && waited < 2 * PATIENCE, "{bytes}: {waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_may_be_silent() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Greeted::new(near);
        let saying = async {
            far.write_all(&[b'x'; PREFACE_BYTES / 2]).await.unwrap();
            sleep(PATIENCE / 2).await;
            far.write_all(&[b'x'; PREFACE_BYTES / 2]).await.unwrap();
            sleep(10 * PATIENCE).await;
            far.write_all(b"later").await.unwrap();
        };
        let mut said = [0; PREFACE_BYTES + 5];
        let (read, ()) = tokio::join!(near.read_exact(&mut said), saying);
        read.unwrap();
        assert!(said.ends_with(b"later"));
    }
}
