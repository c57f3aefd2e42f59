//! A cluster of real processes, on loopback unless it is told otherwise, ended by the ids they were started with.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::future::try_join_all;
use leasehold_client::Client;
use leasehold_client::v1::InitNode;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How many nodes a cluster of processes has, unless it is told otherwise.
pub const NODES: usize = 3;
const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Why the processes do not do what they shall.
#[derive(Debug)]
pub struct ProcessError(pub String);

impl From<std::io::Error> for ProcessError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<leasehold_client::Error> for ProcessError {
    fn from(error: leasehold_client::Error) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for ProcessError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for ProcessError {}

/// Where a node's process runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address that it listens on.
    pub host: IpAddr,
    /// A command that turns into the program given after it, as `nsenter` does, with its own arguments; empty for none. The
    /// process keeps its id.
    pub launcher: Vec<OsString>,
}

impl Default for Place {
    fn default() -> Self {
        Self { host: Ipv4Addr::LOCALHOST.into(), launcher: Vec::new() }
    }
}

impl Place {
    fn command(&self, program: &Path) -> Command {
        match self.launcher.split_first() {
            None => Command::new(program),
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(program);
                command
            }
        }
    }
}

/// What a node's process is started as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    pub program: PathBuf,
    /// Over the defaults, each as `key=value`, at every start.
    pub settings: Vec<String>,
}

impl Build {
    pub fn new(program: &Path, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { program: program.to_owned(), settings }
    }
}

/// One node's process.
pub struct NodeProcess {
    pub name: String,
    pub client_address: String,
    pub peer_address: String,
    /// Where SQS clients reach it, if they do.
    pub sqs_address: Option<String>,
    pub build: Build,
    place: Place,
    child: Child,
}

/// The nodes of a cluster; they end with this value.
pub struct Processes {
    dir: PathBuf,
    pub nodes: Vec<NodeProcess>,
}

impl Processes {
    /// Starts nodes of a `leasehold` program on loopback and founds their cluster.
    ///
    /// # Errors
    /// When a process does not start, or the cluster is not ready in time.
    pub async fn start(program: &Path, dir: &Path, partitions: u32) -> Result<Self, ProcessError> {
        Self::start_with(program, dir, partitions, &[]).await
    }

    /// As [`Processes::start`], with settings over the defaults, each as `key=value`.
    ///
    /// # Errors
    /// As [`Processes::start`].
    pub async fn start_with(
        program: &Path,
        dir: &Path,
        partitions: u32,
        settings: &[&str],
    ) -> Result<Self, ProcessError> {
        let places = vec![Place::default(); NODES];
        Self::start_all(&Build::new(program, settings), dir, partitions, NODES as u32, places).await
    }

    /// As [`Processes::start`], a node of a build in each place; every partition has a replica on each.
    ///
    /// # Errors
    /// As [`Processes::start`].
    pub async fn start_in(
        build: &Build,
        dir: &Path,
        partitions: u32,
        places: Vec<Place>,
    ) -> Result<Self, ProcessError> {
        let replication = places.len() as u32;
        Self::start_all(build, dir, partitions, replication, places).await
    }

    /// As [`Processes::start_with`], with so many nodes; every partition has three replicas, or one on each of fewer nodes.
    ///
    /// # Errors
    /// As [`Processes::start`].
    pub async fn start_sized(
        program: &Path,
        dir: &Path,
        partitions: u32,
        nodes: usize,
        settings: &[&str],
    ) -> Result<Self, ProcessError> {
        let replication = nodes.min(NODES) as u32;
        let places = vec![Place::default(); nodes];
        Self::start_all(&Build::new(program, settings), dir, partitions, replication, places).await
    }

    async fn start_all(
        build: &Build,
        dir: &Path,
        partitions: u32,
        replication: u32,
        places: Vec<Place>,
    ) -> Result<Self, ProcessError> {
        let mut nodes = Vec::new();
        for (at, place) in places.into_iter().enumerate() {
            let anywhere = SocketAddr::new(place.host, 0).to_string();
            let name = format!("n{}", at + 1);
            nodes.push(NodeProcess::start(build, dir, &name, place, [&anywhere, &anywhere], &[]).await?);
        }
        let processes = Self { dir: dir.to_owned(), nodes };
        let members = processes
            .nodes
            .iter()
            .map(|node| InitNode { name: node.name.clone(), peer_address: node.peer_address.clone() });
        let client = processes.client()?;
        client.init_cluster(members.collect(), partitions, replication).await?;
        let ready = async {
            loop {
                let status = client.cluster_status().await;
                if status.is_ok_and(|status| {
                    status.ready && status.partitions.iter().all(|partition| partition.settled)
                }) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(START_PATIENCE, ready)
            .await
            .map_err(|_| ProcessError("the cluster did not become ready".to_owned()))?;
        Ok(processes)
    }

    /// A client of its own, that knows all nodes.
    pub fn client(&self) -> Result<Client, ProcessError> {
        Ok(Client::connect(self.endpoints())?)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}", node.client_address)).collect()
    }

    /// The process id of a node, while it runs.
    pub fn pid(&self, at: usize) -> Option<u32> {
        self.nodes[at].child.id()
    }

    /// Whether a node runs. One that ended by itself keeps its id until somebody asks this.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_running(&mut self, at: usize) -> Result<bool, ProcessError> {
        Ok(self.nodes[at].child.try_wait()?.is_none())
    }

