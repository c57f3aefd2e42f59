//! What all requests share, and what one of them knows of itself.

use bytes::Bytes;
use leasehold_node::config::{Pacing, Sqs};
use leasehold_node::{QueueInfo, Service};
use leasehold_proto::v1::MessageId;
use tokio::sync::watch;

use crate::error::Error;
use crate::hex::Digits;
use crate::limits::PAUSE_MS;
use crate::message_id;
use crate::queue_url::{self, Scheme};
use crate::sessions::Sessions;

/// The gateway of one node.
pub struct Gateway {
    pub service: Service,
    /// Of queue URLs.
    scheme: Scheme,
    pub account_id: String,
    pub region: String,
    /// Of standard queues that clients make.
    pub shards: u32,
    pub pause_ms: u64,
    pub sessions: Sessions,
    /// Tells when the node stops.
    pub stop: watch::Receiver<bool>,
}

impl Gateway {
    pub fn new(service: Service, config: &Sqs, scheme: Scheme, stop: watch::Receiver<bool>) -> Self {
        let pause_ms = match config.pacing {
            Pacing::On => PAUSE_MS,
            Pacing::Off => 0,
        };
        Self {
            service,
            scheme,
            account_id: config.account_id.clone(),
            region: config.region.clone(),
            shards: config.shards,
            pause_ms,
            sessions: Sessions::default(),
            stop,
        }
    }

    /// Completes when the node stops.
    pub async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // A sender that is gone stops the gateway too.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// One request: the gateway, and where the client sent it.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub gateway: &'a Gateway,
    /// As the client wrote it: queue URLs have it too.
    pub host: &'a str,
    pub path: &'a str,
    /// The parameters, as JSON.
    pub request: &'a Bytes,
}

impl<'a> Call<'a> {
    pub fn service(&self) -> &'a Service {
        &self.gateway.service
    }

    /// The queue that the request names, by its parameter or by its path.
    ///
    /// # Errors
    /// `MissingParameter`, `InvalidAddress`, `QueueDoesNotExist`.
    pub fn queue_name<'b>(&self, queue_url: Option<&'b str>) -> Result<&'b str, Error>
    where
        'a: 'b,
    {
        let url = queue_url.unwrap_or(self.path);
        if queue_url.is_none() && url.trim_matches('/').is_empty() {
            return Err(Error::missing("QueueUrl"));
        }
        queue_url::name_of(url, &self.gateway.account_id)
    }

    /// What the node knows of the queue that the request names.
    ///
    /// # Errors
    /// As [`Call::queue_name`].
    pub async fn queue(&self, queue_url: Option<&str>) -> Result<QueueInfo, Error> {
        Ok(self.service().queue(self.queue_name(queue_url)?).await?)
    }

    pub fn queue_url(&self, name: &str) -> String {
        queue_url::text(self.gateway.scheme, self.host, &self.gateway.account_id, name)
    }

    pub fn arn(&self, name: &str) -> String {
        crate::arn::of_queue(&self.gateway.region, &self.gateway.account_id, name)
    }

    pub fn message_id(&self, id: &MessageId) -> Digits<36> {
        let cluster = self.service().cluster_id().unwrap_or_default();
        message_id::text(id, u32::from_le_bytes([cluster[0], cluster[1], cluster[2], cluster[3]]))
    }
}
