//! A stretch of time in which a cluster works, and what a message cost in it.

use std::time::Instant;

use super::metric::{Metric, Reading};
use crate::usage::{Usage, resident_mib};

pub struct Window {
    pids: Vec<u32>,
    began: Instant,
    servers: Usage,
    clients: Usage,
}

impl Window {
    /// The clients are in this process.
    pub fn open(pids: Vec<u32>) -> Self {
        let (servers, clients) = (Usage::of(&pids), Usage::of(&[std::process::id()]));
        Self { began: Instant::now(), pids, servers, clients }
    }

    /// After so many messages. Without any there is a rate and no cost.
    pub fn close(self, messages: u64) -> Vec<Reading> {
        let elapsed_s = self.began.elapsed().as_secs_f64();
        let (servers, clients) = (Usage::of(&self.pids), Usage::of(&[std::process::id()]));
        let largest_mib = self.pids.iter().map(|pid| resident_mib(*pid)).fold(0.0, f64::max);
        let mut readings =
            vec![(Metric::MessagesPerS, messages as f64 / elapsed_s), (Metric::ResidentMib, largest_mib)];
        if messages > 0 {
            let each = |amount: f64| amount / messages as f64;
            let written_bytes = servers.written_bytes.saturating_sub(self.servers.written_bytes);
            readings.extend([
                (Metric::ServersCpuUs, each((servers.cpu_s - self.servers.cpu_s) * 1e6)),
                (Metric::ClientsCpuUs, each((clients.cpu_s - self.clients.cpu_s) * 1e6)),
                (Metric::WrittenBytes, each(written_bytes as f64)),
            ]);
        }
        readings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_without_messages_has_no_cost_each() {
        let metrics =
            |readings: Vec<Reading>| readings.into_iter().map(|(metric, _)| metric).collect::<Vec<_>>();
        let pids = vec![std::process::id()];
        assert_eq!(metrics(Window::open(pids.clone()).close(0)), [Metric::MessagesPerS, Metric::ResidentMib]);
        let readings = Window::open(pids).close(10);
        assert_eq!(readings.len(), 5);
        assert!(readings.iter().all(|(_, value)| value.is_finite() && *value >= 0.0), "{readings:?}");
    }
}
