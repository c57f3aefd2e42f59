//! Many sends on one stream: they are begun in turn and go on side by side, and each answer carries the tag of its request.

use std::sync::Arc;

use leasehold_proto::v1::{PublishRequest, PublishResponse};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::lookup;
use super::send::send;
use crate::core::Core;
use crate::in_turn;

/// Sends of one stream that are under way; the stream is not read further until one is done.
pub const SENDS_MAX: usize = 64;

/// Serves a stream until the client ends it and every send is answered.
pub async fn serve(
    core: Arc<Core>,
    mut requests: Streaming<PublishRequest>,
    answers: mpsc::Sender<Result<PublishResponse, Status>>,
) {
    let under_way = Arc::new(Semaphore::new(SENDS_MAX));
    while let Ok(Some(request)) = requests.message().await {
        if let Some(send) = &request.send {
            // A queue that is not known here yet is asked after before anything is begun; what it is told then, each send finds out.
            let _ = lookup::queue(&core, &send.queue).await;
        }
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let (core, answers) = (core.clone(), answers.clone());
        in_turn::begin(async move {
            let answer = answer(&core, request).await;
            // A client that has hung up hears nothing; it counts its sends as unknown.
            let _ = answers.send(Ok(answer)).await;
            drop(permit);
        });
    }
}

async fn answer(core: &Core, request: PublishRequest) -> PublishResponse {
    match send(core, &request.send.unwrap_or_default()).await {
        Ok(outcomes) => PublishResponse { tag: request.tag, outcomes, error: None },
        Err(failure) => {
            PublishResponse { tag: request.tag, outcomes: Vec::new(), error: Some(failure.to_call_error()) }
        }
    }
}
