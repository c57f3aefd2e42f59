//! A lane over TCP: an opening in which both sides say who they are, then batches of frames in both directions.
//!
//! ```text
//! who opens:    "LEASEHOLD LANE 1\n" | length u32 | LaneHello
//! who is asked: length u32 | LaneWelcome; it hangs up after a refusal
//! ```
//!
//! The lane shares the port of the peers with gRPC, whose connections begin with another letter, and have another name for ALPN
//! where there is TLS. It is one stream in each direction,
//! bounded by the calls in flight, so it needs nothing that HTTP/2 has beside that, and takes a fraction of the calls to the system.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::{Stream, StreamExt};
use leasehold_proto::peer::{LaneHello, LaneWelcome};
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frame::{BATCH_HEAD_BYTES, BatchHead, Encoded, Frame};
use super::transport::{FrameStream, TransportError};
use crate::connection::Connection;
use crate::limits::{CONNECT_TIMEOUT_MS, KEEP_ALIVE_INTERVAL_MS, KEEP_ALIVE_TIMEOUT_MS, LANE_READ_BYTES};
use crate::stop_on_drop::StopOnDrop;
use crate::tls::{LANE, Tls};

/// The version is part of it.
const OPENING: &[u8; 17] = b"LEASEHOLD LANE 1\n";
/// Hellos and welcomes are short.
const GREETING_BYTES_MAX: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_millis(CONNECT_TIMEOUT_MS);
/// Who was asked waits longer than who opens: a packet that was lost comes again.
const GREETING_PATIENCE: Duration = Duration::from_millis(KEEP_ALIVE_TIMEOUT_MS);
const KEEP_ALIVE_PROBES: u32 = 2;
/// How long a peer may acknowledge nothing, or take nothing of what waits for it.
const SILENCE_MAX: Duration = Duration::from_millis(KEEP_ALIVE_INTERVAL_MS * (1 + KEEP_ALIVE_PROBES as u64));

/// Opens a lane: `frames` go there, and what comes back is the stream.
pub async fn open(
    address: String,
    tls: Option<Arc<Tls>>,
    hello: LaneHello,
    frames: impl Stream<Item = Vec<Frame>> + Send + 'static,
) -> Result<FrameStream, TransportError> {
    let connecting = async {
        let stream = TcpStream::connect(&address).await?;
        prepare(&stream, SILENCE_MAX)?;
        Ok(stream)
    };
    let stream = in_time(connecting).await?;
    let connection = match tls {
        Some(tls) => in_time(tls.connect_lane(&address, stream)).await?,
        None => Connection::Plain(stream),
    };
    let (read, write) = greet(connection, &hello).await?.into_split();
    // Who hears nothing any more has nothing to say either: frames must not wait for a peer that takes none.
    let sending = tokio::spawn(async move { ended(send_all(write, frames).await) });
    let sending = StopOnDrop(sending.abort_handle());
    let answers = receive(read).inspect(move |_| {
        let _alive = &sending;
    });
    Ok(answers.boxed())
}

/// A step of an opening. Each has its time, as each takes a way there and back.
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> Result<T, TransportError> {
    Ok(timeout(PATIENCE, step).await.map_err(|_| TransportError::Silent)??)
}

/// Says who opens, and is welcome.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    hello: &LaneHello,
) -> Result<S, TransportError> {
    let greeting = async {
        stream.write_all(&[OPENING, &*framed(hello)].concat()).await?;
        stream.flush().await?;
        read_message::<LaneWelcome>(&mut stream).await
    };
    let welcome = in_time(greeting).await?;
    if welcome.refusal.is_empty() { Ok(stream) } else { Err(TransportError::Refused(welcome.refusal)) }
}

/// Whether a connection to the peers' port is a lane; it waits for the first byte where no handshake has told.
pub async fn is_lane(connection: &Connection) -> io::Result<bool> {
    if let Connection::Secured(_) = connection {
        return Ok(connection.protocol() == Some(LANE));
    }
    let mut first = [0];
    timeout(GREETING_PATIENCE, connection.tcp().peek(&mut first)).await??;
    Ok(first[0] == OPENING[0])
}

/// Serves a lane until it ends. `serve` takes the caller's frames and returns the answers, or says why it does not.
pub async fn accept(
    mut connection: Connection,
    serve: impl FnOnce(&LaneHello, FrameStream) -> Result<FrameStream, String>,
) -> io::Result<()> {
    prepare(connection.tcp(), SILENCE_MAX)?;
    let hello = timeout(GREETING_PATIENCE, read_hello(&mut connection)).await??;
    let (read, mut write) = connection.into_split();
    let served = hello.and_then(|hello| serve(&hello, receive(read).boxed()));
    let refusal = served.as_ref().err().cloned().unwrap_or_default();
    write.write_all(&framed(&LaneWelcome { refusal })).await?;
    write.flush().await?;
    match served {
        Ok(answers) => send_all(write, answers).await,
        Err(_) => write.shutdown().await,
    }
}

