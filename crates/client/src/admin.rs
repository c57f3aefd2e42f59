//! Queues and the cluster, for operators and for programs that set themselves up.

use std::future::Future;
use std::time::Duration;

use futures::{Stream, StreamExt};
use leasehold_proto::v1::{
    AddNodeRequest, BackupChunk, BackupRequest, CancelRedriveRequest, CreateQueueRequest, DeleteQueueRequest,
    DescribeQueueRequest, DescribeQueueResponse, DigestsRequest, DigestsResponse, HoldTransfersRequest,
    HoldTransfersResponse, InitNode, InitRequest, ListQueuesRequest, ListQueuesResponse, PurgeQueueRequest,
    QueueSettings, RemoveNodeRequest, RestoreChunk, RoutesRequest, RoutesResponse, SetQueueRequest,
    StartRedriveRequest, StatusRequest, StatusResponse, TransferLeaderRequest,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::call::{Attempts, Repeat};
use crate::client::{cluster, queues};
use crate::{Client, Error};

/// Queues. Each method fails with `UnknownQueue` where the queue has to exist.
impl Client {
    /// Creates a queue over `shards` partitions (0 means 1); false when one with equal settings was there already.
    ///
    /// ```no_run
    /// use leasehold_client::QueueSettings;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let settings = QueueSettings { lease_ms: Some(60_000), ..QueueSettings::default() };
    /// let is_new = client.create_queue("emails", settings, 4).await?;
    /// println!("{is_new}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `QueueExists` when its settings differ, `InvalidArgument`.
    pub async fn create_queue(
        &self,
        queue: &str,
        settings: QueueSettings,
        shards: u32,
    ) -> Result<bool, Error> {
        let attempts = Attempts::new(self, None, Repeat::Safe, Duration::ZERO);
        let request = attempts.begin(self.changes()).await?;
        let wire = CreateQueueRequest {
            queue: queue.to_owned(),
            settings: Some(settings),
            shards,
            request: Some(request.id()),
        };
        let answer =
            self.ask_in(attempts, wire, async |channel, wire| queues(channel).create_queue(wire).await);
        Ok(answer.await?.created)
    }

    /// Settings, counters, shards and the progress of a redrive.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let described = client.describe_queue("emails").await?;
    /// println!("{:?}", described.counters.unwrap_or_default().ready);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came, or the queue is unknown.
    pub async fn describe_queue(&self, queue: &str) -> Result<DescribeQueueResponse, Error> {
        let wire = DescribeQueueRequest { queue: queue.to_owned() };
        self.ask(Repeat::Safe, wire, async |channel, wire| queues(channel).describe_queue(wire).await).await
    }

    /// Names from `after` on, up to `queues_max` (1 to 1,000; 0 means 1,000).
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// for name in client.list_queues("mail-", 0, "").await?.queues {
    ///     println!("{name}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came.
    pub async fn list_queues(
        &self,
        prefix: &str,
        queues_max: u32,
        after: &str,
    ) -> Result<ListQueuesResponse, Error> {
        let wire = ListQueuesRequest { prefix: prefix.to_owned(), queues_max, after: after.to_owned() };
        self.ask(Repeat::Safe, wire, async |channel, wire| queues(channel).list_queues(wire).await).await
    }

    /// Changes the settings that are present.
    ///
    /// ```no_run
    /// use leasehold_client::QueueSettings;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let longer = QueueSettings { lease_ms: Some(120_000), ..QueueSettings::default() };
    /// client.set_queue("emails", longer).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument`, or when the queue is unknown.
    pub async fn set_queue(&self, queue: &str, settings: QueueSettings) -> Result<(), Error> {
        let attempts = Attempts::new(self, None, Repeat::Safe, Duration::ZERO);
        let request = attempts.begin(self.changes()).await?;
        let wire = SetQueueRequest {
            queue: queue.to_owned(),
            settings: Some(settings),
            request: Some(request.id()),
        };
        self.ask_in(attempts, wire, async |channel, wire| queues(channel).set_queue(wire).await).await?;
        Ok(())
    }

    /// Removes every message of the queue, leased ones too.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.purge_queue("emails").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the queue is unknown. Not tried again after `Unknown`, since messages sent meanwhile would go too.
    pub async fn purge_queue(&self, queue: &str) -> Result<(), Error> {
        let wire = PurgeQueueRequest { queue: queue.to_owned() };
        self.ask(Repeat::Unsafe, wire, async |channel, wire| queues(channel).purge_queue(wire).await).await?;
        Ok(())
    }

    /// Removes the queue and its messages.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.delete_queue("emails").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the queue is unknown. Not tried again after `Unknown`.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), Error> {
        let attempts = Attempts::new(self, None, Repeat::Unsafe, Duration::ZERO);
        let request = attempts.begin(self.changes()).await?;
        let wire = DeleteQueueRequest { queue: queue.to_owned(), request: Some(request.id()) };
        self.ask_in(attempts, wire, async |channel, wire| queues(channel).delete_queue(wire).await).await?;
        Ok(())
    }

    /// Moves the messages of a dead-letter queue to `target`, or each to where it came from; `rate_per_s` 0 means as fast as
    /// it goes.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.start_redrive("dead-emails", None, 100).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `RedriveRunning`, or when a queue is unknown. Not tried again after `Unknown`.
    pub async fn start_redrive(
        &self,
        queue: &str,
        target: Option<&str>,
        rate_per_s: u32,
    ) -> Result<(), Error> {
        let target = target.unwrap_or_default().to_owned();
        let wire = StartRedriveRequest { queue: queue.to_owned(), target, rate_per_s };
        self.ask(Repeat::Unsafe, wire, async |channel, wire| queues(channel).start_redrive(wire).await)
            .await?;
        Ok(())
    }

    /// Stops a redrive; what was moved stays moved.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.cancel_redrive("dead-emails").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NoRedrive`, or when the queue is unknown. Not tried again after `Unknown`.
    pub async fn cancel_redrive(&self, queue: &str) -> Result<(), Error> {
        let wire = CancelRedriveRequest { queue: queue.to_owned() };
        self.ask(Repeat::Unsafe, wire, async |channel, wire| queues(channel).cancel_redrive(wire).await)
            .await?;
        Ok(())
    }
}

