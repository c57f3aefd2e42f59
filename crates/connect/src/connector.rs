//! Takes messages, makes batches of them, and starts each when the gate lets it through.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use leasehold_client::{CancellationToken, Client, Consumer, Delivery, Error};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::answer::Rules;
use crate::endpoint::Endpoint;
use crate::gate::{Gate, Pass};
use crate::gathering::{Gathering, Limits};
use crate::request::Source;
use crate::work::{Finished, Held, Shared, deliver};
use crate::{Invalid, Numbers, Settings};

/// How often to look for messages that have waited for too long: within the margin that they have.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// How large a message is thought to be before one was seen.
const FIRST_SIZE_BYTES: usize = 64 * 1024;

/// Brings the messages of a queue to an endpoint, until it is stopped.
///
/// ```no_run
/// use leasehold_client::{CancellationToken, Client};
/// use leasehold_connect::{Connector, Settings};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect(["127.0.0.1:7400"])?;
/// let settings = Settings::new("thumbnails", "http://127.0.0.1:8080/messages");
/// let stop = CancellationToken::new(); // cancel it at SIGTERM
/// let connector = Connector::new(client, settings, &stop)?;
/// let numbers = connector.numbers();
/// connector.run().await?;
/// println!("{} messages were handled", numbers.now().acked);
/// # Ok(())
/// # }
/// ```
pub struct Connector {
    client: Client,
    settings: Settings,
    endpoint: Endpoint,
    gate: Arc<Gate>,
    numbers: Arc<Numbers>,
    stop: CancellationToken,
}

impl Connector {
    /// A connector that stops in good order when the token is cancelled. On the runtime of the caller.
    ///
    /// # Errors
    /// As [`Settings::check`].
    pub fn new(client: Client, settings: Settings, stop: &CancellationToken) -> Result<Self, Invalid> {
        settings.check()?;
        Ok(Self {
            endpoint: Endpoint::new(&settings)?,
            gate: Gate::new(settings.concurrency, settings.concurrency_max),
            numbers: Arc::default(),
            client,
            settings,
            // It also ends by itself, which is not for the caller's token to say.
            stop: stop.child_token(),
        })
    }

    /// What it does, counted while it does it.
    #[must_use]
    pub fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    /// Brings messages to the endpoint. At the end everything that was received is settled or given back.
    ///
    /// # Errors
    /// When the queue is unknown or cannot be consumed, or no node answers at the start. What happens to connections, leaders and the
    /// endpoint later is no error.
    pub async fn run(self) -> Result<(), Error> {
        let source = self.source().await?;
        let consumer = self.consumer();
        let (wait_max, margin) = (self.settings.wait_max(), self.settings.margin());
        let limits = Limits {
            messages: self.settings.batch(),
            bytes: self.settings.batch_bytes,
            window: self.settings.batch_window,
        };
        let shared = Arc::new(Shared {
            endpoint: self.endpoint,
            gate: self.gate,
            numbers: self.numbers,
            source,
            rules: Rules { form: self.settings.form, reject_statuses: self.settings.reject_statuses },
            retry: self.settings.retry,
            wait_max,
            stop: self.stop,
        });
        let mut running = Running {
            shared,
            consumer,
            limits,
            look_interval: (wait_max / 4).min(margin / 2).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX),
            gathering: Gathering::new(limits),
            sizes: Sizes::default(),
            batches: JoinSet::new(),
        };
        let ended = running.run().await;
        running.end(self.settings.stop_within).await;
        ended
    }

    /// Looks whether the queue is there.
    async fn source(&self) -> Result<Source, Error> {
        let queue = self.settings.queue.clone();
        let described = self.client.describe_queue(&queue).await?;
        if described
            .settings
            .is_none_or(|settings| settings.dead_letter_queue.is_none_or(|name| name.is_empty()))
        {
            tracing::warn!(
                queue,
                "the queue has no dead-letter queue: what always fails is tried again for ever"
            );
        }
        let cluster = self.client.cluster_status().await?.cluster_id;
        Ok(Source { cluster, queue })
    }

    fn consumer(&self) -> Consumer {
        let builder = self.client.queue(self.settings.queue.as_str()).consumer();
        let builder = builder
            // Told anew before anything is received; those that wait beside the batches are counted there.
            .concurrency(1)
            .buffer(1)
            .name(&self.settings.name)
            .keep_leases_for(self.settings.keep_for)
            .stop_on(self.stop.clone());
        match self.settings.lease {
            Some(lease) => builder.lease(lease).start(),
            None => builder.start(),
        }
    }
}

