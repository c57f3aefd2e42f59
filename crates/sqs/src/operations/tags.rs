//! TagQueue, UntagQueue and ListQueueTags.

use std::collections::BTreeMap;

use leasehold_proto::v1::QueueSettings;
use serde::{Deserialize, Serialize};

use super::Done;
use crate::absent::{names, pairs};
use crate::error::Error;
use crate::gateway::Call;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    queue_url: Option<String>,
    #[serde(default, deserialize_with = "pairs")]
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Untag {
    queue_url: Option<String>,
    #[serde(default, deserialize_with = "names")]
    tag_keys: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    queue_url: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tags {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

pub async fn tag(call: Call<'_>, request: Tag) -> Result<Done, Error> {
    if request.tags.is_empty() {
        return Err(Error::missing("Tags"));
    }
    let settings = QueueSettings { tags: request.tags, ..QueueSettings::default() };
    call.service().set_queue(call.queue_name(request.queue_url.as_deref())?, settings, 0).await?;
    Ok(Done {})
}

pub async fn untag(call: Call<'_>, request: Untag) -> Result<Done, Error> {
    if request.tag_keys.is_empty() {
        return Err(Error::missing("TagKeys"));
    }
    let settings = QueueSettings { tags_removed: request.tag_keys, ..QueueSettings::default() };
    call.service().set_queue(call.queue_name(request.queue_url.as_deref())?, settings, 0).await?;
    Ok(Done {})
}

pub async fn list(call: Call<'_>, request: List) -> Result<Tags, Error> {
    let name = call.queue_name(request.queue_url.as_deref())?;
    let described = call.service().settings_of_queue(name).await?;
    Ok(Tags { tags: described.settings.unwrap_or_default().tags })
}