/// The cluster.
impl Client {
    /// Founds a cluster of empty nodes and returns its id. `partitions` 0 means 16, `replication` 0 means 3, or 1 for fewer
    /// than three nodes.
    ///
    /// ```no_run
    /// use leasehold_client::v1::InitNode;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let node = InitNode { name: "n1".into(), peer_address: "127.0.0.1:7500".into() };
    /// let cluster_id = client.init_cluster(vec![node], 8, 1).await?;
    /// println!("{cluster_id}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `AlreadyInitialised`, `InvalidArgument`. Not tried again after `Unknown`.
    pub async fn init_cluster(
        &self,
        nodes: Vec<InitNode>,
        partitions: u32,
        replication: u32,
    ) -> Result<String, Error> {
        let wire = InitRequest { nodes, partitions, replication };
        let answer = self.ask(Repeat::Unsafe, wire, async |channel, wire| cluster(channel).init(wire).await);
        Ok(answer.await?.cluster_id)
    }

    /// Nodes and partitions, as one node sees them.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// for node in client.cluster_status().await?.nodes {
    ///     println!("{}: {}", node.name, node.reachable);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came.
    pub async fn cluster_status(&self) -> Result<StatusResponse, Error> {
        self.ask(Repeat::Safe, StatusRequest {}, async |channel, wire| cluster(channel).status(wire).await)
            .await
    }

    /// What the replicas of the node that answers hold. Give the client one endpoint to ask that node.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// println!("{:?}", client.digests().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came.
    pub async fn digests(&self) -> Result<DigestsResponse, Error> {
        self.ask(Repeat::Safe, DigestsRequest {}, async |channel, wire| cluster(channel).digests(wire).await)
            .await
    }

    /// Lets no message move between queues where the node that answers leads, and says what it leads. Give the client one endpoint.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// println!("{:?}", client.hold_transfers().await?.partitions);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came.
    pub async fn hold_transfers(&self) -> Result<HoldTransfersResponse, Error> {
        self.ask(Repeat::Safe, HoldTransfersRequest {}, async |channel, wire| {
            cluster(channel).hold_transfers(wire).await
        })
        .await
    }

