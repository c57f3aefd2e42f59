//! What processes have taken from the machine so far, as `/proc` tells it.

use std::fs::read_to_string;

/// Ticks of a second in `/proc/PID/stat`: the kernel's interface to programs has this many on every platform that it runs on.
const TICKS_PER_S: f64 = 100.0;

/// Of some processes together, since each began.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    pub cpu_s: f64,
    /// Sent towards the device: what a page held when it was written again is counted again.
    pub written_bytes: u64,
}

impl Usage {
    pub fn of(pids: &[u32]) -> Self {
        let pids = pids.iter().copied();
        Self { cpu_s: pids.clone().map(cpu_s).sum(), written_bytes: pids.map(written_bytes).sum() }
    }
}

/// Processor time of a process, in seconds.
pub fn cpu_s(pid: u32) -> f64 {
    cpu_s_in(&read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    resident_mib_in(&read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

fn written_bytes(pid: u32) -> u64 {
    written_bytes_in(&read_to_string(format!("/proc/{pid}/io")).unwrap_or_default())
}

/// The name of the program stands in brackets, and may have spaces and brackets of its own.
fn cpu_s_in(stat: &str) -> f64 {
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_S
}

fn resident_mib_in(status: &str) -> f64 {
    field(status, "VmRSS:").map_or(0.0, |kib| kib as f64 / 1024.0)
}

fn written_bytes_in(io: &str) -> u64 {
    field(io, "write_bytes:").unwrap_or_default()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 4 0 100 1000 200";
        assert_eq!(cpu_s_in(stat), 3.0);
        assert_eq!(resident_mib_in("Name:\tx\nVmHWM:\t9 kB\nVmRSS:\t    2048 kB\n"), 2.0);
        assert_eq!(written_bytes_in("wchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n"), 4096);
    }

    #[test]
    fn this_process_has_memory_and_one_that_is_gone_has_none() {
        assert!(resident_mib(std::process::id()) > 0.0);
        assert_eq!(Usage::of(&[u32::MAX]), Usage::default());
        assert_eq!(resident_mib(u32::MAX), 0.0);
    }
}
