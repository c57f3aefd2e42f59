//! The service `Queues`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use leasehold_catalogue::{self as catalogue, CreateQueue, DeleteQueue, Kind, QueueChange, Reply, SetQueue};
use leasehold_partition::{self as partition, Command};
use leasehold_proto::peer;
use leasehold_proto::v1::queues_server::Queues;
use leasehold_proto::v1::{
    CancelRedriveRequest, CancelRedriveResponse, CreateQueueRequest, CreateQueueResponse, DeleteQueueRequest,
    DeleteQueueResponse, DescribeQueueRequest, DescribeQueueResponse, ListQueuesRequest, ListQueuesResponse,
    PurgeQueueRequest, PurgeQueueResponse, QueueCounters, QueueSettings, RedriveProgress, SetQueueRequest,
    SetQueueResponse, ShardDescription, StartRedriveRequest, StartRedriveResponse,
};
use tonic::{Request, Response, Status};

use super::{lookup, validate};
use crate::cluster::QueueInfo;
use crate::core::Core;
use crate::failure::Failure;
use crate::headroom;
use crate::node::Shell;
use crate::replica::{refusal, wall_ms};
use crate::router::Repeat;

const LIST_MAX: usize = 1_000;

/// Serves queues as a node.
pub struct QueuesService {
    shell: Arc<Shell>,
}

impl QueuesService {
    pub fn new(shell: Arc<Shell>) -> Self {
        Self { shell }
    }
}

#[tonic::async_trait]
impl Queues for QueuesService {
    async fn create_queue(
        &self,
        request: Request<CreateQueueRequest>,
    ) -> Result<Response<CreateQueueResponse>, Status> {
        Ok(Response::new(create(&*self.shell.core()?, request.into_inner()).await?))
    }

    async fn describe_queue(
        &self,
        request: Request<DescribeQueueRequest>,
    ) -> Result<Response<DescribeQueueResponse>, Status> {
        Ok(Response::new(describe(&*self.shell.core()?, &request.get_ref().queue).await?))
    }

    async fn list_queues(
        &self,
        request: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        let core = self.shell.core()?;
        let request = request.into_inner();
        let max =
            if request.queues_max == 0 { LIST_MAX } else { (request.queues_max as usize).min(LIST_MAX) };
        core.catalogue.catch_up().await?;
        let mut queues = core.view.look(|catalogue| {
            let named = catalogue.queues_named(&request.prefix, &request.after);
            named.take(max + 1).map(|queue| queue.name.clone()).collect::<Vec<_>>()
        });
        let more = queues.len() > max;
        queues.truncate(max);
        Ok(Response::new(ListQueuesResponse { queues, more }))
    }

    async fn set_queue(
        &self,
        request: Request<SetQueueRequest>,
    ) -> Result<Response<SetQueueResponse>, Status> {
        let core = self.shell.core()?;
        let SetQueueRequest { queue, settings } = request.into_inner();
        let change = change(settings.unwrap_or_default());
        let set = Kind::SetQueue(SetQueue { name: queue.clone(), change, wall_ms: wall_ms() });
        core.catalogue.propose(set).await?;
        // A command that does nothing makes each leader bring its shard up to date now.
        let info = lookup::queue(&core, &queue).await?;
        for_each_shard(&core, &info, |_| Command::Ack { queue: info.id, receipts: Vec::new() }, Repeat::Safe)
            .await?;
        Ok(Response::new(SetQueueResponse {}))
    }

    async fn purge_queue(
        &self,
        request: Request<PurgeQueueRequest>,
    ) -> Result<Response<PurgeQueueResponse>, Status> {
        let core = self.shell.core()?;
        let queue = lookup::queue_now(&core, &request.into_inner().queue).await?;
        for_each_shard(&core, &queue, |_| Command::Purge { queue: queue.id }, Repeat::Unsafe).await?;
        Ok(Response::new(PurgeQueueResponse {}))
    }

