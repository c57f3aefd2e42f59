//! AddPermission and RemovePermission: they change the policy that is kept with the queue.

use leasehold_proto::v1::{Outcome, QueueSettings, Reason};
use serde::Deserialize;

use super::{Done, required};
use crate::absent::names;
use crate::error::{Error, Kind};
use crate::gateway::Call;
use crate::policy::{self, Grant};

const POLICY_LABEL: &str = "sqs.Policy";
/// Tries against others who change the same queue.
const TRIES_MAX: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Add {
    queue_url: Option<String>,
    label: Option<String>,
    #[serde(default, deserialize_with = "names", rename = "AWSAccountIds")]
    accounts: Vec<String>,
    #[serde(default, deserialize_with = "names")]
    actions: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Remove {
    queue_url: Option<String>,
    label: Option<String>,
}

pub async fn add(call: Call<'_>, request: Add) -> Result<Done, Error> {
    let label = required(request.label, "Label")?;
    let name = call.queue_name(request.queue_url.as_deref())?;
    let resource = call.arn(name);
    let grant =
        Grant { label: &label, accounts: &request.accounts, actions: &request.actions, resource: &resource };
    change(call, name, |kept| policy::with(kept, &grant)).await
}

pub async fn remove(call: Call<'_>, request: Remove) -> Result<Done, Error> {
    let label = required(request.label, "Label")?;
    let name = call.queue_name(request.queue_url.as_deref())?;
    change(call, name, |kept| policy::without(kept, &label)).await
}

/// Reads the policy and writes what follows from it, again when somebody else was faster.
async fn change(
    call: Call<'_>,
    name: &str,
    next: impl Fn(Option<&str>) -> Result<String, Error>,
) -> Result<Done, Error> {
    // What a try may have written whose answer was lost.
    let mut written = None;
    for _ in 0..TRIES_MAX {
        let described = call.service().settings_of_queue(name).await?;
        let kept = described.settings.unwrap_or_default().labels.remove(POLICY_LABEL);
        if written.is_some_and(|written: String| written == kept.as_deref().unwrap_or_default()) {
            return Ok(Done {});
        }
        let policy = next(kept.as_deref())?;
        let labels = [(POLICY_LABEL.to_owned(), policy.clone())].into();
        let settings = QueueSettings { labels, ..QueueSettings::default() };
        match call.service().set_queue(name, settings, described.revision).await {
            Err(failure) if failure.reason == Reason::Changed => {
                written = (failure.outcome == Outcome::Unknown).then_some(policy);
            }
            done => return Ok(done.map(|()| Done {})?),
        }
    }
    Err(Error::new(Kind::RequestThrottled, "Others are changing the queue at the same time: try again."))
}
