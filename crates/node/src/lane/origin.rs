//! Who opens a call between nodes, and for which cluster. Ports and addresses are used again: a node must not take part in another
//! cluster. And a node that came back elsewhere says so itself, to everyone it reaches: the catalogue, which needs a quorum of nodes
//! that reach each other, may not be able to.

use leasehold_catalogue::NodeId;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

use crate::identity::to_hex;

const CLUSTER: &str = "leasehold-cluster";
const NODE: &str = "leasehold-node";
const ADDRESS: &str = "leasehold-address";

/// What a node says of itself whenever it opens a stream to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    cluster: MetadataValue<Ascii>,
    node: MetadataValue<Ascii>,
    address: Option<MetadataValue<Ascii>>,
}

/// A node that has opened a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub node: NodeId,
    /// Where other nodes reach it, host:port.
    pub address: String,
}

impl Origin {
    pub fn new(cluster_id: &[u8; 16], node: NodeId, address: &str) -> Self {
        // Hexadecimal digits are always a value.
        let cluster = MetadataValue::try_from(to_hex(cluster_id));
        Self {
            cluster: cluster.unwrap_or_else(|_| MetadataValue::from_static("none")),
            node: MetadataValue::from(node.0),
            address: MetadataValue::try_from(address).ok(),
        }
    }

    /// A request that names the cluster and the caller.
    pub fn label<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster.clone());
        metadata.insert(NODE, self.node.clone());
        if let Some(address) = &self.address {
            metadata.insert(ADDRESS, address.clone());
        }
        request
    }

    /// Refuses what is meant for another cluster; returns who calls, if the request says so.
    ///
    /// # Errors
    /// When the request names no cluster, or another one.
    pub fn check(&self, metadata: &MetadataMap) -> Result<Option<Caller>, Status> {
        if metadata.get(CLUSTER) != Some(&self.cluster) {
            return Err(Status::failed_precondition(
                "this node belongs to another cluster: check the addresses of the nodes",
            ));
        }
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let node = text(NODE).and_then(|node| node.parse().ok()).map(NodeId);
        Ok(node.zip(text(ADDRESS)).map(|(node, address)| Caller { node, address: address.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_same_cluster_are_served() {
        let ours = Origin::new(&[1; 16], NodeId(1), "one:7000");
        let theirs = Origin::new(&[2; 16], NodeId(1), "one:7000");
        assert!(ours.check(ours.label(()).metadata()).is_ok());
        assert!(ours.check(theirs.label(()).metadata()).is_err());
        assert!(ours.check(Request::new(()).metadata()).is_err());
    }

    #[test]
    fn a_caller_says_who_it_is_and_where() {
        let (here, there) =
            (Origin::new(&[1; 16], NodeId(1), "one:7000"), Origin::new(&[1; 16], NodeId(2), "two:7000"));
        let caller = here.check(there.label(()).metadata()).unwrap();
        assert_eq!(caller, Some(Caller { node: NodeId(2), address: "two:7000".to_owned() }));
        let mut unnamed = there.label(());
        unnamed.metadata_mut().remove(NODE);
        assert_eq!(here.check(unnamed.metadata()).unwrap(), None);
    }
}
