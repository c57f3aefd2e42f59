//! Shards are made, and brought up to date, by the entries that need them.

use leasehold_partition::{Command, Isolation, QueueId, RetryBudget, ShardView};

use super::Leadership;
use crate::failure::Failure;
use crate::replica::WantedShard;
use crate::replica::failures::behind;

/// What the catalogue says of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existence {
    Known,
    Deleted,
}

/// What a shard has beside its settings, and most have not.
type Special = (Option<RetryBudget>, Isolation);

fn special_of(shard: &ShardView) -> Special {
    (shard.damping.and_then(|damping| damping.budget), shard.suspects.isolation)
}

impl Leadership {
    /// The shard is created, or brought up to date, right before the first command that needs it.
    ///
    /// # Errors
    /// When this node's copy of the catalogue is too old to know: it is worth trying again.
    pub(super) fn ensure_configured(&mut self, queue: QueueId) -> Result<Existence, Failure> {
        let wanted = self.shared.queues.shard_of(queue, self.shared.id);
        let is_current =
            |wanted: &WantedShard| self.configured.get(&queue).is_some_and(|seen| *seen >= wanted.changed);
        if wanted.as_ref().is_some_and(is_current) {
            return Ok(Existence::Known);
        }
        let (shard, revision_min) = {
            let state = self.shared.machine.read();
            (state.shard(queue), state.revision_min())
        };
        let known = shard.as_ref().map(|shard| shard.revision);
        let Some(wanted) = wanted else {
            // A queue that is gone is the state machine's to refuse; one that is not there yet was made a moment ago.
            return match self.shared.queues.is_deleted(queue) {
                true => Ok(Existence::Deleted),
                false if known.is_none() => Err(behind()),
                false => Ok(Existence::Known),
            };
        };
        if known.is_none() && wanted.revision < revision_min {
            return Err(behind());
        }
        // Of what is on its way nothing is applied yet, so that after the first time nothing may be left out.
        let special = shard.as_ref().map(special_of).unwrap_or_default();
        let is_first = self.configured.insert(queue, wanted.changed).is_none();
        if known.is_none_or(|revision| revision < wanted.changed) {
            for command in configuration(queue, is_first.then_some(special), &wanted) {
                self.add_own(&command);
            }
        }
        Ok(Existence::Known)
    }
}

/// What makes a shard be what the catalogue wants, of what it is not, as far as that is known.
fn configuration(queue: QueueId, known: Option<Special>, wanted: &WantedShard) -> Vec<Command<'static>> {
    let WantedShard { settings, retry_budget: budget, isolation, revision, .. } = *wanted;
    let mut commands = vec![Command::Configure { queue, settings, revision }];
    if known.is_none_or(|(known, _)| known != budget) {
        commands.push(Command::SetRetryBudget { queue, budget, revision });
    }
    if known.is_none_or(|(_, known)| known != isolation) {
        commands.push(Command::SetIsolation { queue, isolation, revision });
    }
    commands
}

#[cfg(test)]
mod tests {
    use leasehold_partition::Settings;

    use super::*;

    #[test]
    fn only_what_is_known_for_certain_is_left_out() {
        let budget = RetryBudget { percent: 10, floor_per_s: 1 };
        let (settings, isolation) = (Settings::default(), Isolation::Off);
        let wanted = WantedShard { settings, retry_budget: None, isolation, changed: 7, revision: 8 };
        let commands = |known| configuration(QueueId(1), known, &wanted);
        assert!(matches!(
            commands(Some((None, Isolation::Off)))[..],
            [Command::Configure { revision: 8, .. }]
        ));
        let switched_off = commands(Some((Some(budget), Isolation::Off)));
        assert!(matches!(switched_off[1..], [Command::SetRetryBudget { budget: None, .. }]));
        let let_go = commands(Some((None, Isolation::On)));
        assert!(matches!(let_go[1..], [Command::SetIsolation { isolation: Isolation::Off, .. }]));
        let on_its_way = commands(None);
        assert!(matches!(on_its_way[1..], [Command::SetRetryBudget { .. }, Command::SetIsolation { .. }]));
    }
}
