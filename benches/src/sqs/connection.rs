//! An HTTP/1.1 connection that stays open and has one request under way: as little of a client as there can be, since it shares the
//! processors with the nodes.

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::signer::Signer;

const BUFFER_BYTES: usize = 64 * 1024;

pub struct Connection {
    stream: TcpStream,
    signer: Signer,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).unwrap_or_else(|error| panic!("{error}"));
        let (request, answer) = (Vec::with_capacity(BUFFER_BYTES), Vec::with_capacity(BUFFER_BYTES));
        Self { stream, signer: Signer::new(address), request, answer }
    }

    /// Asks and returns what is read of the answer, which must be of a request that was done.
    pub async fn ask<'a, A: Deserialize<'a>>(&'a mut self, operation: &str, body: &[u8]) -> A {
        self.request.clear();
        self.request.extend_from_slice(self.signer.head(operation, body).as_bytes());
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await.unwrap_or_else(|error| panic!("{operation}: {error}"));
        self.answer.clear();
        let body = loop {
            let read = self.stream.read_buf(&mut self.answer).await;
            let read = read.unwrap_or_else(|error| panic!("{operation}: {error}"));
            assert!(read > 0, "{operation}: the node hung up");
            if let Some(body) = body_when_whole(&self.answer) {
                break body;
            }
        };
        let body = &self.answer[body];
        let said = || String::from_utf8_lossy(body);
        assert!(self.answer.starts_with(b"HTTP/1.1 200 "), "{operation}: {}", said());
        serde_json::from_slice(body).unwrap_or_else(|error| panic!("{operation}: {error}: {}", said()))
    }
}

/// Where the body of an answer is, when all of it is there.
fn body_when_whole(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let begin = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..begin]).ok()?;
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let len = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1;
    let end = begin + len.trim().parse::<usize>().ok()?;
    (end <= bytes.len()).then_some(begin..end)
}