fn prepare(stream: &TcpStream, silence_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Who opened notices silence by itself; who was asked has this, for a caller that lost its power.
    let interval = silence_max / (1 + KEEP_ALIVE_PROBES);
    let keepalive =
        TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(KEEP_ALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    // The system does not probe while something is not acknowledged, and repeats that for a quarter of an hour.
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(silence_max))?;
    Ok(())
}

fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&(body.len() as u32).to_le_bytes(), &*body].concat()
}

async fn read_message<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<M> {
    let length = stream.read_u32_le().await? as usize;
    if length > GREETING_BYTES_MAX {
        return Err(invalid("the greeting is too long: is this the port of a node's peers?"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    M::decode(&*body).map_err(invalid)
}

/// Who opens a lane, or why it cannot be served.
async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<LaneHello, String>> {
    let mut opening = [0; OPENING.len()];
    stream.read_exact(&mut opening).await?;
    if opening != *OPENING {
        let spoken = OPENING.escape_ascii();
        // What is left unread would take the answer with it when the connection is closed.
        let _ = stream.read(&mut vec![0; GREETING_BYTES_MAX]).await?;
        return Ok(Err(format!("this node opens lanes with \"{spoken}\": is it of another version?")));
    }
    read_message(stream).await.map(Ok)
}

async fn send_all(
    mut write: impl AsyncWrite + Unpin,
    frames: impl Stream<Item = Vec<Frame>>,
) -> io::Result<()> {
    let mut frames = std::pin::pin!(frames);
    while let Some(batch) = frames.next().await {
        write.write_all_buf(&mut Encoded::new(&batch)).await?;
        // What is secured may wait in a buffer until then; for what is not it is nothing.
        write.flush().await?;
    }
    write.shutdown().await
}

/// The frames that arrive. The stream ends with the connection, and when what comes is not a batch.
fn receive(read: impl AsyncRead + Send + Unpin + 'static) -> impl Stream<Item = Vec<Frame>> + Send {
    futures::stream::unfold((read, BytesMut::new()), |(mut read, mut buffer)| async move {
        match next_batch(&mut read, &mut buffer).await {
            Ok(batch) => Some((batch, (read, buffer))),
            Err(error) => {
                ended(Err(error));
                None
            }
        }
    })
}

async fn next_batch(read: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Vec<Frame>> {
    fill(read, buffer, BATCH_HEAD_BYTES).await?;
    let mut head = [0; BATCH_HEAD_BYTES];
    head.copy_from_slice(&buffer.split_to(BATCH_HEAD_BYTES));
    let head = BatchHead::decode(head).map_err(invalid)?;
    fill(read, buffer, head.length_bytes).await?;
    head.frames(buffer.split_to(head.length_bytes).freeze()).map_err(invalid)
}

/// Reads until the buffer holds `length` bytes, and more if more is there.
async fn fill(read: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut, length: usize) -> io::Result<()> {
    while buffer.len() < length {
        buffer.reserve((length - buffer.len()).max(LANE_READ_BYTES));
        if read.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Connections break all the time; what must not happen is worth a word.
fn ended(outcome: io::Result<()>) {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "a lane is broken off")
        }
        Err(error) => tracing::debug!(%error, "a lane ended"),
        Ok(()) => {}
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Less than the patience for a step, and more than half of it.
    const SLOW: Duration = Duration::from_millis(CONNECT_TIMEOUT_MS * 4 / 5);

    /// Greets somebody who is reached and who answers after this time each.
    async fn greeted_over(way: Duration) -> Result<(), TransportError> {
        let (near, mut far) = tokio::io::duplex(GREETING_BYTES_MAX);
        let connecting = async {
            sleep(way).await;
            Ok(near)
        };
        let answering = async {
            sleep(way * 2).await;
            // Who gave up does not listen any more.
            let _ = far.write_all(&framed(&LaneWelcome::default())).await;
        };
        let hello = LaneHello::default();
        let opening = async { greet(in_time(connecting).await?, &hello).await };
        let (greeted, ()) = tokio::join!(opening, answering);
        greeted.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_opens_over_a_slow_way() {
        let began = Instant::now();
        greeted_over(SLOW).await.unwrap();
        assert!(began.elapsed() > PATIENCE, "the way was not slow: {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_reached_in_time_is_silent() {
        let greeted = greeted_over(PATIENCE * 2).await;
        assert!(matches!(greeted, Err(TransportError::Silent)), "{greeted:?}");
    }

    /// The system ends it, at a time that it chooses itself once the limit is over.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_connection_to_a_peer_that_takes_nothing_breaks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_takes_nothing, _) = listener.accept().await.unwrap();
        // The system counts the intervals of signs of life in seconds.
        prepare(&stream, Duration::from_secs(u64::from(1 + KEEP_ALIVE_PROBES))).unwrap();
        let sending = async {
            loop {
                if let Err(error) = stream.write_all(&[0; 64 * 1024]).await {
                    return error;
                }
            }
        };
        let error =
            timeout(Duration::from_secs(60), sending).await.expect("it waits for the peer without end");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
