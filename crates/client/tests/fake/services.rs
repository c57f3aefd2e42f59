//! The services of the fake node.

use std::pin::Pin;
use std::sync::Arc;

use leasehold_client::v1::cluster_server::Cluster;
use leasehold_client::v1::messages_server::Messages;
use leasehold_client::v1::pull_request::Kind;
use leasehold_client::v1::queues_server::Queues;
use leasehold_client::v1::{self, *};
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Fault, Shared, refusal};

#[derive(Clone)]
pub struct Service {
    pub address: String,
    pub shared: Arc<Shared>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// A passing refusal has a hint, as the node's has.
    fn check(&self, fault: Option<Fault>) -> Result<(), Status> {
        match fault {
            Some(Fault::Refuse(reason)) => {
                let passes = matches!(reason, Reason::Busy | Reason::NoLeader | Reason::Stopping);
                Err(refusal(reason, Outcome::NotDone, if passes { 5 } else { 0 }))
            }
            _ => Ok(()),
        }
    }

    fn check_member(&self) -> Result<(), Status> {
        if self.shared.state().is_outside {
            return Err(refusal(Reason::NotInitialised, Outcome::NotDone, 0));
        }
        Ok(())
    }

    fn settled(&self, settle: &PullSettle) -> PullSettled {
        let acks = settle.acks.iter();
        let extends = settle.extends.iter().map(|item| &item.receipt);
        let releases = settle.releases.iter().map(|item| &item.receipt);
        let receipts = acks.chain(extends).chain(releases);
        let settled = receipts.map(|receipt| self.shared.settle(receipt));
        let rejected = settle.rejects.iter().map(|item| self.shared.reject(&item.receipt));
        let outcomes = settled.chain(rejected).collect();
        PullSettled { tag: settle.tag, outcomes, error: None }
    }

    /// What is there goes together, as a grant does.
    async fn push(&self, credit: &mut u64, answers: &Sender<Result<PullResponse, Status>>) {
        let deliveries = {
            let state = &mut *self.shared.state();
            let count = state.to_push.len().min(usize::try_from(*credit).unwrap_or(usize::MAX));
            state.pushed += count;
            state.to_push.drain(..count).collect::<Vec<_>>()
        };
        if !deliveries.is_empty() {
            *credit -= deliveries.len() as u64;
            let kind = pull_response::Kind::Deliveries(Deliveries { deliveries, leased_ms: None });
            let _ = answers.send(Ok(PullResponse { kind: Some(kind) })).await;
        }
    }

    /// False when the stream is to be reset.
    async fn on_pull(
        &self,
        kind: Kind,
        credit: &mut u64,
        answers: &Sender<Result<PullResponse, Status>>,
    ) -> bool {
        match kind {
            Kind::Start(start) => {
                if start.queue == "unknown" {
                    let status = refusal(Reason::UnknownQueue, Outcome::NotDone, 0);
                    let _ = answers.send(Err(status)).await;
                }
                self.shared.state().starts.push((self.address.clone(), start));
            }
            Kind::Credit(more) => {
                *credit += more.messages;
                self.shared.state().credit += more.messages;
            }
            Kind::Settle(settle) => {
                self.shared.state().settles.push(settle.clone());
                if let Some(Fault::LoseAnswer) = self.shared.next_fault() {
                    return false;
                }
                let kind = pull_response::Kind::Settled(self.settled(&settle));
                let _ = answers.send(Ok(PullResponse { kind: Some(kind) })).await;
            }
        }
        true
    }

