//! A connection whose client must take something of what is sent to it now and then.
//!
//! hyper waits for one that takes nothing without end: over HTTP/1.1 no timer of its own runs while an answer goes out. Here one runs
//! while the connection takes nothing, and none else: an answer that the system takes at once starts none.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::limits::STALL_MS_MAX;

/// A connection that ends when it has taken nothing for `STALL_MS_MAX`.
pub struct Patient<C> {
    connection: C,
    /// Runs while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<C> Patient<C> {
    pub fn new(connection: C) -> Self {
        Self { connection, stalled: None }
    }

    fn judged<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = || Box::pin(sleep(Duration::from_millis(STALL_MS_MAX)));
        ready!(self.stalled.get_or_insert_with(patience).as_mut().poll(context));
        let detail = format!("the client took nothing of what was sent for {STALL_MS_MAX} ms");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, detail)))
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Patient<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Patient<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.judged(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, slices);
        self.judged(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(context);
        self.judged(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.connection).poll_shutdown(context);
        self.judged(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(STALL_MS_MAX);

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_let_go() {
        let (near, _takes_nothing) = tokio::io::duplex(16);
        let began = Instant::now();
        let mut near = Patient::new(near);
        let written = timeout(10 * PATIENCE, near.write_all(&[0; 64])).await;
        let error = written.expect("it waits for the client without end").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_is_waited_for() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Patient::new(near);
        let reading = async {
            let mut piece = [0; 16];
            for _ in 0..4 {
                sleep(PATIENCE * 2 / 3).await;
                far.read_exact(&mut piece).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 64]), reading);
        written.unwrap();
    }
}
