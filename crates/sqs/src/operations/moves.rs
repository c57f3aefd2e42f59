//! Message move tasks: redrives of dead-letter queues. The node keeps the last one of each queue.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leasehold_proto::v1::{ListQueuesRequest, RedriveProgress, RedriveState, StartRedriveRequest};
use serde::{Deserialize, Serialize};

use super::required;
use crate::arn;
use crate::error::{Error, Kind};
use crate::gateway::Call;
use crate::limits::{MOVE_RATE_MAX, MOVE_TASKS_MAX};
use crate::numbers::{Int, within};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Start {
    source_arn: Option<String>,
    destination_arn: Option<String>,
    max_number_of_messages_per_second: Option<Int>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cancel {
    task_handle: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    source_arn: Option<String>,
    max_results: Option<Int>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Started {
    task_handle: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cancelled {
    approximate_number_of_messages_moved: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tasks {
    results: Vec<Task>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    #[serde(skip_serializing_if = "Option::is_none")]
    task_handle: Option<String>,
    status: &'static str,
    source_arn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_number_of_messages_per_second: Option<u32>,
    approximate_number_of_messages_moved: u64,
    approximate_number_of_messages_to_move: u64,
    started_timestamp: u64,
}

/// What a task handle says, under base64.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handle {
    task_id: u64,
    source_arn: String,
}

impl Handle {
    fn text(&self) -> String {
        STANDARD
            .encode(serde_json::json!({ "taskId": self.task_id, "sourceArn": self.source_arn }).to_string())
    }

    fn read(text: &str) -> Option<Self> {
        serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
    }
}

fn not_found() -> Error {
    Error::new(
        Kind::ResourceNotFound,
        "The resource that you specified for the SourceArn parameter doesn't exist.",
    )
}

/// The queue of an ARN, which must be there.
async fn queue_of(call: Call<'_>, arn: &str) -> Result<String, Error> {
    let name = arn::queue_of(arn, &call.gateway.account_id).ok_or_else(not_found)?;
    match call.service().queue(name).await.map_err(Error::from) {
        Ok(queue) => Ok(queue.name().to_owned()),
        Err(error) if error.kind == Kind::QueueDoesNotExist => Err(not_found()),
        Err(error) => Err(error),
    }
}

pub async fn start(call: Call<'_>, request: Start) -> Result<Started, Error> {
    let source_arn = required(request.source_arn, "SourceArn")?;
    let rate = request.max_number_of_messages_per_second;
    let rate = within("MaxNumberOfMessagesPerSecond", rate, 1, MOVE_RATE_MAX)?;
    let queue = queue_of(call, &source_arn).await?;
    let of_queue = ListQueuesRequest { prefix: queue.clone(), queues_max: 1, after: String::new() };
    if call.service().list_dead_letter_sources(&of_queue).await?.queues.is_empty() {
        let message = "Source queue must be configured as a Dead Letter Queue.";
        return Err(Error::new(Kind::InvalidParameterValue, message));
    }
    let target = match &request.destination_arn {
        Some(arn) => queue_of(call, arn).await?,
        None => String::new(),
    };
    let started = StartRedriveRequest { queue, target, rate_per_s: rate.unwrap_or_default() as u32 };
    let task_id = call.service().start_redrive(&started).await?;
    Ok(Started { task_handle: Handle { task_id, source_arn }.text() })
}

pub async fn cancel(call: Call<'_>, request: Cancel) -> Result<Cancelled, Error> {
    let text = required(request.task_handle, "TaskHandle")?;
    let handle =
        Handle::read(&text).ok_or_else(|| Error::value("TaskHandle", "given", "It is no task handle."))?;
    let queue = queue_of(call, &handle.source_arn).await?;
    match call.service().cancel_redrive(&queue, Some(handle.task_id)).await.map_err(Error::from) {
        Ok(progress) => Ok(Cancelled { approximate_number_of_messages_moved: progress.moved }),
        Err(error) if error.kind == Kind::ResourceNotFound => {
            Err(Error::new(Kind::ResourceNotFound, "Task does not exist, or it is over."))
        }
        Err(error) => Err(error),
    }
}

pub async fn list(call: Call<'_>, request: List) -> Result<Tasks, Error> {
    let source_arn = required(request.source_arn, "SourceArn")?;
    within("MaxResults", request.max_results, 1, MOVE_TASKS_MAX)?;
    let queue = queue_of(call, &source_arn).await?;
    let redrive = call.service().describe_queue(&queue).await?.redrive;
    Ok(Tasks { results: redrive.map(|redrive| task(call, source_arn, &redrive)).into_iter().collect() })
}

fn task(call: Call<'_>, source_arn: String, redrive: &RedriveProgress) -> Task {
    let status = match redrive.state() {
        RedriveState::RedriveUnderWay => "RUNNING",
        RedriveState::RedriveComplete => "COMPLETED",
        RedriveState::RedriveCancelled => "CANCELLED",
    };
    let handle = || Handle { task_id: redrive.id, source_arn: source_arn.clone() }.text();
    Task {
        // Only a task that runs has one, as Amazon has it.
        task_handle: redrive.running.then(handle),
        status,
        destination_arn: (!redrive.target.is_empty()).then(|| call.arn(&redrive.target)),
        max_number_of_messages_per_second: (redrive.rate_per_s > 0).then_some(redrive.rate_per_s),
        approximate_number_of_messages_moved: redrive.moved,
        approximate_number_of_messages_to_move: redrive.total,
        started_timestamp: redrive.started_wall_ms,
        source_arn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_read_as_it_was_written() {
        let handle = Handle { task_id: u64::MAX, source_arn: "arn:aws:sqs:r:000000000000:dead".to_owned() };
        assert_eq!(Handle::read(&handle.text()), Some(handle));
        assert_eq!(Handle::read("?"), None);
        assert_eq!(Handle::read("e30="), None);
    }
}
