//! Real SDKs of Amazon SQS against three real nodes: boto3 as it is today, which speaks JSON, and the last one that spoke the Query
//! protocol; the SDK for JavaScript; and Celery. The checks themselves are in `tests/sqs/`.
//!
//! The SDKs are installed into environments of their own below the target folder, once. Where that is impossible the tests say why
//! and check nothing, but with `CI=true` they fail.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that fails says so by a panic")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{NewMessage, ReceiveOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const KEY: &str = "AKLEASEHOLD";
const SECRET: &str = "a/secret+of=tests";
const SDK_OF_JSON: &[&str] = &["boto3==1.44.8"];
const CELERY: &[&str] = &["celery[sqs]==5.7.0", "boto3==1.44.8"];
const SDK_OF_JAVASCRIPT: &[&str] = &["@aws-sdk/client-sqs@3.960.0", "@smithy/node-http-handler@4.4.7"];
const SDK_OF_QUERY: &[&str] = &["boto3==1.28.80", "botocore==1.31.80"];

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_leasehold"))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqs").join(name)
}

/// A folder with these packages, filled once; nothing where that cannot be.
fn installed(
    name: &str,
    packages: &[&str],
    install: impl Fn(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sdk-{name}"));
    let complete = dir.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|installed| installed == packages.join(" ")) {
        return Some(dir);
    }
    match install(&dir) {
        Ok(()) => {
            std::fs::write(complete, packages.join(" ")).unwrap();
            Some(dir)
        }
        Err(reason) if std::env::var("CI").is_ok_and(|value| value == "true") => {
            panic!("{packages:?}: {reason}")
        }
        Err(reason) => {
            eprintln!("skipped: {packages:?} cannot be installed here: {reason}");
            None
        }
    }
}

fn run(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// The Python of an environment that has these packages.
fn python_with(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let python = |dir: &Path| dir.join("bin/python");
    let install = |dir: &Path| {
        run(Path::new("python3"), &["-m", "venv", dir.to_str().unwrap()])?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(&python(dir), &[&pip[..], packages].concat())
    };
    installed(name, packages, install).map(|dir| python(&dir))
}

/// The folder in which Node.js finds these packages.
fn javascript_with(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let install = |dir: &Path| {
        let npm =
            ["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", dir.to_str().unwrap()];
        run(Path::new("npm"), &[&npm[..], packages].concat())
    };
    installed(name, packages, install)
}

async fn start(dir: &Path) -> Processes {
    let keys = format!("sqs.access_keys=OTHERKEY:other,{KEY}:{SECRET}");
    let settings = ["sqs.listen=127.0.0.1:0", keys.as_str()];
    Processes::start_with(program(), dir, 4, &settings).await.unwrap()
}

fn endpoints(processes: &Processes) -> String {
    let addresses =
        processes.nodes.iter().map(|node| format!("http://{}", node.sqs_address.as_ref().unwrap()));
    addresses.collect::<Vec<_>>().join(",")
}

/// Runs all checks through one SDK, with queues and messages that came by gRPC beside them.
async fn conforms(protocol: &str, packages: &[&str]) {
    let Some(python) = python_with(protocol, packages) else { return };
    let dir = tempfile::tempdir().unwrap();
    let processes = start(dir.path()).await;
    let client = processes.client().unwrap();
    let limited = QueueSettings { in_flight_max: Some(1), ..QueueSettings::default() };
    client.create_queue("native-one-in-flight", limited, 1).await.unwrap();
    let short = QueueSettings { length_max: Some(1), ..QueueSettings::default() };
    client.create_queue("native-of-one", short, 1).await.unwrap();
    client.create_queue("native", QueueSettings::default(), 4).await.unwrap();
    let message = NewMessage::new(vec![0xff, 0x00]).attribute("plain", "String", "by gRPC");
    client.send("native", vec![message]).await.unwrap();
    let output = Command::new(python)
        .arg(script("conformance.py"))
        .args([protocol, &endpoints(&processes), KEY, SECRET])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{failed}");
    let options = ReceiveOptions { wait: Duration::from_secs(10), ..ReceiveOptions::default() };
    let got = client.receive("native", options).await.unwrap();
    assert_eq!(got.len(), 1);
    assert_eq!(&got[0].body[..], "from SQS: ü".as_bytes());
    let attribute = got[0].attributes.iter().find(|attribute| attribute.name == "number").unwrap();
    assert_eq!((attribute.r#type.as_str(), &attribute.value[..]), ("Number.int", &b"7"[..]));
    let header = got[0].attributes.iter().find(|attribute| attribute.name == "AWS.TraceHeader").unwrap();
    assert_eq!(&header.value[..], b"Root=1");
    processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_of_today_finds_every_operation_and_error_of_sqs() {
    conforms("json", SDK_OF_JSON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdk_of_the_query_protocol_finds_every_operation_and_error_of_sqs() {
    conforms("query", SDK_OF_QUERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_for_javascript_works_over_both_versions_of_http() {
    let Some(packages) = javascript_with("javascript", SDK_OF_JAVASCRIPT) else { return };
    let dir = tempfile::tempdir().unwrap();
    let processes = start(dir.path()).await;
    let mut command = Command::new("node");
    command.current_dir(packages).arg(script("javascript.mjs")).args([&endpoints(&processes), KEY, SECRET]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("all passed\n"), "{said}{failed}");
    processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_an_sdk_sent_is_lost_when_a_node_is_killed() {
    let Some(python) = python_with("json", SDK_OF_JSON) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut processes = start(dir.path()).await;
    let mut command = Command::new(python);
    command.arg(script("failover.py")).args([&endpoints(&processes), KEY, SECRET]);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("go"));
    processes.kill(0).await.unwrap();
    let told = lines.next_line().await.unwrap().unwrap_or_default();
    assert!(child.wait().await.unwrap().success(), "{told}");
    assert!(told.starts_with("sent 600, lost 0, invented 0"), "{told}");
    eprintln!("{told}");
    processes.restart(0).await.unwrap();
    processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn celery_works_and_gives_a_killed_workers_task_to_the_next() {
    let Some(python) = python_with("celery", CELERY) else { return };
    let dir = tempfile::tempdir().unwrap();
    let processes = start(dir.path()).await;
    let endpoint = format!("http://{}", processes.nodes[0].sqs_address.as_ref().unwrap());
    let mut command = Command::new(python);
    command.arg(script("celery_workers.py")).args([endpoint.as_str(), KEY, SECRET]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("all done once\n"), "{said}{failed}");
    processes.kill_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_without_keys_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("data_dir={}", dir.path().display());
    let settings =
        ["name=a", &data, "client_listen=127.0.0.1:0", "peer_listen=127.0.0.1:0", "sqs.listen=127.0.0.1:0"];
    let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
    let output = Command::new(program()).arg("server").args(settings).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sqs.insecure"));
}