    /// A copy of a partition, or of the catalogue, for a backup. The command `leasehold backup take` puts a whole one together.
    ///
    /// ```no_run
    /// use futures::StreamExt;
    /// use leasehold_client::v1::BackupRequest;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let mut chunks = client.copy(BackupRequest::default()).await?;
    /// while let Some(chunk) = chunks.next().await {
    ///     println!("{} bytes", chunk?.record.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NoLeader` and `Changed` when the backup is to begin again. Not tried again.
    pub async fn copy(
        &self,
        request: BackupRequest,
    ) -> Result<impl Stream<Item = Result<BackupChunk, Error>> + Unpin + use<>, Error> {
        let channel = self.channels().channel(&self.address_for(None).await)?;
        let chunks = cluster(channel).backup(request).await?.into_inner();
        Ok(chunks.map(|chunk| chunk.map_err(Error::from)))
    }

    /// Founds a cluster from a backup, or restores one of its partitions; returns the cluster's id. The command
    /// `leasehold cluster init --restore` does all of it.
    ///
    /// ```no_run
    /// use leasehold_client::v1::{InitRequest, RestoreChunk, restore_chunk::Target};
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let first = RestoreChunk { target: Some(Target::Found(InitRequest::default())), ..RestoreChunk::default() };
    /// println!("{}", client.restore(futures::stream::iter([first])).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `AlreadyInitialised`, `InvalidArgument`, and when the copy is damaged. Not tried again.
    pub async fn restore(
        &self,
        chunks: impl Stream<Item = RestoreChunk> + Send + 'static,
    ) -> Result<String, Error> {
        let channel = self.channels().channel(&self.address_for(None).await)?;
        Ok(cluster(channel).restore(chunks).await?.into_inner().cluster_id)
    }

    /// Adds an empty node and returns its id.
    ///
    /// ```no_run
    /// use leasehold_client::v1::InitNode;
    ///
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// let node = InitNode { name: "n4".into(), peer_address: "10.0.0.4:7500".into() };
    /// println!("{}", client.add_node(node).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument`. Not tried again after `Unknown`.
    pub async fn add_node(&self, node: InitNode) -> Result<u64, Error> {
        let wire = AddNodeRequest { node: Some(node) };
        let answer =
            self.ask(Repeat::Unsafe, wire, async |channel, wire| cluster(channel).add_node(wire).await);
        Ok(answer.await?.id)
    }

    /// Moves every replica off the node, then forgets it.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.remove_node("n4").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `UnknownNode`. Not tried again after `Unknown`.
    pub async fn remove_node(&self, name: &str) -> Result<(), Error> {
        let wire = RemoveNodeRequest { name: name.to_owned() };
        self.ask(Repeat::Unsafe, wire, async |channel, wire| cluster(channel).remove_node(wire).await)
            .await?;
        Ok(())
    }

    /// Makes the named node lead a partition.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// client.transfer_leader(3, "n2").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `UnknownNode`, `UnknownPartition`.
    pub async fn transfer_leader(&self, partition: u32, node: &str) -> Result<(), Error> {
        let wire = TransferLeaderRequest { partition, node: node.to_owned() };
        self.ask(Repeat::Safe, wire, async |channel, wire| cluster(channel).transfer_leader(wire).await)
            .await?;
        Ok(())
    }

    /// Where the shards of a queue are led at this moment. Sends and receives look this up by themselves.
    ///
    /// ```no_run
    /// # async fn example(client: leasehold_client::Client) -> Result<(), leasehold_client::Error> {
    /// println!("{:?}", client.routes("emails").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When no answer came, or the queue is unknown.
    pub async fn routes(&self, queue: &str) -> Result<RoutesResponse, Error> {
        let wire = RoutesRequest { queue: queue.to_owned() };
        self.ask(Repeat::Safe, wire, async |channel, wire| cluster(channel).routes(wire).await).await
    }

    async fn ask<W: Clone, T, F>(
        &self,
        repeat: Repeat,
        wire: W,
        call: impl Fn(Channel, W) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_in(Attempts::new(self, None, repeat, Duration::ZERO), wire, call).await
    }

    async fn ask_in<W: Clone, T, F>(
        &self,
        attempts: Attempts<'_>,
        wire: W,
        call: impl Fn(Channel, W) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(attempts, |channel| call(channel, wire.clone())).await
    }
}
