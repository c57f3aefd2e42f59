//! The operations: JSON in, JSON out, the node's service between.

mod batch;
mod delete;
mod moves;
mod permissions;
mod queues;
mod receive;
mod send;
mod settle;
mod tags;
mod visibility;

use std::cell::Cell;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::gateway::Call;

macro_rules! operations {
    ($($operation:ident => $serve:path;)*) => {
        /// Every operation that there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            $($operation,)*
        }

        impl Operation {
            pub const ALL: &'static [Self] = &[$(Self::$operation,)*];

            pub fn of_name(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($operation) => Some(Self::$operation),)*
                    _ => None,
                }
            }

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$operation => stringify!($operation),)*
                }
            }

            /// Serves a request; the answer is a JSON object.
            ///
            /// # Errors
            /// What the operation ended with.
            pub async fn serve(self, call: Call<'_>) -> Result<Bytes, Error> {
                match self {
                    // Apart, since a request takes what its own operation needs and not what the largest does.
                    $(Self::$operation => answer(Box::pin($serve(call, read(call.request)?)).await?),)*
                }
            }
        }
    };
}

operations! {
    AddPermission => permissions::add;
    CancelMessageMoveTask => moves::cancel;
    ChangeMessageVisibility => visibility::change;
    ChangeMessageVisibilityBatch => visibility::change_batch;
    CreateQueue => queues::create;
    DeleteMessage => delete::delete;
    DeleteMessageBatch => delete::delete_batch;
    DeleteQueue => queues::delete;
    GetQueueAttributes => queues::attributes;
    GetQueueUrl => queues::url;
    ListDeadLetterSourceQueues => queues::list_sources;
    ListMessageMoveTasks => moves::list;
    ListQueueTags => tags::list;
    ListQueues => queues::list;
    PurgeQueue => queues::purge;
    ReceiveMessage => receive::receive;
    RemovePermission => permissions::remove;
    SendMessage => send::send;
    SendMessageBatch => send::send_batch;
    SetQueueAttributes => queues::set_attributes;
    StartMessageMoveTask => moves::start;
    TagQueue => tags::tag;
    UntagQueue => tags::untag;
}

/// The answer of an operation that has nothing to say.
#[derive(Debug, Serialize)]
pub struct Done {}

fn read<'a, R: Deserialize<'a>>(request: &'a [u8]) -> Result<R, Error> {
    let request = if request.is_empty() { b"{}" } else { request };
    serde_json::from_slice(request).map_err(|error| Error::new(Kind::Malformed, error.to_string()))
}

/// Written where the last answer of this thread was, so that only a long one has to grow.
fn answer(answer: impl Serialize) -> Result<Bytes, Error> {
    const USUAL_BYTES: usize = 1024;
    /// Of an answer, what is kept for the next.
    const KEPT_BYTES_MAX: usize = 64 * 1024;
    thread_local! {
        static TEXT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut text = TEXT.take();
    text.clear();
    text.reserve(USUAL_BYTES);
    let written = serde_json::to_writer(&mut text, &answer);
    written.map_err(|error| Error::new(Kind::InternalFailure, error.to_string()))?;
    if text.len() > KEPT_BYTES_MAX {
        return Ok(text.into());
    }
    let answer = Bytes::copy_from_slice(&text);
    TEXT.set(text);
    Ok(answer)
}

/// A parameter that must be there.
fn required<T>(parameter: Option<T>, name: &str) -> Result<T, Error> {
    parameter.ok_or_else(|| Error::missing(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_found_by_their_names() {
        for operation in Operation::ALL {
            assert_eq!(Operation::of_name(operation.name()), Some(*operation));
        }
        assert_eq!(Operation::ALL.len(), 23);
        assert_eq!(Operation::of_name("sendMessage"), None);
    }

    #[test]
    fn null_is_as_good_as_nothing() {
        let request = br#"{"QueueUrl":"q","MessageBody":"b","DelaySeconds":null,"MessageAttributes":null}"#;
        assert!(read::<send::Message<'_>>(request).is_ok());
        assert!(
            read::<receive::Receive<'_>>(br#"{"AttributeNames":null,"MessageAttributeNames":null}"#).is_ok()
        );
        assert!(read::<queues::Create>(br#"{"QueueName":"q","Attributes":null,"tags":null}"#).is_ok());
        assert!(read::<send::SendBatch<'_>>(br#"{"Entries":null}"#).is_ok());
        assert!(read::<send::SendBatch<'_>>(br#"{"Entries":5}"#).is_err());
        assert!(read::<receive::Receive<'_>>(br#"{"AttributeNames":{}}"#).is_err());
        assert!(read::<tags::Tag>(br#"{"Tags":[]}"#).is_err());
    }

    #[test]
    fn maps_and_lists_without_end_are_malformed() {
        let pairs = (0..65).map(|at| format!(r#""k{at}":"v""#)).collect::<Vec<_>>().join(",");
        let attributes =
            (0..65).map(|at| format!(r#""k{at}":{{"DataType":"String"}}"#)).collect::<Vec<_>>().join(",");
        let names = vec![r#""All""#; 1_025].join(",");
        let kind = |error: Error| error.kind;
        let refused = [
            read::<tags::Tag>(format!(r#"{{"Tags":{{{pairs}}}}}"#).as_bytes()).map(drop),
            read::<queues::Create>(format!(r#"{{"Attributes":{{{pairs}}}}}"#).as_bytes()).map(drop),
            read::<queues::Create>(format!(r#"{{"tags":{{{pairs}}}}}"#).as_bytes()).map(drop),
            read::<queues::Set>(format!(r#"{{"Attributes":{{{pairs}}}}}"#).as_bytes()).map(drop),
            read::<queues::Get>(format!(r#"{{"AttributeNames":[{names}]}}"#).as_bytes()).map(drop),
            read::<tags::Untag>(format!(r#"{{"TagKeys":[{names}]}}"#).as_bytes()).map(drop),
            read::<permissions::Add>(format!(r#"{{"Actions":[{names}]}}"#).as_bytes()).map(drop),
            read::<receive::Receive<'_>>(format!(r#"{{"MessageAttributeNames":[{names}]}}"#).as_bytes())
                .map(drop),
            read::<send::Message<'_>>(format!(r#"{{"MessageAttributes":{{{attributes}}}}}"#).as_bytes())
                .map(drop),
        ];
        for (at, outcome) in refused.into_iter().enumerate() {
            assert_eq!(outcome.map_err(kind), Err(Kind::Malformed), "{at}");
        }
    }
}
