//! Whether the replicas of a cluster are equal: what all nodes hold, side by side (I12).
//!
//! Two replicas can be compared when they have applied the same entries. A partition that is busy is asked again until its
//! replicas are met at one index; with traffic on it that may not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasehold_client::v1::{DigestsResponse, ReplicaDigest};
use leasehold_client::{Client, Error};
use tokio::time::{Instant, sleep};

const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Parts whose replicas are equal: partitions, and the catalogue.
    pub equal: usize,
    /// Parts whose replicas were never met at the same index.
    pub busy: Vec<String>,
    /// Parts with replicas that are not equal: a line each.
    pub diverged: Vec<String>,
}

/// A partition, or the catalogue.
type Part = Option<u32>;
/// What nodes hold of a part, by the last entry it holds.
type Seen = BTreeMap<Part, BTreeMap<u64, BTreeMap<String, u64>>>;

/// Asks every node, each through a client that knows it alone, until all parts are compared or `patience` is over.
///
/// # Errors
/// When a node does not answer.
pub async fn compare(nodes: &[Client], patience: Duration) -> Result<Comparison, Error> {
    let end = Instant::now() + patience;
    let mut seen = Seen::new();
    loop {
        let mut holders: BTreeMap<Part, BTreeSet<String>> = BTreeMap::new();
        for node in nodes {
            let digests = node.digests().await?;
            for (part, digest) in parts(&digests) {
                let of_index = seen.entry(part).or_default().entry(digest.applied_index).or_default();
                of_index.insert(digests.node.clone(), digest.state_hash);
                holders.entry(part).or_default().insert(digests.node.clone());
            }
        }
        let found = judge(&seen, &holders);
        if found.busy.is_empty() || !found.diverged.is_empty() || Instant::now() > end {
            return Ok(found);
        }
        sleep(ASK_AGAIN).await;
    }
}

fn parts(digests: &DigestsResponse) -> impl Iterator<Item = (Part, &ReplicaDigest)> {
    let catalogue = digests.catalogue.iter().map(|digest| (None, digest));
    catalogue.chain(digests.partitions.iter().map(|digest| (Some(digest.partition), digest)))
}

fn judge(seen: &Seen, holders: &BTreeMap<Part, BTreeSet<String>>) -> Comparison {
    let mut found = Comparison::default();
    for (part, holders) in holders {
        let name =
            part.map_or_else(|| "the catalogue".to_owned(), |partition| format!("partition {partition}"));
        let by_index = seen.get(part).into_iter().flatten();
        let differ = |hashes: &BTreeMap<String, u64>| hashes.values().collect::<BTreeSet<_>>().len() > 1;
        if let Some((index, hashes)) = by_index.clone().find(|(_, hashes)| differ(hashes)) {
            found.diverged.push(format!("{name} at index {index}: {hashes:x?}"));
        } else if by_index.clone().any(|(_, hashes)| holders.iter().all(|node| hashes.contains_key(node))) {
            found.equal += 1;
        } else {
            found.busy.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(digests: &[(Part, u64, &str, u64)]) -> Comparison {
        let (mut seen, mut holders) = (Seen::new(), BTreeMap::<Part, BTreeSet<String>>::new());
        for (part, index, node, hash) in digests {
            let of_index = seen.entry(*part).or_default().entry(*index).or_default();
            of_index.insert((*node).to_owned(), *hash);
            holders.entry(*part).or_default().insert((*node).to_owned());
        }
        judge(&seen, &holders)
    }

    #[test]
    fn replicas_are_equal_when_all_were_met_at_one_index() {
        let found = judged(&[(Some(1), 7, "n1", 5), (Some(1), 7, "n2", 5), (None, 3, "n1", 9)]);
        assert_eq!((found.equal, found.busy.len(), found.diverged.len()), (2, 0, 0));
        let earlier = judged(&[(Some(1), 7, "n1", 5), (Some(1), 8, "n1", 6), (Some(1), 7, "n2", 5)]);
        assert_eq!(earlier.equal, 1);
    }

    #[test]
    fn replicas_at_different_indexes_are_busy_and_different_hashes_are_found() {
        let busy = judged(&[(Some(1), 7, "n1", 5), (Some(1), 8, "n2", 6)]);
        assert_eq!((busy.equal, busy.busy), (0, vec!["partition 1".to_owned()]));
        let diverged = judged(&[(Some(1), 7, "n1", 5), (Some(1), 7, "n2", 6), (Some(1), 6, "n3", 6)]);
        assert_eq!((diverged.equal, diverged.diverged.len()), (0, 1));
    }
}
