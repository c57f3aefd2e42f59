//! Starts PostgreSQL and Redis on loopback for tests, in folders of their own, from the packages of the system.

use std::fs::Permissions;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Set to `required`, a server that is not installed fails the tests instead of skipping them.
pub const SERVERS: &str = "LEASEHOLD_SERVERS";
/// Longer than any of them takes to start on a busy machine.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Debian keeps the programs of PostgreSQL here, by version.
const POSTGRES_DIR: &str = "/usr/lib/postgresql";

/// A server that ends with this value.
pub struct Server {
    child: Child,
    /// How it is asked to end.
    signal: &'static str,
    port: u16,
    _dir: TempDir,
}

impl Server {
    /// A fresh PostgreSQL; `None`, and said so, where it is not installed.
    ///
    /// # Panics
    /// When it does not start, or is not installed though it has to be.
    #[must_use]
    pub fn postgres() -> Option<Self> {
        let Some(programs) = postgres_programs() else {
            return skipped("PostgreSQL", "postgresql");
        };
        Some(start_postgres(&programs).unwrap_or_else(|error| panic!("PostgreSQL does not start: {error}")))
    }

    /// A fresh Redis; `None`, and said so, where it is not installed.
    ///
    /// # Panics
    /// As [`Server::postgres`].
    #[must_use]
    pub fn redis() -> Option<Self> {
        let Some(program) = in_path("redis-server") else {
            return skipped("Redis", "redis-server");
        };
        Some(start_redis(&program).unwrap_or_else(|error| panic!("Redis does not start: {error}")))
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args([self.signal, pid.as_str()]).status();
        let _ = self.child.wait();
    }
}

fn skipped(name: &str, package: &str) -> Option<Server> {
    let reason = format!("{name} is not installed (package {package})");
    assert!(std::env::var(SERVERS).as_deref() != Ok("required"), "{reason}");
    eprintln!("skipped: {reason}");
    None
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The folder of the newest version.
fn postgres_programs() -> Option<PathBuf> {
    let installed = std::fs::read_dir(POSTGRES_DIR).into_iter().flatten().flatten();
    let version = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().ok();
    let newest = installed.filter(|entry| version(entry).is_some()).max_by_key(version);
    let of_package = newest.map(|entry| entry.path().join("bin"));
    let of_path = in_path("initdb").and_then(|file| file.parent().map(Path::to_path_buf));
    of_package.or(of_path).filter(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// PostgreSQL refuses to run as root: its package brings a user for it.
fn user_of_postgres() -> io::Result<Option<(u32, u32)>> {
    let id = |arguments: &[&str]| -> io::Result<u32> {
        let output = Command::new("id").args(arguments).output()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().map_err(io::Error::other)
    };
    if id(&["-u"])? != 0 {
        return Ok(None);
    }
    Ok(Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?)))
}

fn start_postgres(programs: &Path) -> io::Result<Server> {
    let (dir, user) = (tempfile::tempdir()?, user_of_postgres()?);
    if let Some((user, group)) = user {
        chown(dir.path(), Some(user), Some(group))?;
    }
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700))?;
    let command = |program: &str| {
        let mut command = Command::new(programs.join(program));
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = user {
            command.uid(user).gid(group);
        }
        command
    };
    let data = dir.path().join("data");
    let made = command("initdb")
        .arg("-D")
        .arg(&data)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"])
        .status()?;
    if !made.success() {
        return Err(io::Error::other(format!("initdb: {made}")));
    }
    let port = free_port()?;
    let mut postgres = command("postgres");
    postgres.arg("-D").arg(&data).arg("-k").arg(dir.path());
    postgres.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "max_connections=200"]);
    wait_for(Server { child: postgres.spawn()?, signal: "-INT", port, _dir: dir })
}

fn start_redis(program: &Path) -> io::Result<Server> {
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    let mut redis = Command::new(program);
    redis.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
    ]);
    redis.arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    wait_for(Server { child: redis.spawn()?, signal: "-TERM", port, _dir: dir })
}

/// Until it accepts connections.
fn wait_for(mut server: Server) -> io::Result<Server> {
    let end = Instant::now() + START_TIME_MAX;
    while TcpStream::connect(("127.0.0.1", server.port)).is_err() {
        if let Some(status) = server.child.try_wait()? {
            return Err(io::Error::other(format!("it ended: {status}")));
        }
        if Instant::now() > end {
            return Err(io::Error::other("it does not listen"));
        }
        sleep(Duration::from_millis(50));
    }
    Ok(server)
}
