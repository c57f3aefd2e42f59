//! A node with TLS as its users meet it: the command, SQS clients, and who asks after its health.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold_tls::testing::TestAuthority;
use leasehold_tls::{Authorities, HTTP1, HTTP2, TlsStream, connect, connector, protocol};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than anything takes that works, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// How a record of TLS begins that says what is wrong.
const ALERT: u8 = 0x15;

/// A cluster of one node; it ends with this value.
struct Secured {
    nodes: TestAuthority,
    dir: TempDir,
    child: Child,
    told: Value,
}

fn leasehold() -> Command {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

impl Secured {
    fn start() -> Self {
        let (nodes, clients) = (TestAuthority::default(), TestAuthority::default());
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| write(dir.path(), name, text).display().to_string();
        let (certificate, key) = nodes.signs(&["127.0.0.1"]);
        let (of_client, key_of_client) = clients.signs(&["client"]);
        file("client.pem", &of_client);
        file("client.key", &key_of_client);
        let settings = [
            ("name", "a".to_owned()),
            ("data_dir", dir.path().join("data").display().to_string()),
            ("client_listen", "127.0.0.1:0".to_owned()),
            ("peer_listen", "127.0.0.1:0".to_owned()),
            ("admin_listen", "127.0.0.1:0".to_owned()),
            ("sqs.listen", "127.0.0.1:0".to_owned()),
            ("sqs.insecure", "true".to_owned()),
            ("logging.level", "error".to_owned()),
            ("tls.certificate_file", file("node.pem", &certificate)),
            ("tls.key_file", file("node.key", &key)),
            ("tls.authority_file", file("nodes.pem", nodes.pem())),
            ("tls.client_authority_file", file("clients.pem", clients.pem())),
        ];
        let mut command = leasehold();
        command.args(["server", "--json"]);
        for (key, value) in settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told = serde_json::from_str(&line).unwrap();
        Self { nodes, dir, child, told }
    }

    fn address(&self, listener: &str) -> &str {
        self.told[listener].as_str().unwrap()
    }

    /// With the client's certificate, unless these options say otherwise.
    fn run(&self, options: &[(&str, &Path)], arguments: &[&str]) -> Output {
        let mut command = leasehold();
        command.args(arguments).args(["--endpoint", self.address("client")]);
        let usual = [
            ("LEASEHOLD_CLIENT_TLS_AUTHORITY_FILE", self.dir.path().join("nodes.pem")),
            ("LEASEHOLD_CLIENT_TLS_CERTIFICATE_FILE", self.dir.path().join("client.pem")),
            ("LEASEHOLD_CLIENT_TLS_KEY_FILE", self.dir.path().join("client.key")),
        ];
        command.envs(usual);
        for (option, path) in options {
            command.arg(option).arg(path);
        }
        command.output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(&[], arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What is received and acknowledged. A node that was held up for a second gives back what it has granted, and says at once that
    /// there is nothing.
    fn received(&self) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.done(&["receive", "jobs", "--wait", "10s", "--ack"]);
            if !told.is_empty() || Instant::now() >= end {
                return told;
            }
        }
    }

    /// A connection of somebody who shows nothing, to a listener that offers these protocols.
    async fn connect(&self, listener: &str, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let authorities = Authorities::from_pem(self.nodes.pem().as_bytes()).unwrap();
        let connector = connector(&authorities, None, protocols).unwrap();
        let stream = TcpStream::connect(self.address(listener)).await.unwrap();
        connect(&connector, "127.0.0.1", stream).await.unwrap()
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_command_shows_a_certificate_and_asks_for_one() {
    let node = Secured::start();
    node.done(&["cluster", "init", "--node", &format!("a={}", node.address("peer"))]);
    node.done(&["queue", "create", "jobs"]);
    node.done(&["send", "jobs", "secured"]);
    assert!(node.received().contains("secured"));
    assert!(node.done(&["cluster", "verify"]).contains("are equal on all their nodes"));

    node.done(&["send", "jobs", "kept"]);
    let backup = node.dir.path().join("backup").display().to_string();
    node.done(&["backup", "take", &backup]);
    let other = Secured::start();
    other.done(&["cluster", "init", "--restore", &backup, "--node", &format!("a={}", other.address("peer"))]);
    assert!(other.received().contains("kept"));

    let stranger = TestAuthority::default();
    let (certificate, key) = stranger.signs(&["client"]);
    let certificate = write(node.dir.path(), "stranger.pem", &certificate);
    let key = write(node.dir.path(), "stranger.key", &key);
    let authority = write(node.dir.path(), "strangers.pem", stranger.pem());
    let list = ["queue", "list"];
    let unknown: [(&str, &Path); 2] = [("--tls-certificate-file", &certificate), ("--tls-key-file", &key)];
    let output = node.run(&unknown, &list);
    assert!(!output.status.success(), "a certificate of somebody else");
    let output = node.run(&[("--tls-authority-file", &authority)], &list);
    assert!(
        !output.status.success() && text(&output.stderr).contains("certificate"),
        "{}",
        text(&output.stderr)
    );
    let mixed = node.run(&[("--tls-key-file", &key)], &list);
    assert!(text(&mixed.stderr).contains("cannot be used together"), "{}", text(&mixed.stderr));
    assert_eq!(mixed.status.code(), Some(1));
    let missing = node.run(&[("--tls-key-file", &node.dir.path().join("missing"))], &list);
    assert!(text(&missing.stderr).contains("missing: No such file"), "{}", text(&missing.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn sqs_clients_and_probes_are_served_over_tls() {
    let node = Secured::start();
    node.done(&["cluster", "init", "--node", &format!("a={}", node.address("peer"))]);
    let body = r#"{"QueueName":"q"}"#;
    let head = |version: &str| {
        format!(
            "POST / {version}\r\nhost: example:1\r\ncontent-type: application/x-amz-json-1.0\r\n\
             x-amz-target: AmazonSQS.CreateQueue\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut stream = node.connect("sqs", &[HTTP1]).await;
    stream.write_all(head("HTTP/1.1").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(text(&answer).contains("https://example:1/000000000000/q"), "{}", text(&answer));

    let stream = node.connect("sqs", &[HTTP2, HTTP1]).await;
    assert_eq!(protocol(&stream), Some(HTTP2));
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("https://example:1/")
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-target", "AmazonSQS.ListQueues")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    let answer = text(&answer.into_body().collect().await.unwrap().to_bytes());
    assert!(answer.contains("https://example:1/000000000000/q"), "{answer}");
    connection.abort();

    let mut stream = node.connect("admin", &[HTTP1]).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(text(&answer).starts_with("HTTP/1.1 200 "), "{}", text(&answer));
    // Who speaks in the clear what a listener would understand hears an alert of TLS at most.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let lane = b"LEASEHOLD LANE 0\nwhatever it says then";
    let probe = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    let spoken: [(&str, &[u8]); 5] =
        [("client", preface), ("peer", preface), ("peer", lane), ("sqs", preface), ("admin", probe)];
    for (listener, said) in spoken {
        let mut stream = TcpStream::connect(node.address(listener)).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.first().is_none_or(|first| *first == ALERT), "{listener}: {}", text(&answer));
    }
}
