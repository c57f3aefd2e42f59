//! The client itself: connections, routes and sessions that its calls, producers and consumers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use leasehold_proto::v1::cluster_client::ClusterClient;
use leasehold_proto::v1::messages_client::MessagesClient;
use leasehold_proto::v1::queues_client::QueuesClient;
use leasehold_proto::v1::{Reason, RoutesRequest, RoutesResponse};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::backoff::RetryBudget;
use crate::channels::{Channels, Scheme, scheme};
use crate::routes::{FRESH, Facts, Leaders, Look, RouteCache};
use crate::session::{REQUESTS_MAX, Sessions, WINDOW_MAX};
use crate::{Error, Tls};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer times are as good as this one, and could be more than a clock counts.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
const RETRIES_PER_SECOND: u32 = 200;
/// Receives that may wait at a time. A node takes 1,024 calls on a connection, and other calls need some.
const RECEIVES_MAX: usize = 768;
/// A look for routes that takes longer is given up; the request goes to any endpoint.
const ROUTES_TIMEOUT: Duration = Duration::from_millis(500);
/// The largest answer that is read: a receive of 4 MiB, or one message beyond it, and what surrounds it.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How a [`Client`] is made.
///
/// ```
/// use std::time::Duration;
/// use leasehold_client::Client;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), leasehold_client::Error> {
/// let client = Client::builder(["127.0.0.1:7301", "127.0.0.1:7302"])
///     .call_timeout(Duration::from_secs(3))
///     .retry_budget(50)
///     .build()?;
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    call_timeout: Duration,
    retries_per_second: u32,
    tls: Option<Tls>,
}

impl ClientBuilder {
    /// Speaks TLS with all nodes. Endpoints that begin with `https://` say so too, and then [`Tls::new`] holds unless told.
    ///
    /// ```no_run
    /// use leasehold_client::{Client, Tls};
    ///
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let tls = Tls::new().authorities(std::fs::read("nodes.pem")?);
    /// let client = Client::builder(["a.internal:7400", "b.internal:7400"]).tls(tls).build()?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long a call is tried in all, beside what a receive waits for messages; 10 s unless told.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout.min(TIME_MAX);
        self
    }

    /// Retries a second, over all calls, at short pauses; beyond it each waits up to 250 ms. 200 unless told.
    #[must_use]
    pub fn retry_budget(mut self, per_second: u32) -> Self {
        self.retries_per_second = per_second;
        self
    }

    /// Makes the client. Nothing is connected before the first call.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no endpoint, one is not `host:port` or a URI, some have TLS and some do not, or certificates
    /// cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let schemes =
            self.endpoints.iter().map(|endpoint| scheme(endpoint)).collect::<Result<Vec<_>, _>>()?;
        let tls = self.tls.or_else(|| schemes.contains(&Some(Scheme::Https)).then(Tls::new));
        let settings =
            Settings { call_timeout: self.call_timeout, budget: RetryBudget::new(self.retries_per_second) };
        Ok(Client {
            inner: Arc::new(Inner {
                channels: Channels::new(self.endpoints, tls.as_ref())?,
                tls,
                retries_per_second: self.retries_per_second,
                routes: RouteCache::default(),
                writes: Sessions::new(WINDOW_MAX, REQUESTS_MAX),
                receives: Sessions::new(1, RECEIVES_MAX),
                changes: Sessions::new(WINDOW_MAX, REQUESTS_MAX),
                turn: AtomicUsize::new(0),
                settings,
            }),
        })
    }
}

/// A client of one cluster; clones share its connections.
///
/// ```no_run
/// use leasehold_client::{Client, NewMessage, QueueSettings};
///
/// # async fn example() -> Result<(), leasehold_client::Error> {
/// let client = Client::connect(["http://127.0.0.1:7400"])?;
/// client.create_queue("thumbnails", QueueSettings::default(), 1).await?;
/// for sent in client.send("thumbnails", vec![NewMessage::new("cat.jpg")]).await? {
///     println!("{:?}", sent?.id);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    channels: Channels,
    tls: Option<Tls>,
    retries_per_second: u32,
    routes: RouteCache,
    writes: Arc<Sessions>,
    /// Apart, since a receive may wait for long.
    receives: Arc<Sessions>,
    /// Apart, since the catalogue hears of no other requests.
    changes: Arc<Sessions>,
    turn: AtomicUsize,
    settings: Settings,
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) call_timeout: Duration,
    pub(crate) budget: RetryBudget,
}

impl Client {
    /// A client with default settings. Endpoints are `host:port`, `http://host:port` or, with TLS, `https://host:port` of any nodes
    /// of the cluster; nothing is connected before the first call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), leasehold_client::Error> {
    /// let client = leasehold_client::Client::connect(["127.0.0.1:7400"])?;
    /// # let _ = client;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ClientBuilder::build`].
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, Error> {
        Self::builder(endpoints).build()
    }

