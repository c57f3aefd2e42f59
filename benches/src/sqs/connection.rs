//! An HTTP/1.1 connection that stays open and has one request under way: as little of a client as there can be, since it shares the
//! processors with the nodes.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::signer::Signer;

pub struct Connection {
    stream: TcpStream,
    signer: Signer,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).unwrap_or_else(|error| panic!("{error}"));
        Self { stream, signer: Signer::new(address), buffer: Vec::with_capacity(64 * 1024) }
    }

    /// Asks and returns the answer, which must be of a request that was done.
    pub async fn ask(&mut self, operation: &str, request: &Value) -> Value {
        let body = request.to_string().into_bytes();
        let mut bytes = self.signer.head(operation, &body).into_bytes();
        bytes.extend_from_slice(&body);
        self.stream.write_all(&bytes).await.unwrap_or_else(|error| panic!("{operation}: {error}"));
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await;
            let read = read.unwrap_or_else(|error| panic!("{operation}: {error}"));
            assert!(read > 0, "{operation}: the node hung up");
            if let Some((head, body)) = whole(&self.buffer) {
                let answer = String::from_utf8_lossy(body);
                assert!(head.starts_with(b"HTTP/1.1 200 "), "{operation}: {answer}");
                return serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{operation}: {error}"));
            }
        }
    }
}

/// Head and body of an answer, when all of it is there.
fn whole(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let len = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1;
    let body = bytes.get(end + 4..end + 4 + len.trim().parse::<usize>().ok()?)?;
    Some((&bytes[..end], body))
}
