//! One queue of a cluster, as producers and consumers start from it.

use std::sync::Arc;

use crate::{Client, ConsumerBuilder, ProducerBuilder};

/// A queue by its name; nothing is asked of the cluster before it is used.
///
/// ```no_run
/// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
/// let queue = client.queue("emails");
/// let producer = queue.producer().start();
/// producer.send(format!("to {}", queue.name())).await?;
/// let deliveries = queue.consumer().start();
/// # deliveries.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Queue {
    client: Client,
    name: Arc<str>,
}

impl Client {
    /// The queue of that name.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), leasehold_client::Error> {
    /// let client = leasehold_client::Client::connect(["127.0.0.1:7400"])?;
    /// assert_eq!(client.queue("emails").name(), "emails");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn queue(&self, name: impl Into<Arc<str>>) -> Queue {
        Queue { client: self.clone(), name: name.into() }
    }
}

impl Queue {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A producer: set it up and [`ProducerBuilder::start`] it.
    #[must_use]
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.client.clone(), self.name.to_string())
    }

    /// A consumer: set it up and [`ConsumerBuilder::run`] a handler, or [`ConsumerBuilder::start`] a stream of deliveries.
    #[must_use]
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(self.client.clone(), self.name.to_string())
    }
}
