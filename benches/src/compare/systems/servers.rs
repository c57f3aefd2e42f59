//! Processes of the other systems: started with what was written for them, ended by the ids they were started with.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::compare::system::Failure;

/// How a process is started, each time.
#[derive(Debug, Clone)]
pub struct Start {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// All that it has beside the search path.
    pub variables: Vec<(String, OsString)>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A process; it ends with this value.
pub struct Server {
    start: Start,
    child: Child,
}

impl Server {
    pub fn start(start: Start) -> Result<Self, Failure> {
        let child = spawn(&start)?;
        Ok(Self { start, child })
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it as a crash does, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Starts it again, as before.
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.child = spawn(&self.start)?;
        Ok(())
    }

    /// For people, when it does not do what it shall.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.start.log).unwrap_or_default();
        let lines = log.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

fn spawn(start: &Start) -> Result<Child, Failure> {
    let log = File::options().create(true).append(true).open(&start.log)?;
    let mut command = Command::new(&start.program);
    command
        .args(&start.arguments)
        .env_clear()
        .envs(start.variables.iter().map(|(name, value)| (name, value)));
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command
        .spawn()
        .map_err(|error| Failure::new(format!("{} does not start: {error}", start.program.display())))
}

/// Ports on loopback that nobody listens on now.
pub fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    // All are held until all are known, so that none comes twice.
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A folder of its own for a node.
pub fn folder(dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let folder = dir.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Tries again and again until it works; then what it said, or after `patience` why it last did not.
pub async fn until_done<'a, T>(
    patience: Duration,
    mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, Failure>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(failure) if began.elapsed() > patience => return Err(failure),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_different() {
        let mut ports = free_ports(8).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    }

    #[tokio::test]
    async fn a_process_is_ended_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let arguments = vec!["-c".into(), "echo \"$A\"; exec sleep 60".into()];
        let variables = vec![("A".to_owned(), "hello".into())];
        let start = Start { program: "/bin/sh".into(), arguments, variables, log };
        let mut server = Server::start(start).unwrap();
        let first = server.pid().unwrap();
        server.kill().await.unwrap();
        assert_eq!(server.pid(), None);
        server.restart().unwrap();
        assert_ne!(server.pid(), Some(first));
        let said = || {
            let words = server.last_words();
            Box::pin(async move { if words.contains("hello") { Ok(()) } else { Err(Failure::new(words)) } })
                as _
        };
        until_done(Duration::from_secs(10), said).await.unwrap();
    }
}
