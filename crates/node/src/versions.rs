//! The version of the cluster: what all of its nodes can execute. It is raised when the last of them can do more.
//!
//! ```text
//!   nodes are upgraded, one by one ─▶ the catalogue's leader asks all what they know ─▶ SetVersion in the catalogue
//!         ─▶ nodes use what came with it     ─▶ each partition has it in its log before its next command
//! ```
//!
//! Until then the cluster does what the older build does, and every node can go back to it. Afterwards an older build has no place here:
//! it halts at the entry, is not taken in, and cannot read a snapshot. `version_max` holds the version back.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use leasehold_catalogue::{Kind, NodeId, SetVersion};
use tokio::time::{sleep, timeout};

use crate::core::Core;

const INTERVAL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);

/// What a node says that it knows.
pub struct Known {
    pub node: String,
    /// None where it did not answer.
    pub version_max: Option<u32>,
}

/// The highest version that all of them know.
///
/// # Errors
/// Says who did not answer.
pub fn common(known: &[Known]) -> Result<u32, String> {
    let silent = known.iter().filter(|known| known.version_max.is_none());
    let silent = silent.map(|known| known.node.as_str()).collect::<Vec<_>>();
    if !silent.is_empty() {
        return Err(format!("no answer from {}", silent.join(", ")));
    }
    Ok(known.iter().filter_map(|known| known.version_max).min().unwrap_or_default())
}

/// The version that the cluster can go to now.
///
/// # Errors
/// Says what holds it where it is.
fn next(version: u32, known: &[Known]) -> Result<u32, String> {
    let common = common(known)?;
    if common > version {
        return Ok(common);
    }
    let behind = known.iter().filter(|known| known.version_max.is_some_and(|known| known <= version));
    let behind = behind.map(|known| known.node.as_str()).collect::<Vec<_>>();
    Err(format!("{} of an earlier build, or held back by `version_max`", behind.join(", ")))
}

/// Raises the version whenever this node leads the catalogue and all know a higher one.
pub async fn run(core: Arc<Core>) {
    let mut told = String::new();
    loop {
        if core.catalogue.leads().is_some() {
            raise(&core, &mut told).await;
        }
        sleep(INTERVAL).await;
    }
}

async fn raise(core: &Core, told: &mut String) {
    let version = core.view.version();
    // A node that is leaving still holds replicas.
    let nodes = core.view.look(|catalogue| {
        catalogue.nodes().map(|node| (NodeId(node.id), node.name.clone())).collect::<Vec<_>>()
    });
    if nodes.is_empty() || version >= core.config.version_max {
        return;
    }
    let known = join_all(nodes.into_iter().map(|(id, node)| async move {
        let version_max = ask(core, id).await;
        Known { node, version_max }
    }));
    match next(version, &known.await) {
        Ok(next) => match core.catalogue.propose(Kind::SetVersion(SetVersion { version: next })).await {
            Ok(_) => tracing::info!(version = next, "the cluster has a new version: all nodes know it"),
            Err(failure) => tracing::warn!(%failure, "the cluster's version cannot be raised at this moment"),
        },
        Err(why) if *told != why => {
            tracing::info!(version, why, "the cluster keeps its version for now");
            *told = why;
        }
        Err(_) => {}
    }
}

/// The highest version that a node knows, if it answers, and is the one that is meant.
async fn ask(core: &Core, node: NodeId) -> Option<u32> {
    if node == core.view.here() {
        return Some(core.config.version_max);
    }
    let address = core.lanes.address(node).or_else(|| core.view.peer_address(node))?;
    let answer = timeout(PATIENCE, core.lanes.transport().identify(address)).await.ok()?.ok()?;
    let is_meant = answer.cluster_id == core.identity.cluster_id[..] && answer.node_id == node.0;
    is_meant.then_some(answer.machine_version_max.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known<const N: usize>(versions: [Option<u32>; N]) -> Vec<Known> {
        let known = |(at, version_max)| Known { node: format!("n{}", at + 1), version_max };
        versions.into_iter().enumerate().map(known).collect()
    }

    #[test]
    fn a_version_is_one_that_everybody_knows() {
        assert_eq!(next(1, &known([Some(2), Some(3), Some(2)])), Ok(2));
        let behind = next(1, &known([Some(2), Some(1), Some(2)])).unwrap_err();
        assert!(behind.starts_with("n2 "), "{behind}");
        assert_eq!(next(1, &known([Some(2), None, None])), Err("no answer from n2, n3".to_owned()));
        assert!(next(2, &known([Some(2), Some(2)])).is_err(), "it is there");
    }
}