    async fn delete_queue(
        &self,
        request: Request<DeleteQueueRequest>,
    ) -> Result<Response<DeleteQueueResponse>, Status> {
        let core = self.shell.core()?;
        let name = request.into_inner().queue;
        core.catalogue.propose(Kind::DeleteQueue(DeleteQueue { name })).await?;
        Ok(Response::new(DeleteQueueResponse {}))
    }

    async fn start_redrive(
        &self,
        request: Request<StartRedriveRequest>,
    ) -> Result<Response<StartRedriveResponse>, Status> {
        let core = self.shell.core()?;
        let request = request.into_inner();
        let queue = lookup::queue_now(&core, &request.queue).await?;
        let target = redrive_target(&core, &queue, &request.target).await?;
        let shards = queue.shards.len() as u32;
        let rate_per_s = request.rate_per_s.div_ceil(shards.max(1));
        // The same on every shard, so that one cancel ends all.
        let id = core.catalogue.group.progress().0.max(1) ^ (wall_ms() << 20);
        let start = |_| Command::RedriveStart { queue: queue.id, target, rate_per_s, id };
        for_each_shard(&core, &queue, start, Repeat::Safe).await?;
        Ok(Response::new(StartRedriveResponse {}))
    }

    async fn cancel_redrive(
        &self,
        request: Request<CancelRedriveRequest>,
    ) -> Result<Response<CancelRedriveResponse>, Status> {
        let core = self.shell.core()?;
        let queue = lookup::queue_now(&core, &request.into_inner().queue).await?;
        let shards =
            queue.shards.iter().map(|shard| core.router.ask(*shard, peer::Describe { queue: queue.id.0 }));
        let shards = try_join_all(shards).await?;
        let running = shards.iter().filter_map(|shard| Some((shard.partition, shard.redrive?)));
        let running = running.filter(|(_, redrive)| redrive.running).collect::<Vec<_>>();
        if running.is_empty() {
            return Err(refusal(partition::Refusal::RedriveUnknown).into());
        }
        for (shard, redrive) in running {
            let command = Command::RedriveCancel { queue: queue.id, id: redrive.id };
            send_to(&core, &queue, catalogue::PartitionId(shard), command, Repeat::Safe).await?;
        }
        Ok(Response::new(CancelRedriveResponse {}))
    }
}

async fn redrive_target(
    core: &Core,
    queue: &QueueInfo,
    target: &str,
) -> Result<Option<partition::QueueId>, Failure> {
    if target.is_empty() {
        return Ok(None);
    }
    let target = lookup::queue(core, target).await?;
    if target.is_fifo() != queue.is_fifo() {
        return Err(validate::invalid(format!(
            "{} and {} are not of the same kind",
            queue.name, target.name
        )));
    }
    Ok(Some(target.id))
}

async fn for_each_shard(
    core: &Core,
    queue: &QueueInfo,
    make: impl Fn(catalogue::PartitionId) -> Command<'static>,
    repeat: Repeat,
) -> Result<(), Failure> {
    let all = queue.shards.iter().map(|shard| send_to(core, queue, *shard, make(*shard), repeat));
    try_join_all(all).await.map(drop)
}

async fn send_to(
    core: &Core,
    queue: &QueueInfo,
    shard: catalogue::PartitionId,
    command: Command<'static>,
    repeat: Repeat,
) -> Result<(), Failure> {
    match core.router.command(shard, lookup::call(queue.id, &command.into()), repeat).await? {
        partition::Reply::Refused { reason } => Err(refusal(reason)),
        _ => Ok(()),
    }
}

fn odd(reply: &Reply) -> Failure {
    Failure::unknown(leasehold_proto::v1::Reason::None, format!("an unexpected reply: {reply:?}"))
}

