//! Lanes: what carries everything between two nodes.
//!
//! ```text
//!   replicas, router ──call──▶ Link ──frames, batched──▶ peer's inbound ──▶ Dispatch
//!                    ◀─answer─      ◀─────────────────
//! ```
//!
//! A node keeps two links to each peer, `control` (votes, liveness, the catalogue) and `bulk` (log entries and commands), so that
//! a vote never waits behind a megabyte of messages. All groups share them. A link that breaks fails every call in flight at
//! once with [`CallFailure::Lost`]; when the peer does not come back at the first attempt, or says nothing for the liveness
//! timeout, a [`PeerEvent::Down`] tells the replicas to elect without waiting for a Raft timeout. Only `control` listens for silence;
//! it breaks `bulk` with itself, whose connection would otherwise wait for the transport's retransmissions, longer and longer.

mod batch;
mod frame;
mod inbound;
mod origin;
mod outbound;
mod tcp;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leasehold_catalogue::NodeId;
use leasehold_proto::peer::Failure;
use tokio::sync::{mpsc, watch};

#[cfg(any(test, feature = "simulation"))]
pub use batch::Batches;
use frame::BODY_BYTES_MAX;
pub use frame::{Frame, FrameKind};
pub use inbound::{Answers, Dispatch, LaneServer};
pub use origin::{Caller, Origin};
pub use outbound::{Link, PendingAnswer};
use outbound::{Liveness, Way};
pub use tcp::{accept, is_lane};
pub use transport::{FrameStream, Sockets, Transport, TransportError};

/// Why a call to a peer has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallFailure {
    /// It was never sent: nothing happened.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    /// It was not sent, since it is longer than any node takes: nothing happened.
    #[error("a call of {0} bytes: a lane takes {BODY_BYTES_MAX}")]
    TooLong(usize),
    /// It was sent and the link broke: it may or may not have happened.
    #[error("the link to node {0} broke before the answer came")]
    Lost(NodeId),
    /// The peer answered that it did not do it, or does not know.
    #[error("the peer refused: {}", .0.detail)]
    Refused(Failure),
}

/// What the links notice about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// Its process is gone or it has been silent for the liveness timeout.
    Down(NodeId),
    /// It answers again.
    Up(NodeId),
}

/// The links of this node to one peer.
pub struct Peer {
    pub control: Link,
    pub bulk: Link,
}

/// The links of this node to all its peers.
pub struct Lanes {
    way: Way,
    liveness_timeout: Duration,
    events: mpsc::UnboundedSender<PeerEvent>,
    reach: watch::Sender<()>,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
}

impl Lanes {
    /// `events` hears of peers that go down or come back.
    pub fn new(
        origin: Origin,
        transport: Arc<dyn Transport>,
        liveness_timeout: Duration,
        events: mpsc::UnboundedSender<PeerEvent>,
    ) -> Self {
        let reach = watch::Sender::new(());
        Self {
            way: Way { origin, transport },
            liveness_timeout,
            events,
            reach,
            peers: Mutex::new(BTreeMap::new()),
        }
    }

    /// What this node says of itself to others.
    pub fn origin(&self) -> &Origin {
        &self.way.origin
    }

    /// How streams to other nodes are opened.
    pub fn transport(&self) -> &dyn Transport {
        &*self.way.transport
    }

    /// The links to a node, opened at the first use; `address` is host:port. Links that were opened when nobody knew where the node
    /// is go there now.
    pub fn peer(&self, node: NodeId, address: &str) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&node) {
            if peer.control.address().is_empty() && !address.is_empty() {
                peer.control.connect_to(address);
                peer.bulk.connect_to(address);
            }
            return peer.clone();
        }
        let silences = watch::Sender::new(());
        let bulk = Link::open_bulk(node, address, &self.way, silences.subscribe());
        let liveness = Liveness {
            timeout: self.liveness_timeout,
            events: self.events.clone(),
            reach: self.reach.clone(),
            silences,
        };
        let control = Link::open_control(node, address, &self.way, liveness);
        let peer = Arc::new(Peer { control, bulk });
        peers.insert(node, peer.clone());
        peer
    }

    /// Opens the links to a node, or sends them to its new address: it takes effect at the next connection, which is tried at once
    /// when there is none.
    pub fn follow_address(&self, node: NodeId, address: &str) {
        let peer = self.peer(node, address);
        peer.control.connect_to(address);
        peer.bulk.connect_to(address);
    }

    /// Follows a node that has just opened a stream to this one; what it says of itself is newer than what others know.
    pub fn follow_caller(&self, caller: &Caller) {
        self.follow_address(caller.node, &caller.address);
    }

    /// Where a node is reached, if it was met before.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.known(node).map(|peer| peer.control.address())
    }

    /// The links to a node that was met before.
    pub fn known(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// Whether the node answered within the liveness timeout.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.known(node).is_some_and(|peer| peer.control.is_connected())
    }

    /// Changes whenever a node is reached or no longer reached.
    pub fn reach(&self) -> watch::Receiver<()> {
        self.reach.subscribe()
    }

    /// Closes the links to nodes that left the cluster.
    pub fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| keep(*node));
    }
}