    /// A client with settings of one's own.
    pub fn builder(endpoints: impl IntoIterator<Item = impl Into<String>>) -> ClientBuilder {
        ClientBuilder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            call_timeout: CALL_TIMEOUT,
            retries_per_second: RETRIES_PER_SECOND,
            tls: None,
        }
    }

    /// A builder for a client of other endpoints, with the settings of this one; addresses that nodes tell are `host:port`.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// for node in client.cluster_status().await?.nodes {
    ///     let of_one = client.builder_for([node.client_address]).build()?;
    ///     println!("{}: {}", node.name, of_one.cluster_status().await?.ready);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder_for(&self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> ClientBuilder {
        let Inner { tls, retries_per_second, settings, .. } = &*self.inner;
        let (tls, retries_per_second, call_timeout) =
            (tls.clone(), *retries_per_second, settings.call_timeout);
        ClientBuilder { call_timeout, retries_per_second, tls, ..Self::builder(endpoints) }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.inner.channels
    }

    pub(crate) fn writes(&self) -> &Arc<Sessions> {
        &self.inner.writes
    }

    pub(crate) fn receives(&self) -> &Arc<Sessions> {
        &self.inner.receives
    }

    pub(crate) fn changes(&self) -> &Arc<Sessions> {
        &self.inner.changes
    }

    /// The node to ask next: a leader of the queue in turn, or any endpoint.
    pub(crate) async fn address_for(&self, queue: Option<&str>) -> String {
        match queue {
            Some(queue) => self.address_and_facts(queue).await.0,
            None => self.inner.channels.pick(&[], self.turn()),
        }
    }

    /// A node to ask about a queue, and what is known of it.
    pub(crate) async fn address_and_facts(&self, queue: &str) -> (String, Option<Facts>) {
        let turn = self.turn();
        let leaders = self.leaders(queue, FRESH).await;
        (self.inner.channels.pick(&leaders.addresses, turn), leaders.facts)
    }

    fn turn(&self) -> usize {
        self.inner.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Who leads shards of the queue, by an answer that is at most that old unless none comes.
    pub(crate) async fn leaders(&self, queue: &str, age_max: Duration) -> Leaders {
        let known = match self.inner.routes.look(queue, age_max) {
            Look::Fresh(leaders) => return leaders,
            Look::Due(leaders) => leaders,
        };
        let (address, asked) = (self.inner.channels.pick(&[], 0), Instant::now());
        match self.ask_routes(&address, queue).await {
            Ok(routes) => {
                let leaders = self.inner.routes.learn(queue, &routes, asked);
                // It may be cut off from those who know.
                if !leaders.is_complete {
                    self.inner.channels.move_on_from(&address);
                }
                leaders
            }
            Err(error) => {
                tracing::debug!(queue, %error, "routes are unknown");
                known
            }
        }
    }

    async fn ask_routes(&self, address: &str, queue: &str) -> Result<RoutesResponse, Error> {
        let mut cluster = cluster(self.inner.channels.channel(address)?);
        let asked = cluster.routes(RoutesRequest { queue: queue.to_owned() });
        let result = match timeout(ROUTES_TIMEOUT, asked).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(Error::from),
            Err(_) => Err(Error::timed_out(format!("{address} did not answer in time"))),
        };
        self.note_result(address, None, result)
    }

    /// Learns from how an attempt at a node went.
    pub(crate) fn note_result<T>(
        &self,
        address: &str,
        queue: Option<&str>,
        result: Result<T, Error>,
    ) -> Result<T, Error> {
        if result.is_ok() {
            self.inner.channels.note_success(address);
        }
        result.map_err(|error| self.note_error(address, queue, error))
    }

    /// Learns from why an attempt at a node failed, and says in the error whether another node may do better.
    pub(crate) fn note_error(&self, address: &str, queue: Option<&str>, error: Error) -> Error {
        let channels = &self.inner.channels;
        let is_outside = error.reason == Reason::NotInitialised;
        let is_alone = is_outside && !channels.note_outside(address, queue.is_some());
        let error = if is_outside && !is_alone { error.of_an_outsider() } else { error };
        if error.is_of_the_node() {
            channels.note_failure(address);
        } else if error.reason == Reason::NoLeader {
            // It may be cut off from the leader that others know; it is not to blame otherwise.
            channels.move_on_from(address);
        } else if !is_outside {
            channels.note_success(address);
        }
        if let Some(queue) = queue
            && error.spoils_routes()
        {
            self.spoil_routes(queue);
        }
        error
    }

    /// What is known of a queue may be so no longer.
    pub(crate) fn spoil_routes(&self, queue: &str) {
        self.inner.routes.spoil(queue);
    }
}

pub(crate) fn messages(channel: Channel) -> MessagesClient<Channel> {
    MessagesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(crate) fn queues(channel: Channel) -> QueuesClient<Channel> {
    QueuesClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// An answer with another number of items than were asked for says nothing about any of them.
pub(crate) fn miscounted(answered: usize, asked: usize) -> Error {
    Error {
        outcome: leasehold_proto::v1::Outcome::Unknown,
        ..Error::not_done(Reason::None, format!("{answered} outcomes came for {asked} items"))
    }
}