    async fn serve_pull(
        self,
        mut requests: Streaming<PullRequest>,
        answers: Sender<Result<PullResponse, Status>>,
    ) {
        let (mut pushes, mut resets) = (self.shared.push.subscribe(), self.shared.reset.subscribe());
        let mut ends = self.shared.end.subscribe();
        let mut credit = 0;
        loop {
            self.push(&mut credit, &answers).await;
            let is_kept = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(PullRequest { kind: Some(kind) })) => self.on_pull(kind, &mut credit, &answers).await,
                    _ => return,
                },
                _ = pushes.changed() => true,
                _ = resets.changed() => false,
                _ = ends.changed() => return,
            };
            if !is_kept {
                let _ = answers.send(Err(Status::unavailable("reset"))).await;
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl Messages for Service {
    type PublishStream = Answers<PublishResponse>;
    type PullStream = Answers<PullResponse>;

    async fn send(&self, request: Request<SendRequest>) -> Answer<SendResponse> {
        self.check_member()?;
        let send = request.into_inner();
        self.shared.state().sends.push(send.clone());
        let fault = self.shared.next_fault();
        self.check(fault)?;
        let outcomes = self.shared.store(&send, fault);
        match fault {
            Some(Fault::LoseAnswer) => Err(Status::unavailable("reset")),
            _ => Ok(Response::new(SendResponse { outcomes })),
        }
    }

    async fn publish(&self, request: Request<Streaming<PublishRequest>>) -> Answer<Self::PublishStream> {
        self.check_member()?;
        let mut requests = request.into_inner();
        let (answers, stream) = channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let send = request.send.unwrap();
                service.shared.state().sends.push(send.clone());
                let fault = service.shared.next_fault();
                let mut answer = PublishResponse { tag: request.tag, ..Default::default() };
                match fault {
                    Some(Fault::Refuse(reason)) => {
                        let outcome = Outcome::NotDone.into();
                        let reason = reason.into();
                        answer.error =
                            Some(CallError { outcome, reason, retry_after_ms: 5, ..Default::default() });
                    }
                    _ => answer.outcomes = service.shared.store(&send, fault),
                }
                if matches!(fault, Some(Fault::LoseAnswer)) {
                    let _ = answers.send(Err(Status::unavailable("reset"))).await;
                    return;
                }
                let _ = answers.send(Ok(answer)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn receive(&self, _: Request<ReceiveRequest>) -> Answer<ReceiveResponse> {
        self.shared.state().receives += 1;
        self.check(self.shared.next_fault())?;
        let deliveries = self.shared.state().to_push.drain(..).collect();
        Ok(Response::new(ReceiveResponse { deliveries, waited_ms: 0 }))
    }

    async fn pull(&self, request: Request<Streaming<PullRequest>>) -> Answer<Self::PullStream> {
        self.check_member()?;
        let (answers, stream) = channel(64);
        tokio::spawn(self.clone().serve_pull(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Answer<SettleResponse> {
        let receipts = request.into_inner().receipts;
        let outcomes = receipts.iter().map(|receipt| self.shared.settle(receipt)).collect();
        Ok(Response::new(SettleResponse { outcomes }))
    }

    async fn extend(&self, _: Request<ExtendRequest>) -> Answer<SettleResponse> {
        Err(Status::unimplemented(""))
    }

    async fn release(&self, _: Request<ReleaseRequest>) -> Answer<SettleResponse> {
        Err(Status::unimplemented(""))
    }

    async fn reject(&self, _: Request<RejectRequest>) -> Answer<SettleResponse> {
        Err(Status::unimplemented(""))
    }

    async fn peek(&self, _: Request<PeekRequest>) -> Answer<PeekResponse> {
        Err(Status::unimplemented(""))
    }

    async fn why(&self, _: Request<WhyRequest>) -> Answer<WhyResponse> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Queues for Service {
    async fn create_queue(&self, _: Request<CreateQueueRequest>) -> Answer<CreateQueueResponse> {
        self.check_member()?;
        Ok(Response::new(CreateQueueResponse { created: true }))
    }

    async fn describe_queue(&self, _: Request<DescribeQueueRequest>) -> Answer<DescribeQueueResponse> {
        self.check(self.shared.next_fault())?;
        Ok(Response::new(Default::default()))
    }

    async fn list_queues(&self, _: Request<ListQueuesRequest>) -> Answer<ListQueuesResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn set_queue(&self, _: Request<SetQueueRequest>) -> Answer<SetQueueResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn purge_queue(&self, _: Request<PurgeQueueRequest>) -> Answer<PurgeQueueResponse> {
        let fault = self.shared.next_fault();
        self.check(fault)?;
        self.shared.state().purges += 1;
        match fault {
            Some(Fault::LoseAnswer) => Err(Status::unavailable("reset")),
            _ => Ok(Response::new(Default::default())),
        }
    }

    async fn delete_queue(&self, _: Request<DeleteQueueRequest>) -> Answer<DeleteQueueResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn start_redrive(&self, _: Request<StartRedriveRequest>) -> Answer<StartRedriveResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn cancel_redrive(&self, _: Request<CancelRedriveRequest>) -> Answer<CancelRedriveResponse> {
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn init(&self, _: Request<InitRequest>) -> Answer<InitResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        Ok(Response::new(StatusResponse { node: self.address.clone(), ..Default::default() }))
    }

    async fn add_node(&self, _: Request<AddNodeRequest>) -> Answer<AddNodeResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn remove_node(&self, _: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn transfer_leader(&self, _: Request<TransferLeaderRequest>) -> Answer<TransferLeaderResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn digests(&self, _: Request<DigestsRequest>) -> Answer<DigestsResponse> {
        Ok(Response::new(DigestsResponse { node: self.address.clone(), ..Default::default() }))
    }

    async fn hold_transfers(&self, _: Request<HoldTransfersRequest>) -> Answer<HoldTransfersResponse> {
        Ok(Response::new(Default::default()))
    }

    type BackupStream = Answers<BackupChunk>;

    async fn backup(&self, _: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        Err(Status::unimplemented("nothing to copy"))
    }

    async fn restore(&self, _: Request<Streaming<RestoreChunk>>) -> Answer<RestoreResponse> {
        Err(Status::unimplemented("nothing to restore into"))
    }

    async fn routes(&self, _: Request<RoutesRequest>) -> Answer<v1::RoutesResponse> {
        let routes = self.shared.state().routes.clone();
        routes.map(Response::new).ok_or_else(|| Status::unimplemented("no routes"))
    }
}
