//! What no SDK sends to the listener for SQS clients: HTTP/2, requests that are wrong, and clients that stop half-way.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold::processes::Processes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than anything takes that works, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(dir: &Path) -> (Processes, String) {
    let settings = ["sqs.listen=127.0.0.1:0", "sqs.insecure=true", "sqs.pacing=false"];
    let program = Path::new(env!("CARGO_BIN_EXE_leasehold"));
    let processes = Processes::start_with(program, dir, 2, &settings).await.unwrap();
    let address = processes.nodes[0].sqs_address.clone().unwrap();
    (processes, address)
}

/// Sends bytes on a connection of their own and returns what comes until the node closes it.
async fn exchange(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The node may answer before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(target: &str, body: &str) -> Vec<u8> {
    let target = if target.is_empty() { String::new() } else { format!("x-amz-target: {target}\r\n") };
    format!(
        "POST / HTTP/1.1\r\nhost: example:1\r\ncontent-type: application/x-amz-json-1.0\r\n{target}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_in_the_words_of_the_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    let cases = [
        (post("AmazonSQS.ListQueues", "{"), 400, "SerializationException"),
        (post("AmazonSQS.ListQueues", r#"{"MaxResults":"many"}"#), 400, "SerializationException"),
        (post("AmazonSQS.Fly", "{}"), 400, "UnknownOperationException"),
        (post("DynamoDB.ListTables", "{}"), 400, "MissingAction"),
        (post("", "{}"), 400, "MissingAction"),
        (post("AmazonSQS.SendMessage", "{\"MessageBody\":\"x\"}"), 400, "MissingParameter"),
        (
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec(),
            400,
            "<Code>MissingAction</Code>",
        ),
    ];
    for (request, status, expected) in cases {
        let answer = exchange(&address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(expected), "{answer}");
        assert!(answer.contains("x-amzn-requestid: "), "{answer}");
    }
    // A form stays a form where its operation is named in the way of JSON too.
    let form = b"POST / HTTP/1.1\r\nhost: a\r\nx-amz-target: AmazonSQSv20121105.ListQueues\r\nconnection: close\r\n\
        content-type: application/x-www-form-urlencoded;charset=utf-8\r\ncontent-length: 17\r\n\r\nAction=ListQueues";
    let answer = exchange(&address, form).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("<ListQueuesResponse"), "{answer}");
    let large = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n";
    assert!(exchange(&address, large).await.starts_with("HTTP/1.1 413 "));
    assert!(!exchange(&address, b"\x16\x03\x01\x00\xff\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    // A queue made through a bare host is named with the host that the client wrote.
    let made = exchange(&address, &post("AmazonSQS.CreateQueue", r#"{"QueueName":"q"}"#)).await;
    assert!(made.contains("http://example:1/000000000000/q"), "{made}");
    processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_a_connection_of_http2() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    let stream = TokioIo::new(TcpStream::connect(&address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let ask = |operation: &str, body: Value| {
        let request = Request::post(format!("http://{address}/"))
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", format!("AmazonSQS.{operation}"))
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let mut sender = sender.clone();
        async move { json_of(sender.send_request(request).await.unwrap()).await }
    };
    let (_, made) = ask("CreateQueue", json!({ "QueueName": "q" })).await;
    let url = made["QueueUrl"].clone();
    assert_eq!(url, format!("http://{address}/000000000000/q"));
    // The poll waits while the sends beside it are answered. A machine that stands still for a second takes the leadership, or has the
    // node give back what it has granted: then it is asked again.
    let is_sent = AtomicBool::new(false);
    let poll = async {
        let end = Instant::now() + PATIENCE;
        loop {
            let poll = json!({ "QueueUrl": url, "WaitTimeSeconds": 20 });
            let (status, received) = ask("ReceiveMessage", poll).await;
            let is_given_back =
                status == 200 && received["Messages"].is_null() && is_sent.load(Ordering::Relaxed);
            if !(status == 503 || is_given_back) || Instant::now() >= end {
                break (status, received);
            }
        }
    };
    let sends = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        is_sent.store(true, Ordering::Relaxed);
        for number in 0..5 {
            let (status, sent) =
                ask("SendMessage", json!({ "QueueUrl": url, "MessageBody": format!("{number}") })).await;
            assert_eq!(status, 200, "{sent}");
        }
    };
    let ((status, received), ()) = tokio::join!(poll, sends);
    assert_eq!((status, received["Messages"].as_array().map(Vec::len)), (200, Some(1)), "{received}");
    processes.kill_all().await.unwrap();
}

/// Before it speaks HTTP/2 the node waits for the whole preface.
#[tokio::test(flavor = "multi_thread")]
async fn a_preface_may_come_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let preface_and_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for piece in preface_and_settings.chunks(11) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the node begins with its settings: {frame:?}");
    processes.kill_all().await.unwrap();
}

/// Bodies that were promised and do not come keep no room from others.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_takes_room_as_it_comes_and_may_come_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    exchange(&address, &post("AmazonSQS.CreateQueue", r#"{"QueueName":"q"}"#)).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\nx-amz-target: AmazonSQS.SendMessage\r\nconnection: close\r\n";
    let mut silent = Vec::new();
    for length in ["transfer-encoding: chunked", "content-length: 8388608"].repeat(8) {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("{head}{length}\r\n\r\n").as_bytes()).await.unwrap();
        silent.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let body = json!({ "QueueUrl": "q", "MessageBody": "x".repeat(20 * 1024) }).to_string();
    let chunks = body.bytes().map(|byte| format!("1\r\n{}\r\n", char::from(byte))).collect::<String>();
    let in_pieces = format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into_bytes();
    let mut digests = Vec::new();
    for request in [post("AmazonSQS.SendMessage", &body), in_pieces] {
        let answer = exchange(&address, &request);
        let answer = tokio::time::timeout(Duration::from_secs(15), answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (_, sent) = answer.split_once("\r\n\r\n").unwrap();
        digests.push(serde_json::from_str::<Value>(sent).unwrap()["MD5OfMessageBody"].clone());
    }
    assert!(digests[0].is_string() && digests[0] == digests[1], "{digests:?}");
    drop(silent);
    processes.kill_all().await.unwrap();
}

async fn json_of(response: Response<hyper::body::Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_made_again_at_once_where_there_are_no_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    let ask = async |operation: &str, body: &str| {
        exchange(&address, &post(&format!("AmazonSQS.{operation}"), body)).await
    };
    for _ in 0..2 {
        let made = ask("CreateQueue", r#"{"QueueName":"q"}"#).await;
        assert!(made.starts_with("HTTP/1.1 200 "), "{made}");
        for operation in ["PurgeQueue", "PurgeQueue", "DeleteQueue"] {
            let done = ask(operation, r#"{"QueueUrl":"q"}"#).await;
            assert!(done.starts_with("HTTP/1.1 200 "), "{operation}: {done}");
        }
    }
    processes.kill_all().await.unwrap();
}

/// A node that stops lets those go who wait for messages, with an empty answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_lets_pollers_go() {
    let dir = tempfile::tempdir().unwrap();
    let (processes, address) = start(dir.path()).await;
    exchange(&address, &post("AmazonSQS.CreateQueue", r#"{"QueueName":"q"}"#)).await;
    let poll = post("AmazonSQS.ReceiveMessage", r#"{"QueueUrl":"q","WaitTimeSeconds":20}"#);
    let polling = tokio::spawn(async move { exchange(&address, &poll).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = Instant::now();
    let pid = processes.pid(0).unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let answer = polling.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{}"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(15), "it waited until the end");
    processes.kill_all().await.unwrap();
}