/// How large the last messages were, as a mean that follows them.
#[derive(Debug, Default)]
struct Sizes {
    mean_bytes: Option<f64>,
}

impl Sizes {
    fn note(&mut self, size_bytes: usize) {
        let size_bytes = size_bytes as f64;
        let mean_bytes = self.mean_bytes.get_or_insert(size_bytes);
        // Larger ones count at once: a batch of them is what has to fit.
        *mean_bytes = size_bytes.max(*mean_bytes + (size_bytes - *mean_bytes) / 64.0);
    }

    /// Messages that a request carries.
    fn fit(&self, limits: Limits) -> u32 {
        let mean_bytes = self.mean_bytes.unwrap_or(FIRST_SIZE_BYTES as f64).max(1.0);
        let by_bytes = (limits.bytes as f64 / mean_bytes) as u32;
        by_bytes.clamp(1, u32::try_from(limits.messages).unwrap_or(u32::MAX))
    }
}

struct Running {
    shared: Arc<Shared>,
    consumer: Consumer,
    limits: Limits,
    look_interval: Duration,
    gathering: Gathering<Held>,
    sizes: Sizes,
    /// Those under way.
    batches: JoinSet<Finished>,
}

impl Running {
    async fn run(&mut self) -> Result<(), Error> {
        let stop = self.shared.stop.clone();
        let mut looks = interval(self.look_interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let limit = self.shared.gate.limit();
            // What the requests of now carry, and a batch more.
            let carried = self.sizes.fit(self.limits);
            self.consumer.set_concurrency(carried.saturating_mul(limit + 1));
            let due_at = self.gathering.due_at();
            let is_due = due_at.is_some_and(|due_at| due_at <= Instant::now());
            let has_place = self.batches.len() < limit as usize;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                pass = self.shared.gate.enter(), if is_due && has_place => self.start(pass),
                Some(finished) = self.batches.join_next() => self.on_finished(finished),
                next = self.consumer.next(), if !self.gathering.is_full() => match next {
                    Some(delivery) => self.take(delivery?)?,
                    None => return Ok(()),
                },
                _ = looks.tick() => self.give_back_older(),
                () = sleep_until(due_at.unwrap_or_else(Instant::now)), if due_at.is_some() && !is_due => {}
            }
        }
    }

    /// Takes a message, and what came with it, as far as a batch has room.
    fn take(&mut self, delivery: Delivery) -> Result<(), Error> {
        let now = Instant::now();
        self.add(delivery, now);
        while !self.gathering.is_full()
            && let Some(Some(delivery)) = self.consumer.next().now_or_never()
        {
            self.add(delivery?, now);
        }
        Ok(())
    }

    fn add(&mut self, delivery: Delivery, now: Instant) {
        self.sizes.note(delivery.body.len());
        self.gathering.add(Held::new(delivery, now), now);
    }

    /// The endpoint is away for long: others may reach it.
    fn give_back_older(&mut self) {
        let Some(than) = Instant::now().checked_sub(self.shared.wait_max) else { return };
        self.gathering.take_older(than).into_iter().for_each(|held| self.shared.give_back(held));
    }

    fn start(&mut self, pass: Pass) {
        let batch = self.gathering.cut(Instant::now());
        self.batches.spawn(deliver(Arc::clone(&self.shared), batch, pass));
    }

    fn on_finished(&mut self, finished: Result<Finished, JoinError>) {
        let finished = match finished {
            Ok(finished) => finished,
            // Only a bug ends a batch so, and then nobody knows what became of its groups.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        for group in &finished.done {
            self.gathering.done(group, Instant::now());
        }
        for group in &finished.returned {
            let returned = self.gathering.returned(group);
            returned.into_iter().for_each(|held| self.shared.give_back(held));
        }
    }

    /// Gives back what waits, and waits for what is under way.
    async fn end(mut self, within: Duration) {
        self.shared.stop.cancel();
        self.consumer.stop();
        self.gathering.drain().into_iter().for_each(|held| self.shared.give_back(held));
        let all = async { while self.batches.join_next().await.is_some() {} };
        if timeout(within, all).await.is_err() {
            tracing::warn!(
                "requests were given up, and their messages back, {} s after the stop",
                within.as_secs()
            );
            self.batches.shutdown().await;
        }
        self.consumer.close().await;
    }
}
