//! What gateways call: the same functions as the gRPC services, on this node, without a hop.
//!
//! ```text
//!   gRPC services ─┐
//!                  ├─▶ services (checks, splits by shard) ─▶ router ─▶ leaders
//!   Service ───────┘
//! ```

use std::sync::Arc;

use leasehold_proto::v1::{
    AckRequest, CreateQueueRequest, DeleteQueueRequest, DescribeQueueResponse, ExtendRequest,
    ListQueuesRequest, ListQueuesResponse, QueueSettings, ReceiveRequest, ReceiveResponse, RedriveProgress,
    SendOutcome, SendRequest, SetQueueRequest, SettleOutcome, StartRedriveRequest,
};

use crate::failure::Failure;
use crate::node::Shell;
use crate::queue_info::QueueInfo;
use crate::services::{self, Counting, Settle};

/// Whether a deletion keeps the queue's name from being used again for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    Forgotten,
    /// Creations with a pause are refused until it is over.
    Remembered,
}

/// A node's services, for gateways in the same process. Every method fails as the call of the protocol does.
#[derive(Clone)]
pub struct Service {
    shell: Arc<Shell>,
}

impl Service {
    pub(crate) fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.shell.config.name
    }

    /// The cluster's id; nothing while the node belongs to none.
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        self.shell.core().ok().map(|core| core.identity.cluster_id)
    }

    /// What this node knows of a queue, without asking its shards.
    pub async fn queue(&self, name: &str) -> Result<QueueInfo, Failure> {
        services::look_up_queue(&*self.shell.core()?, name).await
    }

    pub async fn send(&self, request: &SendRequest) -> Result<Vec<SendOutcome>, Failure> {
        services::send(&*self.shell.core()?, request).await
    }

    /// Dropped before it is done, it leaves no lease behind.
    pub async fn receive(&self, request: &ReceiveRequest) -> Result<ReceiveResponse, Failure> {
        services::receive(&*self.shell.core()?, request).await
    }

    pub async fn ack(&self, request: &AckRequest) -> Result<Vec<SettleOutcome>, Failure> {
        let core = self.shell.core()?;
        let receipts = Settle::Ack(&request.receipts);
        services::settle(&core, &request.queue, receipts, request.request.as_ref()).await
    }

    pub async fn extend(&self, request: &ExtendRequest) -> Result<Vec<SettleOutcome>, Failure> {
        let core = self.shell.core()?;
        let items = Settle::Extend(&request.items);
        services::settle(&core, &request.queue, items, request.request.as_ref()).await
    }

    /// False when a queue with equal settings was there. Within `pause_ms` after a remembered deletion it is `TOO_SOON`.
    pub async fn create_queue(&self, request: CreateQueueRequest, pause_ms: u64) -> Result<bool, Failure> {
        services::create(&*self.shell.core()?, request, pause_ms).await
    }

    /// Settings, counters and redrive of a queue.
    pub async fn describe_queue(&self, name: &str) -> Result<DescribeQueueResponse, Failure> {
        services::describe(&*self.shell.core()?, name, Counting::AllShards).await
    }

    /// As `describe_queue`, from what this node knows, without counters and redrive.
    pub async fn settings_of_queue(&self, name: &str) -> Result<DescribeQueueResponse, Failure> {
        services::describe(&*self.shell.core()?, name, Counting::None).await
    }

    /// `CHANGED` when the queue is not of `if_revision` any more; 0 takes any.
    pub async fn set_queue(
        &self,
        name: &str,
        settings: QueueSettings,
        if_revision: u64,
    ) -> Result<(), Failure> {
        let set = SetQueueRequest { queue: name.to_owned(), settings: Some(settings), request: None };
        services::set(&*self.shell.core()?, set, if_revision).await
    }

    pub async fn list_queues(&self, request: &ListQueuesRequest) -> Result<ListQueuesResponse, Failure> {
        services::list(&*self.shell.core()?, request).await
    }

    /// The queues whose dead-letter queue this is; `request.prefix` is its name.
    pub async fn list_dead_letter_sources(
        &self,
        request: &ListQueuesRequest,
    ) -> Result<ListQueuesResponse, Failure> {
        services::list_sources(&*self.shell.core()?, request).await
    }

    /// With a pause, `TOO_SOON` when the last paced purge is not so long ago.
    pub async fn purge_queue(&self, name: &str, pause_ms: u64) -> Result<(), Failure> {
        services::purge(&*self.shell.core()?, name, pause_ms).await
    }

    pub async fn delete_queue(&self, name: &str, deletion: Deletion) -> Result<(), Failure> {
        let delete = DeleteQueueRequest { queue: name.to_owned(), request: None };
        services::delete(&*self.shell.core()?, delete, deletion).await
    }

    /// The id of the redrive.
    pub async fn start_redrive(&self, request: &StartRedriveRequest) -> Result<u64, Failure> {
        services::start_redrive(&*self.shell.core()?, request).await
    }

    /// How far it had come. `NO_REDRIVE` when the one with this id, or any where none is given, does not run.
    pub async fn cancel_redrive(&self, queue: &str, id: Option<u64>) -> Result<RedriveProgress, Failure> {
        services::cancel_redrive(&*self.shell.core()?, queue, id).await
    }
}
