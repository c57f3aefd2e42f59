//! Who opens a call between nodes, and for which cluster. Ports and addresses are used again: a node must not take part in another
//! cluster. And a node that came back elsewhere says so itself, to everyone it reaches: the catalogue, which needs a quorum of nodes
//! that reach each other, may not be able to.

use leasehold_catalogue::NodeId;
use leasehold_proto::peer::LaneHello;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

use crate::identity::to_hex;

const CLUSTER: &str = "leasehold-cluster";
const ANOTHER_CLUSTER: &str = "this node belongs to another cluster: check the addresses of the nodes";

/// What a node says of itself whenever it opens a stream to another one.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    hello: LaneHello,
    cluster: MetadataValue<Ascii>,
}

/// A node that has opened a lane.
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
            hello: LaneHello {
                cluster_id: cluster_id.to_vec().into(),
                node: node.0,
                address: address.to_owned(),
            },
            cluster: cluster.unwrap_or_else(|_| MetadataValue::from_static("none")),
        }
    }

    /// How a lane is opened.
    pub fn hello(&self) -> LaneHello {
        self.hello.clone()
    }

    /// Refuses who is of another cluster; returns who calls.
    ///
    /// # Errors
    /// Says what to look at.
    pub fn meet(&self, hello: &LaneHello) -> Result<Caller, String> {
        if hello.cluster_id != self.hello.cluster_id {
            return Err(ANOTHER_CLUSTER.to_owned());
        }
        Ok(Caller { node: NodeId(hello.node), address: hello.address.clone() })
    }

    /// A gRPC request that names the cluster.
    pub fn label<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(CLUSTER, self.cluster.clone());
        request
    }

    /// Refuses what is meant for another cluster.
    ///
    /// # Errors
    /// When the request names no cluster, or another one.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if metadata.get(CLUSTER) != Some(&self.cluster) {
            return Err(Status::failed_precondition(ANOTHER_CLUSTER));
        }
        Ok(())
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
        assert!(ours.meet(&ours.hello()).is_ok());
        assert!(ours.meet(&theirs.hello()).is_err());
        assert!(ours.meet(&LaneHello::default()).is_err());
    }

    #[test]
    fn a_caller_says_who_it_is_and_where() {
        let here = Origin::new(&[1; 16], NodeId(1), "one:7000");
        let there = Origin::new(&[1; 16], NodeId(2), "two:7000");
        let caller = Caller { node: NodeId(2), address: "two:7000".to_owned() };
        assert_eq!(here.meet(&there.hello()), Ok(caller));
    }
}
