//! Kills the node that leads most, and measures how long its partitions were away.

use std::time::{Duration, Instant};

use leasehold::processes::Processes;
use leasehold_client::v1::QueueSettings;
use leasehold_client::{Client, NewMessage, ReceiveOptions};
use tokio::time::sleep;

use super::QUEUE;
use crate::output::Failure;

const PATIENCE: Duration = Duration::from_secs(30);
const PROBES_MAX: u32 = 200;
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// What was killed, and how long it was missed.
#[derive(Debug, Clone)]
pub struct Failover {
    pub node: usize,
    pub node_name: String,
    pub killed: Instant,
    /// From the kill to the first send and the first receive that were done, by partition that the node led.
    pub partitions: Vec<(u32, Duration)>,
}

impl Failover {
    /// Of the partition that was away longest.
    pub fn longest(&self) -> Duration {
        self.partitions.iter().map(|(_, away)| *away).max().unwrap_or_default()
    }
}

/// Queues of one shard each, at least one on every partition.
pub async fn make_probes(client: &Client, partitions: u32) -> Result<Vec<(String, u32)>, Failure> {
    let mut probes: Vec<(String, u32)> = Vec::new();
    // A queue goes where its name is hashed to: some partitions take several tries.
    for number in 0..PROBES_MAX {
        let name = format!("probe-{number}");
        client.create_queue(&name, QueueSettings::default(), 1).await?;
        let routes = client.routes(&name).await?;
        let shard = routes.shards.first().map(|shard| shard.partition);
        let is_new = |partition: &u32| probes.iter().all(|(_, known)| known != partition);
        probes.extend(shard.filter(is_new).map(|partition| (name, partition)));
        if probes.len() == partitions as usize {
            return Ok(probes);
        }
    }
    Err(Failure::new(format!("{PROBES_MAX} queues have reached {} of {partitions} partitions", probes.len())))
}

/// The node that leads most shards of the queue, and the partitions it leads.
pub async fn busiest(processes: &Processes, client: &Client) -> Result<(usize, Vec<u32>), Failure> {
    let routes = client.routes(QUEUE).await?;
    let leads = |at: usize| {
        let address = &processes.nodes[at].client_address;
        let led = routes.shards.iter().filter(|shard| shard.leader_address == *address);
        led.map(|shard| shard.partition).collect::<Vec<_>>()
    };
    let all = (0..processes.nodes.len()).map(|at| (at, leads(at)));
    let busiest = all.max_by_key(|(_, led)| led.len()).filter(|(_, led)| !led.is_empty());
    busiest.ok_or_else(|| Failure::new("no node leads a partition of the queue"))
}

/// Kills the busiest node and waits until everything that it led is served again.
pub async fn kill_busiest(processes: &mut Processes, probes: &[(String, u32)]) -> Result<Failover, Failure> {
    let (at, led) = busiest(processes, &processes.client()?).await?;
    let survivors = processes.endpoints().into_iter().enumerate().filter(|(other, _)| *other != at);
    let client = Client::connect(survivors.map(|(_, endpoint)| endpoint))?;
    // Connections are open before the clock runs.
    client.cluster_status().await?;
    let of_led = probes.iter().filter(|(_, partition)| led.contains(partition)).collect::<Vec<_>>();
    if of_led.len() != led.len() {
        return Err(Failure::new("a partition of the queue has no probe: its failover cannot be measured"));
    }
    // From before the signal: the others may notice before the process is reaped.
    let killed = Instant::now();
    processes.kill(at).await?;
    let waits = of_led.into_iter().map(|(queue, partition)| {
        let client = client.clone();
        async move { Ok::<_, Failure>((*partition, wait_until_served(&client, queue, killed).await?)) }
    });
    let partitions = futures::future::try_join_all(waits).await?;
    Ok(Failover { node: at, killed, node_name: processes.nodes[at].name.clone(), partitions })
}

/// Until a message that was sent after the kill is received. Every try sends one of its own: one whose receive had no answer may
/// be leased to nobody.
async fn wait_until_served(client: &Client, queue: &str, since: Instant) -> Result<Duration, Failure> {
    loop {
        let missing = match serve_once(client, queue).await {
            Ok(true) => return Ok(since.elapsed()),
            Ok(false) => "what was sent was not received".to_owned(),
            Err(error) => error.to_string(),
        };
        if since.elapsed() >= PATIENCE {
            return Err(Failure::new(format!("{queue} stayed away: {missing}")));
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn serve_once(client: &Client, queue: &str) -> Result<bool, leasehold_client::Error> {
    for sent in client.send(queue, vec![NewMessage::new("probe")]).await? {
        sent?;
    }
    let options = ReceiveOptions { messages_max: 1, ..ReceiveOptions::default() };
    Ok(!client.receive(queue, options).await?.is_empty())
}
