//! What the examples share: a cluster to talk to, real events to talk about, and a way to end.

pub mod cache_warmer;
pub mod clickstream;
pub mod email_once;
pub mod fifo_orders;

use std::error::Error;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use leasehold_client::{Client, NewMessage, QueueSettings};
use leasehold_cluster_tests::{Plan, TestCluster};

/// Any error ends an example.
pub type Failed = Box<dyn Error + Send + Sync>;

/// 48,000 departures from New York in 2013, one a line.
const FLIGHTS: &[u8] = include_bytes!("../data/flights.csv.gz");

/// What every example takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Cluster {
    /// A node of a cluster to use, such as that of `leasehold dev`; without it, a cluster starts in this process.
    #[arg(long)]
    endpoint: Option<String>,
}

/// A client, and the cluster behind it if it is our own.
pub struct Connection {
    pub client: Client,
    own: Option<TestCluster>,
}

impl Cluster {
    /// Connects.
    ///
    /// # Errors
    /// When the endpoint is malformed.
    pub async fn connect(&self) -> Result<Connection, Failed> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(Connection { client: Client::connect([endpoint.clone()])?, own: None });
        }
        let cluster = TestCluster::start(Plan::default()).await;
        Ok(Connection { client: cluster.client(), own: Some(cluster) })
    }
}

impl Connection {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// When the cluster cannot be reached, or has a queue of that name with other settings.
    pub async fn fresh_queue(&self, name: &str, settings: QueueSettings, shards: u32) -> Result<(), Failed> {
        if !self.client.create_queue(name, settings, shards).await? {
            self.client.purge_queue(name).await?;
        }
        Ok(())
    }

    /// Sends messages, each of which has to arrive.
    ///
    /// # Errors
    /// The first that did not.
    pub async fn send(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = NewMessage>,
    ) -> Result<(), Failed> {
        let producer = self.client.queue(queue).producer().start();
        for sent in producer.send_all(messages).await {
            sent?;
        }
        Ok(())
    }

    /// Ends the cluster if it is our own.
    pub async fn end(self) {
        if let Some(own) = self.own {
            own.end().await;
        }
    }
}

/// The lines of the file of flights, without its heading.
///
/// # Errors
/// When the file is damaged.
pub fn flights() -> io::Result<Vec<String>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(FLIGHTS).read_to_string(&mut text)?;
    Ok(text.lines().skip(1).map(str::to_owned).collect())
}

/// Says a line. That nobody listens does not matter to an example.
pub fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Ends a program by what became of it.
#[must_use]
pub fn exit(result: Result<(), Failed>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
