//! What the figures were measured on.

use std::fs::read_to_string;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::system::Failure;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// What the working folder lies on.
    pub filesystem: String,
}

impl Machine {
    pub fn here(work_dir: &Path) -> Self {
        let read = |path: &str| read_to_string(path).unwrap_or_default();
        let place = work_dir.canonicalize().unwrap_or_else(|_| work_dir.to_owned());
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem(&read("/proc/mounts"), &place),
        }
    }
}

/// What is left of the disk that a folder is on, for those who are not root.
pub fn free_bytes(dir: &Path) -> Result<u64, Failure> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail * disk.f_frsize)
}

/// The first value of a `name : value` line.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn memory_mib(meminfo: &str) -> u64 {
    let total = value(meminfo, "MemTotal").unwrap_or_default();
    total.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

/// The type of the deepest mount above a path.
fn filesystem(mounts: &str, path: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(mount, _)| path.starts_with(mount));
    above.max_by_key(|(mount, _)| mount.len()).map_or("unknown", |(_, kind)| kind).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmpfoo xfs rw 0 0\n";
        assert_eq!(filesystem(mounts, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(filesystem(mounts, Path::new("/work")), "ext4");
        assert_eq!(filesystem("", Path::new("/work")), "unknown");
    }

    #[test]
    fn values_are_read() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2: fast\n";
        assert_eq!(value(text, "model name").as_deref(), Some("A CPU @ 2: fast"));
        assert_eq!(memory_mib("MemTotal:       2097152 kB\n"), 2048);
    }
}
