//! The contents of messages: from the log's cache, from its disk, or, when that does not give them back, from another replica.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use leasehold_catalogue::{NodeId, PartitionId};
use leasehold_partition::ContentRef;
use leasehold_proto::peer::{self, query::Kind};
use leasehold_proto::v1::Reason;
use leasehold_raft_log::{Log, ReadError};
use prost::Message as _;
use tokio::time::timeout;

use crate::cluster::ClusterView;
use crate::disk;
use crate::failure::Failure;
use crate::lane::{FrameKind, Lanes};
use crate::replica::group_of;
use crate::router::ask_node;

/// How long other replicas may take to give a content back.
const ASK_PATIENCE: Duration = Duration::from_secs(1);

/// Where contents are read.
#[derive(Clone)]
pub struct Contents {
    pub log: Log,
    pub view: Arc<ClusterView>,
    pub lanes: Arc<Lanes>,
}

impl Contents {
    /// Reads a content from wherever it is sound: all replicas have it at the same place of the same entry.
    ///
    /// # Errors
    /// `NODE_FAILED` when nobody can give it back.
    pub async fn read(&self, partition: PartitionId, at: ContentRef) -> Result<Bytes, Failure> {
        let group = group_of(partition);
        if let Some(bytes) = self.log.try_read_cached(group, at.log_index, at.offset, at.len) {
            return Ok(bytes);
        }
        let error = match self.read_disk(partition, at).await? {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        // What was settled meanwhile is nowhere.
        let is_wanted = || self.log.refers_to(group, at.log_index, at.offset, at.len);
        if matches!(error, ReadError::Missing { .. }) && !is_wanted() {
            return Err(failed(&error));
        }
        tracing::error!(group = group.0, index = at.log_index, %error, "a message's content cannot be read");
        let elsewhere = timeout(ASK_PATIENCE, self.read_elsewhere(partition, at)).await;
        elsewhere.ok().flatten().ok_or_else(|| failed(&error))
    }

    /// Reads a content for another node, from this one alone.
    ///
    /// # Errors
    /// `NODE_FAILED` when it is not here, or not sound.
    pub async fn read_here(
        &self,
        partition: PartitionId,
        wanted: peer::ReadContent,
    ) -> Result<peer::Content, Failure> {
        let peer::ReadContent { log_index, offset, len } = wanted;
        let read = self.read_disk(partition, ContentRef { log_index, offset, len }).await?;
        read.map(|bytes| peer::Content { bytes }).map_err(|error| failed(&error))
    }

    /// Through the cache, on a thread that may wait.
    async fn read_disk(
        &self,
        partition: PartitionId,
        at: ContentRef,
    ) -> Result<Result<Bytes, ReadError>, Failure> {
        let group = group_of(partition);
        disk::read(&self.log, move |log| log.read_content(group, at.log_index, at.offset, at.len))
            .await
            .map_err(|error| Failure::try_again(Reason::Stopping, error.to_string()))
    }

    /// Asks all others at once: one of them may be silent.
    async fn read_elsewhere(&self, partition: PartitionId, at: ContentRef) -> Option<Bytes> {
        let others = self.view.nodes_of(partition).into_iter().filter(|node| *node != self.view.here());
        let mut answers =
            others.map(|node| self.ask_for(node, partition, at)).collect::<FuturesUnordered<_>>();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(bytes) => return Some(bytes),
                Err(failure) => tracing::debug!(%failure, "another replica does not have it either"),
            }
        }
        None
    }

    async fn ask_for(&self, node: NodeId, partition: PartitionId, at: ContentRef) -> Result<Bytes, Failure> {
        let ContentRef { log_index, offset, len } = at;
        let query =
            peer::Query { kind: Some(Kind::ReadContent(peer::ReadContent { log_index, offset, len })) };
        let body = query.encode_to_vec().into();
        let answer = ask_node(&self.view, &self.lanes, node, FrameKind::Query, partition, body).await?;
        let bytes = peer::Content::decode(answer).map(|content| content.bytes).unwrap_or_default();
        if bytes.len() == len as usize {
            return Ok(bytes);
        }
        Err(Failure::try_again(Reason::NodeFailed, "the answer is not the content that was asked for"))
    }
}

fn failed(error: &ReadError) -> Failure {
    Failure::try_again(Reason::NodeFailed, error.to_string())
}