/// Settings as users give them, in the catalogue's words.
/// Makes a queue; one that is there with the same settings is fine.
pub async fn create(core: &Core, request: CreateQueueRequest) -> Result<CreateQueueResponse, Failure> {
    let CreateQueueRequest { queue, settings, shards } = request;
    let settings = change(settings.unwrap_or_default());
    let create = CreateQueue { name: queue, settings, shards, tags: BTreeMap::new(), wall_ms: wall_ms() };
    match core.catalogue.propose(Kind::CreateQueue(create)).await? {
        Reply::Queue { created, .. } => Ok(CreateQueueResponse { created }),
        other => Err(odd(&other)),
    }
}

/// What the leaders of a queue's shards say of it.
pub async fn describe(core: &Core, queue: &str) -> Result<DescribeQueueResponse, Failure> {
    let queue = lookup::queue_now(core, queue).await?;
    let shards =
        queue.shards.iter().map(|shard| core.router.ask(*shard, peer::Describe { queue: queue.id.0 }));
    Ok(description(core, &queue, try_join_all(shards).await?))
}

fn change(settings: QueueSettings) -> QueueChange {
    QueueChange {
        kind: settings.kind,
        lease_ms: settings.lease_ms,
        delay_ms: settings.delay_ms,
        retention_ms: settings.retention_ms,
        dead_letter_queue: settings.dead_letter_queue,
        receives_max: settings.receives_max,
        content_deduplication: settings.content_deduplication,
        deduplication_window_ms: settings.deduplication_window_ms,
        in_flight_max: settings.in_flight_max,
        length_max: settings.length_max,
        bytes_max: settings.bytes_max,
        message_bytes_max: settings.message_bytes_max,
        adaptive_lease_ms_max: settings.adaptive_lease_ms_max,
    }
}

fn description(core: &Core, queue: &QueueInfo, shards: Vec<ShardDescription>) -> DescribeQueueResponse {
    let recorded =
        core.view.look(|catalogue| catalogue.queue_by_name(&queue.name).cloned()).unwrap_or_default();
    let mut counters = QueueCounters::default();
    let mut redrive: Option<RedriveProgress> = None;
    for shard in &shards {
        let of_shard = shard.counters.unwrap_or_default();
        counters.ready += of_shard.ready;
        counters.leased += of_shard.leased;
        counters.delayed += of_shard.delayed;
        counters.dead += of_shard.dead;
        counters.bytes += of_shard.bytes;
        counters.oldest_age_ms = counters.oldest_age_ms.max(of_shard.oldest_age_ms);
        if let Some(of_shard) = shard.redrive {
            let sum = redrive.get_or_insert_default();
            sum.running |= of_shard.running;
            sum.moved += of_shard.moved;
            sum.total += of_shard.total;
        }
    }
    let (floor_ms, ceiling_ms) = (recorded.settings.lease_ms, recorded.settings.adaptive_lease_ms_max);
    let report = headroom::report(&shards, floor_ms, ceiling_ms);
    DescribeQueueResponse {
        queue: queue.name.clone(),
        settings: Some(settings(core, &recorded.settings)),
        counters: Some(counters),
        shards,
        created_wall_ms: recorded.created_wall_ms,
        redrive,
        headroom: Some(report.all),
        versions: report.versions,
        advice: report.advice,
    }
}

fn settings(core: &Core, settings: &catalogue::QueueSettings) -> QueueSettings {
    let dead_letter = settings.dead_letter;
    QueueSettings {
        kind: Some(settings.kind),
        lease_ms: Some(settings.lease_ms),
        delay_ms: Some(settings.delay_ms),
        retention_ms: Some(settings.retention_ms),
        dead_letter_queue: dead_letter.and_then(|dead_letter| core.view.queue_name(dead_letter.queue)),
        receives_max: dead_letter.map(|dead_letter| dead_letter.receives_max),
        content_deduplication: Some(settings.content_deduplication),
        deduplication_window_ms: Some(settings.deduplication_window_ms),
        in_flight_max: Some(settings.in_flight_max),
        length_max: Some(settings.length_max),
        bytes_max: Some(settings.bytes_max),
        message_bytes_max: Some(settings.message_bytes_max),
        adaptive_lease_ms_max: Some(settings.adaptive_lease_ms_max),
    }
}