    /// Ends a node as a crash does.
    pub async fn kill(&mut self, at: usize) -> Result<(), ProcessError> {
        Ok(self.nodes[at].child.kill().await?)
    }

    /// Ends a node as an operator does: it hands over what it leads, and is gone when this returns.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub async fn stop_node(&mut self, at: usize) -> Result<(), ProcessError> {
        self.nodes[at].stop().await
    }

    /// Ends every node as an operator does, all at once: none is left to hand over to.
    ///
    /// # Errors
    /// When one does not end by itself.
    pub async fn stop_all(mut self) -> Result<(), ProcessError> {
        try_join_all(self.nodes.iter_mut().map(NodeProcess::stop)).await?;
        Ok(())
    }

    /// Ends every node as a crash does and waits until it is gone.
    ///
    /// # Errors
    /// When a process cannot be ended.
    pub async fn kill_all(mut self) -> Result<(), ProcessError> {
        for node in &mut self.nodes {
            node.child.kill().await?;
        }
        Ok(())
    }

    /// Starts a killed node again where it was, from what its disk holds.
    ///
    /// # Errors
    /// When the process does not start.
    pub async fn restart(&mut self, at: usize) -> Result<(), ProcessError> {
        self.restart_with(at, &[]).await
    }

    /// As [`Processes::restart`], with settings, each as `key=value`, that hold until the next start.
    ///
    /// # Errors
    /// As [`Processes::restart`].
    pub async fn restart_with(&mut self, at: usize, settings: &[&str]) -> Result<(), ProcessError> {
        let build = self.nodes[at].build.clone();
        self.start_again(at, &build, settings).await
    }

    /// As [`Processes::restart`], as another build from now on.
    ///
    /// # Errors
    /// As [`Processes::restart`].
    pub async fn restart_as(&mut self, at: usize, build: &Build) -> Result<(), ProcessError> {
        self.start_again(at, build, &[]).await
    }

    async fn start_again(&mut self, at: usize, build: &Build, settings: &[&str]) -> Result<(), ProcessError> {
        let NodeProcess { name, client_address, peer_address, sqs_address, place, .. } = &self.nodes[at];
        let listen = [client_address.as_str(), peer_address];
        let sqs_listen = sqs_address.as_ref().map(|address| format!("sqs.listen={address}"));
        let settings = sqs_listen.iter().map(String::as_str).chain(settings.iter().copied());
        let settings = settings.collect::<Vec<_>>();
        self.nodes[at] = NodeProcess::start(build, &self.dir, name, place.clone(), listen, &settings).await?;
        Ok(())
    }

    /// What a node says.
    pub fn log_path(&self, at: usize) -> PathBuf {
        log_path(&self.dir, &self.nodes[at].name)
    }

    /// Where a node keeps what it must not lose.
    pub fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.join(&self.nodes[at].name)
    }
}

fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

impl NodeProcess {
    async fn stop(&mut self) -> Result<(), ProcessError> {
        let Some(pid) = self.child.id() else { return Ok(()) };
        let signalled = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        if !signalled.success() {
            return Err(ProcessError(format!("{} cannot be told to stop", self.name)));
        }
        let ended = timeout(STOP_PATIENCE, self.child.wait()).await;
        ended.map_err(|_| ProcessError(format!("{} did not stop within {STOP_PATIENCE:?}", self.name)))??;
        Ok(())
    }

    async fn start(
        build: &Build,
        dir: &Path,
        name: &str,
        place: Place,
        [client_listen, peer_listen]: [&str; 2],
        more_settings: &[&str],
    ) -> Result<Self, ProcessError> {
        let data_dir = dir.join(name);
        let log_path = log_path(dir, name);
        let log = File::options().create(true).append(true).open(&log_path)?;
        let settings = [
            format!("name={name}"),
            format!("data_dir={}", data_dir.display()),
            format!("client_listen={client_listen}"),
            format!("peer_listen={peer_listen}"),
            "admin_listen=127.0.0.1:0".to_owned(),
            "log.segment_bytes=16MiB".to_owned(),
            format!("insecure={}", !place.host.is_loopback()),
        ];
        let mut command = place.command(&build.program);
        command
            .args(["server", "--json"])
            .args(settings.iter().flat_map(|setting| ["--set", setting.as_str()]))
            .args(build.settings.iter().flat_map(|setting| ["--set", setting.as_str()]))
            .args(more_settings.iter().flat_map(|setting| ["--set", *setting]));
        // What the user set for the command, or for a node of their own, is not meant for these.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("LEASEHOLD_") {
                command.env_remove(variable);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn()?;
        let failed = || {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let last_words = log.lines().next_back().unwrap_or_default();
            ProcessError(format!("node {name} did not start: {last_words}: see {}", log_path.display()))
        };
        let stdout = child.stdout.take().ok_or_else(failed)?;
        let mut lines = BufReader::new(stdout).lines();
        let line =
            timeout(START_PATIENCE, lines.next_line()).await.map_err(|_| failed())??.ok_or_else(failed)?;
        let told: Value = serde_json::from_str(&line).map_err(|_| failed())?;
        let address = |key: &str| told[key].as_str().map(str::to_owned).ok_or_else(failed);
        Ok(Self {
            name: name.to_owned(),
            client_address: address("client")?,
            peer_address: address("peer")?,
            sqs_address: told["sqs"].as_str().map(str::to_owned),
            build: build.clone(),
            place,
            child,
        })
    }
}
