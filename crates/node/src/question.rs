//! The questions to a partition's leader, asked the same way whether it is on this node or on another.

use futures::future::BoxFuture;
use leasehold_proto::peer::{Describe, HandOver, Peek, Ready, Receive, Why, query::Kind};
use leasehold_proto::v1::{PeekResponse, ReceiveResponse, ShardDescription, WhyResponse};
use prost::Message;

use crate::answers::LocalAnswers;
use crate::failure::Failure;
use crate::replica::Replica;

/// A question, and how this node answers it when it leads.
pub trait Question: Clone + Send + Sync + 'static {
    type Answer: Message + Default;

    fn kind(self) -> Kind;

    fn answer<'a>(
        &'a self,
        answers: &'a LocalAnswers,
        replica: &'a Replica,
    ) -> BoxFuture<'a, Result<Self::Answer, Failure>>;
}

macro_rules! question {
    ($question:ident -> $answer:ty, |$this:ident, $answers:ident, $replica:ident| $body:expr) => {
        impl Question for $question {
            type Answer = $answer;

            fn kind(self) -> Kind {
                Kind::$question(self)
            }

            fn answer<'a>(
                &'a self,
                $answers: &'a LocalAnswers,
                $replica: &'a Replica,
            ) -> BoxFuture<'a, Result<$answer, Failure>> {
                let $this = self;
                Box::pin(async move { $body })
            }
        }
    };
}

question!(Receive -> ReceiveResponse, |receive, answers, replica| answers.receive(replica, receive).await);
question!(Ready -> (), |ready, answers, replica| answers.ready(replica, *ready).await);
question!(Peek -> PeekResponse, |peek, answers, replica| answers.peek(replica, *peek).await);
question!(Describe -> ShardDescription, |describe, answers, replica| answers.describe(replica, *describe));
question!(Why -> WhyResponse, |why, answers, replica| answers.why(replica, *why).await);
question!(HandOver -> (), |to, answers, replica| answers.hand_over(replica, *to).await);
