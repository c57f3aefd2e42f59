//! One lazily opened connection for each node, and which of them to trust at this moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use leasehold_proto::v1::Reason;
use tonic::transport::{Channel, Endpoint};

use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection on which nothing came for so long is asked whether its node is still there. Together with the time for the answer
/// this bounds how long a silent node holds up a call: less than the others need to agree that it is gone would gain nothing.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1_500);
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// The largest HTTP/2 frame that is taken: a batch of messages should be one.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// How long a node that failed is asked only when no other is left; doubles while it fails at each try.
const MISTRUST_MIN: Duration = Duration::from_secs(1);
const MISTRUST_DOUBLINGS_MAX: u32 = 5;

/// The connections of one client, by the node's address.
#[derive(Debug)]
pub(crate) struct Channels {
    endpoints: Vec<String>,
    /// The endpoint in use; moves on when it fails.
    current: AtomicUsize,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    channel: Channel,
    failures: u32,
    mistrusted_until: Option<Instant>,
}

impl Known {
    fn is_trusted(&self) -> bool {
        self.mistrusted_until.is_none_or(|until| until <= Instant::now())
    }

    /// Failures of calls that were under way together count as one.
    fn fail(&mut self) {
        if self.is_trusted() {
            let mistrust = MISTRUST_MIN * 2_u32.pow(self.failures.min(MISTRUST_DOUBLINGS_MAX));
            self.mistrusted_until = Some(Instant::now() + mistrust);
            self.failures += 1;
        }
    }
}

impl Channels {
    pub(crate) fn new(endpoints: Vec<String>) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::not_done(Reason::InvalidArgument, "no endpoint is given"));
        }
        let channels = Self { endpoints, current: AtomicUsize::new(0), known: Mutex::new(HashMap::new()) };
        for address in &channels.endpoints {
            channels.channel(address)?;
        }
        Ok(channels)
    }

    /// The channel to a node; it connects at its first use and after each loss.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(address) {
            return Ok(known.channel.clone());
        }
        let channel = endpoint(address)?.connect_lazy();
        known.insert(
            address.to_owned(),
            Known { channel: channel.clone(), failures: 0, mistrusted_until: None },
        );
        Ok(channel)
    }

    /// A trusted node of `preferred`, or else a trusted endpoint, or else any endpoint.
    pub(crate) fn pick(&self, preferred: &[String], turn: usize) -> String {
        let trusted = |address: &&String| self.is_trusted(address);
        if !preferred.is_empty() {
            let start = turn % preferred.len();
            let in_turn = preferred[start..].iter().chain(&preferred[..start]);
            if let Some(address) = in_turn.clone().find(trusted) {
                return address.clone();
            }
        }
        let start = self.current.load(Ordering::Relaxed) % self.endpoints.len();
        let mut in_turn = self.endpoints[start..].iter().chain(&self.endpoints[..start]);
        in_turn.find(trusted).unwrap_or(&self.endpoints[start]).clone()
    }

    pub(crate) fn note_failure(&self, address: &str) {
        self.with(address, Known::fail);
        self.move_on_from(address);
    }

    /// Uses another endpoint from now on, if it is this one that is in use.
    pub(crate) fn move_on_from(&self, address: &str) {
        let current = self.current.load(Ordering::Relaxed);
        if self.endpoints[current % self.endpoints.len()] == address {
            self.current.store(current.wrapping_add(1), Ordering::Relaxed);
        }
    }

    pub(crate) fn note_success(&self, address: &str) {
        self.with(address, |known| (known.failures, known.mistrusted_until) = (0, None));
    }

    pub(crate) fn is_trusted(&self, address: &str) -> bool {
        self.with(address, |known| known.is_trusted()).unwrap_or(true)
    }

    fn with<T>(&self, address: &str, read: impl FnOnce(&mut Known) -> T) -> Option<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(address).map(read)
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let invalid = |error| Error::not_done(Reason::InvalidArgument, format!("endpoint {address}: {error}"));
    let endpoint = Endpoint::from_shared(uri).map_err(invalid)?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}
