//! The service `Messages`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt as _};
use leasehold_catalogue::PartitionId;
use leasehold_proto::peer;
use leasehold_proto::v1::messages_server::Messages;
use leasehold_proto::v1::{
    AckRequest, ExtendRequest, PeekRequest, PeekResponse, Peeked, PublishRequest, PublishResponse,
    PullRequest, PullResponse, Reason, ReceiveRequest, ReceiveResponse, RejectRequest, ReleaseRequest,
    SendRequest, SendResponse, SettleResponse, WhyRequest, WhyResponse,
};
use metrics::{Histogram, Label, histogram};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::pushed::Pushed;
use super::receive::receive;
use super::send::send;
use super::settle::{Settle, settle};
use super::{lookup, publish, pull, validate};
use crate::core::Core;
use crate::failure::Failure;
use crate::limits::RECEIVE_BYTES_MAX;
use crate::node::Shell;
use crate::telemetry::names;

/// Messages of one peek.
const PEEK_MESSAGES: u32 = 10;
const PEEK_MESSAGES_MAX: u32 = 1_000;
/// Answers of a stream that wait for the network.
const ANSWERS_WAITING_MAX: usize = 16;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves messages as a node.
pub struct MessagesService {
    shell: Arc<Shell>,
    send_latency: Histogram,
    receive_latency: Histogram,
}

impl MessagesService {
    pub fn new(shell: Arc<Shell>) -> Self {
        let labels = || vec![Label::new(names::NODE, shell.config.name.clone())];
        let send_latency = histogram!(names::SEND_LATENCY, labels());
        let receive_latency = histogram!(names::RECEIVE_LATENCY, labels());
        Self { shell, send_latency, receive_latency }
    }

    fn core(&self) -> Result<Arc<Core>, Failure> {
        self.shell.core()
    }
}

#[tonic::async_trait]
impl Messages for MessagesService {
    type PublishStream = Answers<PublishResponse>;
    type PullStream = Answers<PullResponse>;

    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        let started = Instant::now();
        let outcomes = send(&*self.core()?, request.get_ref()).await?;
        self.send_latency.record(started.elapsed());
        Ok(Response::new(SendResponse { outcomes }))
    }

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let core = self.core()?;
        let (answers, stream) = mpsc::channel(ANSWERS_WAITING_MAX);
        tokio::spawn(publish::serve(core, request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn receive(&self, request: Request<ReceiveRequest>) -> Result<Response<ReceiveResponse>, Status> {
        let started = Instant::now();
        let received = receive(&*self.core()?, request.get_ref()).await?;
        self.receive_latency.record(started.elapsed());
        Ok(Response::new(received))
    }

    async fn pull(
        &self,
        request: Request<Streaming<PullRequest>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let core = self.core()?;
        let (answers, stream) = mpsc::channel(ANSWERS_WAITING_MAX);
        tokio::spawn(pull::serve(core, request.into_inner(), answers));
        let said = ReceiverStream::new(stream).map(|pushed| pushed.map(Pushed::into_response));
        Ok(Response::new(Box::pin(said)))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<SettleResponse>, Status> {
        let AckRequest { queue, receipts, request } = request.into_inner();
        let outcomes = settle(&*self.core()?, &queue, Settle::Ack(&receipts), request.as_ref()).await?;
        Ok(Response::new(SettleResponse { outcomes }))
    }

    async fn extend(&self, request: Request<ExtendRequest>) -> Result<Response<SettleResponse>, Status> {
        let ExtendRequest { queue, items, request } = request.into_inner();
        let outcomes = settle(&*self.core()?, &queue, Settle::Extend(&items), request.as_ref()).await?;
        Ok(Response::new(SettleResponse { outcomes }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<SettleResponse>, Status> {
        let ReleaseRequest { queue, items, request } = request.into_inner();
        let outcomes = settle(&*self.core()?, &queue, Settle::Release(&items), request.as_ref()).await?;
        Ok(Response::new(SettleResponse { outcomes }))
    }

    async fn reject(&self, request: Request<RejectRequest>) -> Result<Response<SettleResponse>, Status> {
        let RejectRequest { queue, items, request } = request.into_inner();
        let outcomes = settle(&*self.core()?, &queue, Settle::Reject(&items), request.as_ref()).await?;
        Ok(Response::new(SettleResponse { outcomes }))
    }

    async fn peek(&self, request: Request<PeekRequest>) -> Result<Response<PeekResponse>, Status> {
        let core = self.core()?;
        let request = request.into_inner();
        if request.messages_max > PEEK_MESSAGES_MAX {
            let asked = request.messages_max;
            return Err(validate::invalid(format!(
                "messages_max is {asked}: it can be 1 to {PEEK_MESSAGES_MAX}"
            ))
            .into());
        }
        let wanted = if request.messages_max == 0 { PEEK_MESSAGES } else { request.messages_max };
        let queue = lookup::queue(&core, &request.queue).await?;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for shard in queue.shards() {
            let messages_max = wanted - messages.len() as u32;
            if messages_max == 0 || bytes >= RECEIVE_BYTES_MAX {
                break;
            }
            let found = core.router.ask(shard, peer::Peek { queue: queue.id().0, messages_max }).await?;
            let fits = |message: &Peeked| {
                let is_first = bytes == 0;
                bytes += message.encoded_len() as u64;
                is_first || bytes <= RECEIVE_BYTES_MAX
            };
            messages.extend(found.messages.into_iter().take_while(fits));
        }
        Ok(Response::new(PeekResponse { messages }))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        let core = self.core()?;
        let request = request.into_inner();
        let id = request
            .id
            .ok_or_else(|| validate::invalid("`id` is missing: give the partition and the sequence"))?;
        let queue = lookup::queue(&core, &request.queue).await?;
        let shard = PartitionId(id.partition);
        if !queue.has_shard_on(shard) {
            let detail = format!("queue {} has no shard on partition {}", queue.name(), id.partition);
            return Err(Failure::not_done(Reason::UnknownPartition, detail).into());
        }
        let why = peer::Why { queue: queue.id().0, sequence: id.sequence };
        Ok(Response::new(core.router.ask(shard, why).await?))
    }
}
