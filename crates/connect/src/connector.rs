//! Takes messages, makes batches of them, and starts each when the gate lets it through.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use leasehold_client::{CancellationToken, Client, Consumer, Delivery, Error};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::answer::Rules;
use crate::endpoint::Endpoint;
use crate::gate::{Gate, Pass};
use crate::gathering::{Gathering, Limits};
use crate::request::Source;
use crate::work::{Finished, Shared, deliver};
use crate::{Invalid, Numbers, Settings};

/// How long a message may be in hand, whatever the endpoint does: its lease is kept as long, and then it is another's.
const KEEP_FOR: Duration = Duration::from_secs(60 * 60);

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
            stop: self.stop,
        });
        let mut running =
            Running { shared, consumer, limits, gathering: Gathering::new(limits), batches: JoinSet::new() };
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
        let batch = u32::try_from(self.settings.batch()).unwrap_or(u32::MAX);
        let builder = self.client.queue(self.settings.queue.as_str()).consumer();
        let builder = builder
            .concurrency(batch.saturating_mul(self.gate.limit()))
            .buffer(batch)
            .name(&self.settings.name)
            .keep_leases_for(KEEP_FOR)
            .stop_on(self.stop.clone());
        match self.settings.lease {
            Some(lease) => builder.lease(lease).start(),
            None => builder.start(),
        }
    }
}

struct Running {
    shared: Arc<Shared>,
    consumer: Consumer,
    limits: Limits,
    gathering: Gathering<Delivery>,
    /// Those under way.
    batches: JoinSet<Finished>,
}

impl Running {
    async fn run(&mut self) -> Result<(), Error> {
        let stop = self.shared.stop.clone();
        loop {
            let limit = self.shared.gate.limit();
            self.consumer.set_concurrency(limit.saturating_mul(self.limits.messages as u32));
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
                () = sleep_until(due_at.unwrap_or_else(Instant::now)), if due_at.is_some() && !is_due => {}
            }
        }
    }

    /// Takes a message, and what came with it, as far as a batch has room.
    fn take(&mut self, delivery: Delivery) -> Result<(), Error> {
        let now = Instant::now();
        self.gathering.add(delivery, now);
        while !self.gathering.is_full()
            && let Some(Some(delivery)) = self.consumer.next().now_or_never()
        {
            self.gathering.add(delivery?, now);
        }
        Ok(())
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
            returned.into_iter().for_each(|delivery| self.shared.give_back(delivery));
        }
    }

    /// Gives back what waits, and waits for what is under way.
    async fn end(mut self, within: Duration) {
        self.shared.stop.cancel();
        self.consumer.stop();
        self.gathering.drain().into_iter().for_each(|delivery| self.shared.give_back(delivery));
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
