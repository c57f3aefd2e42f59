//! Queues: made, found, listed, described, changed, emptied and deleted.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use leasehold_node::Deletion;
use leasehold_proto::v1::{
    CreateQueueRequest, ListQueuesRequest, ListQueuesResponse, Outcome, QueueKind, QueueSettings, Reason,
};
use serde::{Deserialize, Serialize};

use super::{Done, required};
use crate::absent::{names, pairs};
use crate::error::{Error, Kind};
use crate::gateway::Call;
use crate::limits::LIST_MAX;
use crate::numbers::{Int, within};
use crate::queue_attributes::{self, Attributes, Target, Wanted};
use crate::queue_url;

/// Tries to delete a queue that others make their dead-letter queue meanwhile.
const TRIES_MAX: usize = 4;
/// Queues that are changed at the same time.
const CHANGES_MAX: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Create {
    queue_name: Option<String>,
    #[serde(default, deserialize_with = "pairs")]
    attributes: Attributes,
    /// Named so in the model of the service.
    #[serde(default, deserialize_with = "pairs", rename = "tags", alias = "Tags")]
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OfQueue {
    queue_url: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Find {
    queue_name: Option<String>,
    #[serde(rename = "QueueOwnerAWSAccountId")]
    owner: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    queue_name_prefix: Option<String>,
    next_token: Option<String>,
    max_results: Option<Int>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListSources {
    queue_url: Option<String>,
    next_token: Option<String>,
    max_results: Option<Int>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Get {
    queue_url: Option<String>,
    #[serde(default, deserialize_with = "names")]
    attribute_names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Set {
    queue_url: Option<String>,
    #[serde(default, deserialize_with = "pairs")]
    attributes: Attributes,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Url {
    queue_url: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Urls {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queue_urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// Named so in the model of the service.
#[derive(Debug, Serialize)]
pub struct SourceUrls {
    #[serde(rename = "queueUrls")]
    queue_urls: Vec<String>,
    #[serde(rename = "NextToken", skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttributesOf {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: Attributes,
}

pub async fn create(call: Call<'_>, request: Create) -> Result<Url, Error> {
    let name = required(request.queue_name, "QueueName")?;
    let wants_fifo = request.attributes.get("FifoQueue").is_some_and(|value| value == "true");
    if !queue_url::is_new_name(&name) || wants_fifo != queue_url::is_fifo_name(&name) {
        return Err(name_fault(&name, wants_fifo));
    }
    let (kind, shards) = match wants_fifo {
        // One place remembers all deduplication ids.
        true => (QueueKind::Fifo, 1),
        false => (QueueKind::Standard, call.gateway.shards),
    };
    let settings = queue_attributes::read(call.gateway, &request.attributes, Target::New(kind))?;
    let settings = QueueSettings { kind: Some(kind as i32), tags: request.tags, ..settings };
    let wanted = CreateQueueRequest { queue: name.clone(), settings: Some(settings), shards, request: None };
    let created = call.service().create_queue(wanted, call.gateway.pause_ms).await;
    match created {
        Ok(_) => {}
        Err(failure) if failure.reason == Reason::QueueExists => {
            // It is the same as far as the client said how it should be.
            let described = call.service().settings_of_queue(&name).await?;
            let has = queue_attributes::of_queue(&call, &described);
            if let Some(attribute) = queue_attributes::first_difference(&request.attributes, &has) {
                let message = format!(
                    "A queue already exists with the same name and a different value for attribute {attribute}"
                );
                return Err(Error::new(Kind::QueueNameExists, message));
            }
        }
        Err(failure) if failure.reason == Reason::TooSoon => {
            let message = "You must wait 60 seconds after deleting a queue before you can create another with the same name.";
            return Err(Error::new(Kind::QueueDeletedRecently, message));
        }
        Err(failure) => return Err(policy_error(&request.attributes, failure.into())),
    }
    Ok(Url { queue_url: call.queue_url(&name) })
}

fn name_fault(name: &str, wants_fifo: bool) -> Error {
    let message = if wants_fifo || queue_url::is_fifo_name(name) {
        "The name of a FIFO queue can only include alphanumeric characters, hyphens, or underscores, must end with .fifo suffix and be 1 to 80 in length."
    } else {
        "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length"
    };
    Error::new(Kind::InvalidParameterValue, message)
}

/// A dead-letter queue that is not there, or does not take these messages, is a fault of the policy.
fn policy_error(attributes: &Attributes, error: Error) -> Error {
    let Some(policy) = attributes.get("RedrivePolicy") else { return error };
    match error.kind {
        Kind::QueueDoesNotExist => {
            Error::value("RedrivePolicy", policy, "Dead letter target does not exist.")
        }
        Kind::InvalidParameterValue => Error::value("RedrivePolicy", policy, &error.message),
        _ => error,
    }
}

pub async fn url(call: Call<'_>, request: Find) -> Result<Url, Error> {
    let name = required(request.queue_name, "QueueName")?;
    if request.owner.is_some_and(|owner| owner != call.gateway.account_id) {
        return Err(queue_url::does_not_exist());
    }
    let queue = call.service().queue(&name).await?;
    Ok(Url { queue_url: call.queue_url(queue.name()) })
}

pub async fn list(call: Call<'_>, request: List) -> Result<Urls, Error> {
    let max = within("MaxResults", request.max_results, 1, LIST_MAX)?;
    let wanted = ListQueuesRequest {
        prefix: request.queue_name_prefix.unwrap_or_default(),
        queues_max: max.unwrap_or_default() as u32,
        after: after(request.next_token)?,
    };
    let listed = call.service().list_queues(&wanted).await?;
    let (queue_urls, next_token) = page(call, listed);
    // Who names no page size gets one page, as Amazon has it.
    Ok(Urls { queue_urls, next_token: next_token.filter(|_| max.is_some()) })
}

pub async fn list_sources(call: Call<'_>, request: ListSources) -> Result<SourceUrls, Error> {
    let max = within("MaxResults", request.max_results, 1, LIST_MAX)?;
    let wanted = ListQueuesRequest {
        prefix: call.queue_name(request.queue_url.as_deref())?.to_owned(),
        queues_max: max.unwrap_or_default() as u32,
        after: after(request.next_token)?,
    };
    let listed = call.service().list_dead_letter_sources(&wanted).await?;
    let (queue_urls, next_token) = page(call, listed);
    Ok(SourceUrls { queue_urls, next_token: next_token.filter(|_| max.is_some()) })
}

fn page(call: Call<'_>, listed: ListQueuesResponse) -> (Vec<String>, Option<String>) {
    let next_token = listed.queues.last().filter(|_| listed.more).map(|last| STANDARD.encode(last));
    (listed.queues.iter().map(|name| call.queue_url(name)).collect(), next_token)
}

/// The name that a token ends with.
fn after(token: Option<String>) -> Result<String, Error> {
    let Some(token) = token else { return Ok(String::new()) };
    let name = STANDARD.decode(&token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| Error::value("NextToken", token, "It is not the token of a page before."))
}

pub async fn attributes(call: Call<'_>, request: Get) -> Result<AttributesOf, Error> {
    let name = call.queue_name(request.queue_url.as_deref())?;
    let wanted = Wanted::new(&request.attribute_names)?;
    let described = match wanted.has_counts() {
        true => call.service().describe_queue(name).await?,
        false => call.service().settings_of_queue(name).await?,
    };
    Ok(AttributesOf {
        attributes: queue_attributes::only(queue_attributes::of_queue(&call, &described), &wanted),
    })
}

pub async fn set_attributes(call: Call<'_>, request: Set) -> Result<Done, Error> {
    if request.attributes.is_empty() {
        return Err(Error::missing("Attributes"));
    }
    let name = call.queue_name(request.queue_url.as_deref())?;
    let has = call.service().settings_of_queue(name).await?.settings.unwrap_or_default();
    let settings = queue_attributes::read(call.gateway, &request.attributes, Target::Existing(&has))?;
    let set = call.service().set_queue(name, settings, 0).await;
    set.map_err(|failure| policy_error(&request.attributes, failure.into()))?;
    Ok(Done {})
}

pub async fn purge(call: Call<'_>, request: OfQueue) -> Result<Done, Error> {
    let name = call.queue_name(request.queue_url.as_deref())?;
    match call.service().purge_queue(name, call.gateway.pause_ms).await {
        Err(failure) if failure.reason == Reason::TooSoon => {
            let message = format!("Only one PurgeQueue operation on {name} is allowed every 60 seconds.");
            Err(Error::new(Kind::PurgeQueueInProgress, message))
        }
        purged => Ok(purged.map(|()| Done {})?),
    }
}

/// Deletes a queue, also one that is the dead-letter queue of others: these then have none.
pub async fn delete(call: Call<'_>, request: OfQueue) -> Result<Done, Error> {
    let name = call.queue_name(request.queue_url.as_deref())?;
    let deletion = if call.gateway.pause_ms > 0 { Deletion::Remembered } else { Deletion::Forgotten };
    let mut tries = 0;
    loop {
        tries += 1;
        match call.service().delete_queue(name, deletion).await {
            Err(failure) if failure.reason == Reason::InvalidArgument && tries < TRIES_MAX => {
                let sources = |after| sources(call, name, after);
                for_each_listed(sources, |source| detach(call, source, name)).await?;
            }
            Err(failure) if failure.reason == Reason::InvalidArgument => {
                let message = format!("Others make {name} their dead-letter queue all the time: try again.");
                return Err(Error::new(Kind::Unavailable, message));
            }
            // An earlier try of the node, whose answer was lost, has deleted it.
            Err(failure) if failure.reason == Reason::UnknownQueue && failure.outcome == Outcome::Unknown => {
                return Ok(Done {});
            }
            deleted => return Ok(deleted.map(|()| Done {})?),
        }
    }
}

/// Those whose dead-letter queue this is, from a name on: a page of them.
async fn sources(call: Call<'_>, name: &str, after: String) -> Result<ListQueuesResponse, Error> {
    let of_queue = ListQueuesRequest { prefix: name.to_owned(), after, ..ListQueuesRequest::default() };
    Ok(call.service().list_dead_letter_sources(&of_queue).await?)
}

/// Does something with every queue of a list that comes in pages, with some of them at a time.
async fn for_each_listed<P, D>(
    page_after: impl Fn(String) -> P,
    action: impl Fn(String) -> D,
) -> Result<(), Error>
where
    P: Future<Output = Result<ListQueuesResponse, Error>>,
    D: Future<Output = Result<(), Error>>,
{
    let mut after = String::new();
    loop {
        let ListQueuesResponse { queues, more } = page_after(after).await?;
        let last = queues.last().filter(|_| more).cloned();
        let mut under_way = FuturesUnordered::new();
        for queue in queues {
            if under_way.len() >= CHANGES_MAX {
                under_way.next().await.transpose()?;
            }
            under_way.push(action(queue));
        }
        while let Some(done) = under_way.next().await {
            done?;
        }
        match last {
            Some(last) => after = last,
            None => return Ok(()),
        }
    }
}

/// Leaves a queue without a dead-letter queue if it is this one. What others change meanwhile is left to the next try.
async fn detach(call: Call<'_>, source: String, dead_letter_queue: &str) -> Result<(), Error> {
    let described = match call.service().settings_of_queue(&source).await {
        Err(failure) if failure.reason == Reason::UnknownQueue => return Ok(()),
        described => described?,
    };
    let leads_to = described.settings.and_then(|settings| settings.dead_letter_queue);
    if leads_to.as_deref() != Some(dead_letter_queue) {
        return Ok(());
    }
    let settings = QueueSettings { dead_letter_queue: Some(String::new()), ..QueueSettings::default() };
    match call.service().set_queue(&source, settings, described.revision).await {
        Err(failure) if matches!(failure.reason, Reason::UnknownQueue | Reason::Changed) => Ok(()),
        set => set.map_err(Error::from),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[tokio::test]
    async fn a_list_of_many_pages_is_gone_through_to_its_end() {
        const PAGE: usize = 1_000;
        let names = (0..3 * PAGE + 500).map(|number| format!("q{number:04}")).collect::<Vec<_>>();
        let page_after = |after: String| {
            let rest = names.iter().filter(|name| **name > after).cloned().collect::<Vec<_>>();
            let more = rest.len() > PAGE;
            std::future::ready(Ok(ListQueuesResponse { queues: rest.into_iter().take(PAGE).collect(), more }))
        };
        let under_way = &Cell::new(0);
        let most = &Cell::new(0);
        let seen = &RefCell::new(Vec::new());
        let action = |name: String| async move {
            under_way.set(under_way.get() + 1);
            most.set(most.get().max(under_way.get()));
            tokio::task::yield_now().await;
            under_way.set(under_way.get() - 1);
            seen.borrow_mut().push(name);
            Ok(())
        };
        for_each_listed(page_after, action).await.unwrap();
        let mut seen = seen.take();
        seen.sort();
        assert_eq!(seen, names);
        assert_eq!(most.get(), CHANGES_MAX);
    }

    #[tokio::test]
    async fn the_first_error_ends_it() {
        let page_after = |_| {
            let queues = vec!["q".to_owned(); 3];
            std::future::ready(Ok(ListQueuesResponse { queues, more: true }))
        };
        let refused = |_| std::future::ready(Err(Error::new(Kind::Unavailable, "no leader")));
        let ended = for_each_listed(page_after, refused).await;
        assert_eq!(ended.map_err(|error| error.kind), Err(Kind::Unavailable));
    }
}
