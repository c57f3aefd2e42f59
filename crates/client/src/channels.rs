//! One lazily opened connection for each node, and which of them to trust at this moment.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use leasehold_proto::v1::Reason;
use leasehold_tls::Dialer;
use tonic::transport::{Channel, Endpoint};

use crate::{Error, Tls};

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
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
/// How long a node that belonged to no cluster is believed not to have joined one.
const OUTSIDE_TIME: Duration = Duration::from_secs(1);

/// The connections of one client, by the node's address.
pub(crate) struct Channels {
    endpoints: Vec<String>,
    /// Where connections are secured.
    dialer: Option<Dialer>,
    /// The endpoint in use; moves on when it fails.
    current: AtomicUsize,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    channel: Channel,
    failures: u32,
    mistrusted_until: Option<Instant>,
    /// It said a moment ago that it belongs to no cluster.
    outside_until: Option<Instant>,
}

impl Known {
    fn new(channel: Channel) -> Self {
        Self { channel, failures: 0, mistrusted_until: None, outside_until: None }
    }

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

impl fmt::Debug for Channels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Channels").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Channels {
    pub(crate) fn new(endpoints: Vec<String>, tls: Option<&Tls>) -> Result<Self, Error> {
        let invalid = |detail: String| Err(Error::not_done(Reason::InvalidArgument, detail));
        if endpoints.is_empty() {
            return invalid("no endpoint is given".to_owned());
        }
        for endpoint in &endpoints {
            if tls.is_some() && scheme(endpoint)? == Some(Scheme::Http) {
                return invalid(format!(
                    "endpoint {endpoint}: TLS is asked for, and this one says that it has none"
                ));
            }
        }
        let dialer = tls.map(Tls::dialer).transpose()?;
        let (current, known) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
        let channels = Self { endpoints, dialer, current, known };
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
        let endpoint = endpoint(address)?;
        let channel = match &self.dialer {
            // It has a time of its own: this one's would hide that nothing was sent.
            Some(dialer) => endpoint.connect_with_connector_lazy(dialer.clone()),
            None => endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy(),
        };
        known.insert(address.to_owned(), Known::new(channel.clone()));
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
        self.with(address, |known| {
            (known.failures, known.mistrusted_until, known.outside_until) = (0, None, None);
        });
    }

    /// This node belongs to no cluster. Whether another may: an endpoint that did not say the same a moment ago or, where `has_routes`,
    /// any such node.
    pub(crate) fn note_outside(&self, address: &str, has_routes: bool) -> bool {
        let now = Instant::now();
        self.with(address, |known| known.outside_until = Some(now + OUTSIDE_TIME));
        let may_serve = |known: &Known| known.outside_until.is_none_or(|until| until <= now);
        let is_asked = |address: &String| has_routes || self.endpoints.contains(address);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(other, known)| other != address && is_asked(other) && may_serve(known))
    }

    pub(crate) fn is_trusted(&self, address: &str) -> bool {
        self.with(address, |known| known.is_trusted()).unwrap_or(true)
    }

    fn with<T>(&self, address: &str, read: impl FnOnce(&mut Known) -> T) -> Option<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_mut(address).map(read)
    }
}

/// What an endpoint says of TLS, if it has a scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

pub(crate) fn scheme(endpoint: &str) -> Result<Option<Scheme>, Error> {
    let Some((scheme, _)) = endpoint.split_once("://") else { return Ok(None) };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok(Some(Scheme::Http)),
        "https" => Ok(Some(Scheme::Https)),
        _ => Err(Error::not_done(
            Reason::InvalidArgument,
            format!("endpoint {endpoint}: it begins with http://, https:// or the host"),
        )),
    }
}

/// Whoever dials secures the connection: the scheme is the same for all.
fn endpoint(address: &str) -> Result<Endpoint, Error> {
    scheme(address)?;
    let uri = format!("http://{}", address.split_once("://").map_or(address, |(_, rest)| rest));
    let invalid = |error| Error::not_done(Reason::InvalidArgument, format!("endpoint {address}: {error}"));
    let endpoint = Endpoint::from_shared(uri).map_err(invalid)?;
    Ok(endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use leasehold_proto::v1::Outcome;

    use super::*;

    fn of(endpoints: &[&str], tls: Option<&Tls>) -> Result<Channels, Error> {
        Channels::new(endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect(), tls)
    }

    #[test]
    fn endpoints_say_what_they_speak_or_nothing() {
        for (endpoint, spoken) in [
            ("a:1", None),
            ("http://a:1", Some(Scheme::Http)),
            ("HTTPS://a:1", Some(Scheme::Https)),
            ("https://[::1]:1", Some(Scheme::Https)),
        ] {
            assert_eq!(scheme(endpoint).unwrap(), spoken, "{endpoint}");
        }
        for wrong in ["grpcs://a:1", "tls://a:1", "://a:1"] {
            let error = scheme(wrong).unwrap_err();
            assert_eq!((error.outcome, error.reason), (Outcome::NotDone, Reason::InvalidArgument), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_node_without_a_cluster_matters_only_when_no_other_may_have_one() {
        let two = of(&["a:1", "b:1"], None).unwrap();
        assert!(two.note_outside("a:1", false));
        assert!(!two.note_outside("b:1", false), "both say so");
        two.note_success("a:1");
        assert!(two.note_outside("b:1", false));
        let one = of(&["a:1"], None).unwrap();
        assert!(!one.note_outside("a:1", true));
        one.channel("c:1").unwrap();
        assert!(one.note_outside("a:1", true));
        assert!(!one.note_outside("a:1", false), "only calls with routes go to other nodes");
    }

    #[tokio::test]
    async fn an_endpoint_in_the_clear_is_refused_where_tls_is_asked_for() {
        let authority = leasehold_tls::testing::TestAuthority::default();
        let tls = Tls::new().authorities(authority.pem());
        assert!(of(&["a:1", "https://b:1"], Some(&tls)).is_ok());
        let error = of(&["https://b:1", "Http://a:1"], Some(&tls)).unwrap_err();
        assert!(error.detail.contains("Http://a:1"), "{error}");
        let error = of(&["a:1"], Some(&Tls::new().authorities("none"))).unwrap_err();
        assert!(error.detail.contains("not readable as PEM"), "{error}");
        assert!(of(&["http://a:1", "b:1"], None).is_ok());
    }

    /// Nothing was sent when a node took the connection and said nothing.
    #[tokio::test]
    async fn a_handshake_that_takes_too_long_has_done_nothing() {
        let authority = leasehold_tls::testing::TestAuthority::default();
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let client = crate::Client::builder([address])
            .tls(Tls::new().authorities(authority.pem()))
            .call_timeout(CONNECT_TIMEOUT * 3 / 2)
            .build()
            .unwrap();
        let channel = client.channels().channel(&client.channels().pick(&[], 0)).unwrap();
        let asked = crate::client::cluster(channel).status(leasehold_proto::v1::StatusRequest {}).await;
        let error = Error::from(asked.unwrap_err());
        assert!(error.outcome == Outcome::NotDone && error.detail.contains("handshake"), "{error}");
    }
}
