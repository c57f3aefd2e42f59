//! The service `Queues`.

use std::sync::Arc;

use leasehold_proto::v1::queues_server::Queues;
use leasehold_proto::v1::{
    CancelRedriveRequest, CancelRedriveResponse, CreateQueueRequest, CreateQueueResponse, DeleteQueueRequest,
    DeleteQueueResponse, DescribeQueueRequest, DescribeQueueResponse, ListQueuesRequest, ListQueuesResponse,
    PurgeQueueRequest, PurgeQueueResponse, SetQueueRequest, SetQueueResponse, StartRedriveRequest,
    StartRedriveResponse,
};
use tonic::{Request, Response, Status};

use super::describe::{Counting, describe};
use super::{queue_changes, redrive};
use crate::core::Core;
use crate::failure::Failure;
use crate::node::Shell;
use crate::service::Deletion;

/// Serves queues as a node. Its callers keep no pause between what they do.
pub struct QueuesService {
    shell: Arc<Shell>,
}

impl QueuesService {
    pub fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }

    fn core(&self) -> Result<Arc<Core>, Failure> {
        self.shell.core()
    }
}

#[tonic::async_trait]
impl Queues for QueuesService {
    async fn create_queue(
        &self,
        request: Request<CreateQueueRequest>,
    ) -> Result<Response<CreateQueueResponse>, Status> {
        let created = queue_changes::create(&*self.core()?, request.into_inner(), 0).await?;
        Ok(Response::new(CreateQueueResponse { created }))
    }

    async fn describe_queue(
        &self,
        request: Request<DescribeQueueRequest>,
    ) -> Result<Response<DescribeQueueResponse>, Status> {
        let described = describe(&*self.core()?, &request.get_ref().queue, Counting::AllShards).await?;
        Ok(Response::new(described))
    }

    async fn list_queues(
        &self,
        request: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        Ok(Response::new(queue_changes::list(&*self.core()?, request.get_ref()).await?))
    }

    async fn set_queue(
        &self,
        request: Request<SetQueueRequest>,
    ) -> Result<Response<SetQueueResponse>, Status> {
        queue_changes::set(&*self.core()?, request.into_inner(), 0).await?;
        Ok(Response::new(SetQueueResponse {}))
    }

    async fn purge_queue(
        &self,
        request: Request<PurgeQueueRequest>,
    ) -> Result<Response<PurgeQueueResponse>, Status> {
        queue_changes::purge(&*self.core()?, &request.get_ref().queue, 0).await?;
        Ok(Response::new(PurgeQueueResponse {}))
    }

    async fn delete_queue(
        &self,
        request: Request<DeleteQueueRequest>,
    ) -> Result<Response<DeleteQueueResponse>, Status> {
        queue_changes::delete(&*self.core()?, request.into_inner(), Deletion::Forgotten).await?;
        Ok(Response::new(DeleteQueueResponse {}))
    }

    async fn start_redrive(
        &self,
        request: Request<StartRedriveRequest>,
    ) -> Result<Response<StartRedriveResponse>, Status> {
        redrive::start(&*self.core()?, request.get_ref()).await?;
        Ok(Response::new(StartRedriveResponse {}))
    }

    async fn cancel_redrive(
        &self,
        request: Request<CancelRedriveRequest>,
    ) -> Result<Response<CancelRedriveResponse>, Status> {
        redrive::cancel(&*self.core()?, &request.get_ref().queue, None).await?;
        Ok(Response::new(CancelRedriveResponse {}))
    }
}
