//! Which cluster a call between nodes is meant for. Ports and addresses are used again; a node must not take part in another cluster.

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

use crate::identity::to_hex;

const KEY: &str = "leasehold-cluster";

/// The id of a cluster, as it travels with every stream between its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterName(MetadataValue<Ascii>);

impl ClusterName {
    pub fn of(cluster_id: &[u8; 16]) -> Self {
        // Hexadecimal digits are always a value.
        let name = MetadataValue::try_from(to_hex(cluster_id));
        Self(name.unwrap_or_else(|_| MetadataValue::from_static("none")))
    }

    /// A request that names the cluster.
    pub fn label<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(KEY, self.0.clone());
        request
    }

    /// Refuses what is meant for another cluster.
    ///
    /// # Errors
    /// When the request names none, or another one.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        match metadata.get(KEY) {
            Some(name) if *name == self.0 => Ok(()),
            _ => Err(Status::failed_precondition(
                "this node belongs to another cluster: check the addresses of the nodes",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_same_cluster_are_served() {
        let (ours, theirs) = (ClusterName::of(&[1; 16]), ClusterName::of(&[2; 16]));
        assert!(ours.check(ours.label(()).metadata()).is_ok());
        assert!(ours.check(theirs.label(()).metadata()).is_err());
        assert!(ours.check(Request::new(()).metadata()).is_err());
    }
}
