//! Clients that ask, and do not take what they asked for; and those that do.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;

use super::*;
use crate::answer::AnswerRoom;

/// Longer than any client has for what is asked for here.
const WITHOUT_END: Duration = Duration::from_secs(600);
const LONG_BYTES: usize = 1024 * 1024;
/// More than a connection of these tests has room for.
const SHORT_BYTES: usize = 8 * 1024;
const CONNECTION_BYTES: usize = 1024;

/// Serves answers of so many bytes, and ends with the connection.
fn serve_answers(connection: DuplexStream, version: Version, bytes: usize) -> JoinHandle<()> {
    let deadlines = Arc::new(Deadlines::default());
    let of_answers = Arc::clone(&deadlines);
    let room = Arc::new(AnswerRoom::new());
    let answer = move |_: Request<Incoming>| {
        let (room, deadlines) = (room.clone(), of_answers.clone());
        async move {
            let answer = room.admit(Bytes::from(vec![b'x'; bytes]), &deadlines).await;
            Response::new(answer.unwrap())
        }
    };
    tokio::spawn(async move {
        let (_stop, stopped) = watch::channel(false);
        converse(connection, version, answer, &deadlines, stopped).await;
    })
}

fn request() -> Request<Empty<Bytes>> {
    Request::post("http://a/").header("host", "a").body(Empty::new()).unwrap()
}

/// It answers signs of life: those are no reason to keep it.
#[tokio::test(start_paused = true)]
async fn a_client_of_http2_that_opens_no_window_is_let_go() {
    let (near, far) = tokio::io::duplex(CONNECTION_BYTES);
    let serving = serve_answers(near, Version::HTTP_2, LONG_BYTES);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0_u32);
    let (mut sender, client) = builder.handshake(TokioIo::new(far)).await.unwrap();
    tokio::spawn(client);
    let response = sender.send_request(request()).await.unwrap();
    let body = timeout(WITHOUT_END, response.into_body().collect()).await;
    assert!(body.expect("its answer is kept without end").is_err());
    serving.await.unwrap();
}

/// As one can that has agreed on HTTP/2 in the handshake of TLS.
#[tokio::test(start_paused = true)]
async fn a_client_of_http2_that_says_nothing_is_let_go() {
    for said in ["", "PRI * HTTP/2.0\r\n"] {
        let (near, mut far) = tokio::io::duplex(CONNECTION_BYTES);
        let serving = serve_answers(near, Version::HTTP_2, SHORT_BYTES);
        far.write_all(said.as_bytes()).await.unwrap();
        timeout(WITHOUT_END, serving).await.expect("its connection is kept without end").unwrap();
    }
}

/// Whatever the length of its answer.
#[tokio::test(start_paused = true)]
async fn a_client_of_http1_that_reads_nothing_is_let_go() {
    for bytes in [SHORT_BYTES, LONG_BYTES] {
        let (near, mut far) = tokio::io::duplex(CONNECTION_BYTES);
        let serving = serve_answers(near, Version::HTTP_11, bytes);
        far.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        timeout(WITHOUT_END, serving).await.expect("its connection is kept without end").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn answers_arrive_whole_in_both_versions() {
    for bytes in [0, SHORT_BYTES, LONG_BYTES] {
        let (near, far) = tokio::io::duplex(CONNECTION_BYTES);
        let _serving = serve_answers(near, Version::HTTP_11, bytes);
        let (mut sender, client) = http1::handshake(TokioIo::new(far)).await.unwrap();
        tokio::spawn(client);
        let response = sender.send_request(request()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), vec![b'x'; bytes]);

        let (near, far) = tokio::io::duplex(CONNECTION_BYTES);
        let _serving = serve_answers(near, Version::HTTP_2, bytes);
        let (mut sender, client) = http2::handshake(TokioExecutor::new(), TokioIo::new(far)).await.unwrap();
        tokio::spawn(client);
        let response = sender.send_request(request()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), vec![b'x'; bytes]);
    }
}
