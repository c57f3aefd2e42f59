//! Finding the other nodes again when all have come back under other addresses, by the addresses in the configuration.
//!
//! The catalogue knows every node's address, but it needs a quorum to learn of a change: when most nodes have moved, none finds
//! another through it.

use std::sync::Arc;
use std::time::Duration;

use leasehold_catalogue::NodeId;
use tokio::time::{sleep, timeout};

use crate::core::Core;

const INTERVAL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the configured peers who they are for as long as nobody leads the catalogue.
pub async fn run(core: Arc<Core>) {
    loop {
        if core.catalogue.leader_node().is_none() {
            for peer in &core.config.peers {
                meet(&core, &peer.to_string()).await;
            }
        }
        sleep(INTERVAL).await;
    }
}

async fn meet(core: &Core, address: &str) {
    let identify = core.lanes.transport().identify(address.to_owned());
    // A peer that does not answer is asked again later.
    let Ok(Ok(answer)) = timeout(PATIENCE, identify).await else { return };
    let is_ours = answer.cluster_id == core.identity.cluster_id[..];
    let node = NodeId(answer.node_id);
    if is_ours && node != core.view.here() {
        core.lanes.follow_address(node, address);
    }
}
