//! W8: what a full cycle costs as a cluster grows, with more partitions or more nodes.

use super::Plan;
use super::cycle::{Saturated, saturated};
use crate::compare::results::Log;
use crate::compare::system::{Failure, Shape, System};

const BODY_BYTES: usize = 128;

/// One of the two grows at a time.
pub const SHAPES: [Shape; 6] = [
    Shape { nodes: 3, partitions: 1 },
    Shape { nodes: 3, partitions: 4 },
    Shape { nodes: 3, partitions: 16 },
    Shape { nodes: 3, partitions: 64 },
    Shape { nodes: 1, partitions: 4 },
    Shape { nodes: 5, partitions: 4 },
];

pub async fn run(system: &dyn System, shape: Shape, plan: &Plan, log: &mut Log) -> Result<(), Failure> {
    let Shape { nodes, partitions } = shape;
    let queues = system.queues_for(partitions);
    let readings = saturated(system, &Saturated { queues, bytes: BODY_BYTES, time: plan.time }).await?;
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (nodes, partitions) = (plural(nodes, "node"), plural(partitions as usize, "partition"));
    log.record(format!("W8 {nodes}, {partitions}"), readings);
    Ok(())
}
