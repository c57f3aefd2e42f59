//! How leases of a queue ended that ended without an ack, added up over its shards: a failure, a time-out and a death of the
//! consumer have different remedies.
//!
//! docs/suspects.md lists the advice by code.

use leasehold_partition::{ShardView, Totals};
use leasehold_proto::v1::{Advice, Endings, ShardDescription};

pub fn shown(shard: &ShardView) -> Endings {
    let Totals { released, given_back, rejected, expired, lost, .. } = shard.totals;
    Endings {
        failed: released - given_back + rejected,
        timed_out: expired - lost,
        lost,
        untouched: given_back,
        suspects: shard.suspects.waiting,
        on_trial: shard.suspects.on_trial.into(),
    }
}

pub fn sum(shards: &[ShardDescription]) -> Endings {
    shards.iter().filter_map(|shard| shard.endings).fold(Endings::default(), |left, right| Endings {
        failed: left.failed + right.failed,
        timed_out: left.timed_out + right.timed_out,
        lost: left.lost + right.lost,
        untouched: left.untouched + right.untouched,
        suspects: left.suspects + right.suspects,
        on_trial: left.on_trial + right.on_trial,
    })
}

/// What to do while something is suspected.
pub fn advice(endings: &Endings) -> Option<Advice> {
    let suspects = endings.suspects + endings.on_trial;
    (suspects > 0).then(|| {
        let messages = if suspects == 1 { "1 message".to_owned() } else { format!("{suspects} messages") };
        let text = format!(
            "consumers died with {messages}, which are tried apart from the others: look at why those consumers died"
        );
        Advice { code: "suspects".to_owned(), text }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_add_up_and_suspects_are_told() {
        let shard = |suspects| {
            let endings = Endings { failed: 1, timed_out: 2, lost: 3, untouched: 4, suspects, on_trial: 0 };
            ShardDescription { endings: Some(endings), ..ShardDescription::default() }
        };
        let none = sum(&[shard(0), ShardDescription::default()]);
        assert_eq!((none.failed, none.timed_out, none.lost, none.untouched), (1, 2, 3, 4));
        assert_eq!(advice(&none), None);
        let said = advice(&sum(&[shard(1), shard(2)])).unwrap();
        assert_eq!(said.code, "suspects");
        assert!(
            said.text.starts_with("consumers died with 3 messages, which are tried apart"),
            "{}",
            said.text
        );
    }
}
