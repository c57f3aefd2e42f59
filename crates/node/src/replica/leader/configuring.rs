//! Shards are made, and brought up to date, by the entries that need them.

use leasehold_partition::{Command, Isolation, QueueId, Refusal, RetryBudget, ShardView};

use super::Leadership;
use crate::failure::Failure;
use crate::replica::WantedShard;
use crate::replica::failures::behind;
use crate::replica::request::CommandCall;

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

/// Where a shard stands that the catalogue has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is as the catalogue wants it.
    Configured,
    /// An entry on its way makes it so.
    UnderWay,
    Due,
    /// A later revision than that of this node's copy of the catalogue is in the log.
    Behind,
}

/// `known` is the revision under which the shard was configured, and `seen` that under which this leader last found it so or proposed
/// it. What was proposed under an earlier revision than `latest`, which the partition has seen or will see, was refused, or will be
/// changed again.
fn standing(known: Option<u64>, seen: Option<u64>, latest: u64, wanted: &WantedShard) -> Standing {
    if known.is_some_and(|known| known >= wanted.changed) {
        Standing::Configured
    } else if seen.is_some_and(|seen| seen >= wanted.changed && seen >= latest) {
        Standing::UnderWay
    } else if wanted.revision < latest {
        Standing::Behind
    } else {
        Standing::Due
    }
}

impl Leadership {
    /// The shard is created, or brought up to date, right before the first command that needs it; and again when that was refused.
    ///
    /// # Errors
    /// When this node's copy of the catalogue is too old to know: it is worth trying again.
    pub(super) fn ensure_configured(&mut self, queue: QueueId) -> Result<Existence, Failure> {
        let wanted = self.shared.queues.shard_of(queue, self.shared.id);
        let seen = self.configured.get(&queue).copied();
        // The catalogue is as it was then. Most commands end here, and leave the state alone.
        let is_current = |wanted: &WantedShard| seen.is_some_and(|seen| seen >= wanted.revision);
        if wanted.as_ref().is_some_and(is_current) {
            return Ok(Existence::Known);
        }
        self.follow_version();
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
        let asked = self.configuring.get(&queue).copied();
        match standing(known, seen, revision_min.max(asked.unwrap_or_default()), &wanted) {
            Standing::Configured => {
                self.configured.insert(queue, wanted.revision);
            }
            Standing::UnderWay => {}
            Standing::Behind if known.is_none() => return Err(behind()),
            // It serves as it is until this node has heard what others have.
            Standing::Behind => {}
            Standing::Due => {
                // Of what is on its way nothing is applied yet, so that after the first time nothing may be left out.
                let special = shard.as_ref().map(special_of).unwrap_or_default();
                let is_first = seen.is_none() && asked.is_none();
                self.configured.insert(queue, wanted.revision);
                self.configuring.insert(queue, wanted.revision);
                for command in configuration(queue, is_first.then_some(special), &wanted) {
                    self.add_own(&command);
                }
            }
        }
        Ok(Existence::Known)
    }

    /// Why a command of somebody who configures a shard is not for the log: it was read from an earlier catalogue than what is in the
    /// log, or on its way there. The partition would take it, for it looks at revisions under which something has changed only, and the
    /// shard would stay as it was wanted before. What is taken is what the next one is measured by.
    pub(super) fn outdated(&mut self, call: &CommandCall) -> Option<Refusal> {
        let (revision, is_last) = match Command::decode_configuring(&call.command)? {
            Command::SetRetryBudget { revision, .. } | Command::SetIsolation { revision, .. } => {
                (revision, false)
            }
            Command::Configure { revision, .. } => (revision, true),
            _ => return None,
        };
        let applied = self.shared.machine.read().shard(call.queue).map_or(0, |shard| shard.revision);
        let asked = self.configuring.get(&call.queue).copied();
        let latest = applied.max(asked.unwrap_or_default());
        // With its settings a shard counts as configured. What goes before them was asked of an earlier leader, and may be undone.
        if revision < latest || (is_last && asked != Some(revision)) {
            return Some(Refusal::StaleRevision { revision_min: latest });
        }
        self.configuring.insert(call.queue, revision);
        None
    }

    /// The partition goes to the version of the cluster before the first command that comes after.
    fn follow_version(&mut self) {
        let version = self.shared.queues.version();
        if version > self.version {
            self.version = version;
            self.add_own(&Command::SetVersion { version });
        }
    }
}

impl WantedShard {
    /// What makes a shard be so that exists, whatever it is now. The settings come last: with them it counts as configured.
    pub fn commands(&self, queue: QueueId) -> Vec<Command<'static>> {
        let mut commands = configuration(queue, None, self);
        commands.rotate_left(1);
        commands
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

    fn wanted(changed: u64, revision: u64) -> WantedShard {
        let (settings, isolation) = (Settings::default(), Isolation::Off);
        WantedShard { settings, retry_budget: None, isolation, changed, revision }
    }

    #[test]
    fn only_what_is_known_for_certain_is_left_out() {
        let budget = RetryBudget { percent: 10, floor_per_s: 1 };
        let wanted = wanted(7, 8);
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

    #[test]
    fn what_was_refused_is_due_again() {
        let wanted = wanted(7, 8);
        assert_eq!(standing(Some(6), None, 5, &wanted), Standing::Due, "it has changed since");
        assert_eq!(standing(None, Some(8), 8, &wanted), Standing::UnderWay, "it is proposed");
        assert_eq!(standing(Some(7), Some(8), 9, &wanted), Standing::Configured);
        // The partition has seen revision 9, and refuses what was proposed under 8.
        assert_eq!(standing(Some(6), Some(8), 9, &wanted), Standing::Behind);
        let later = WantedShard { revision: 9, ..wanted };
        assert_eq!(standing(Some(6), Some(8), 9, &later), Standing::Due);
        assert_eq!(standing(Some(6), Some(9), 9, &later), Standing::UnderWay);
    }

    /// Somebody else has read revision 9, and has asked for it: what this leader read before would come after it.
    #[test]
    fn a_leader_undoes_nothing_that_was_asked_for_under_a_later_revision() {
        let wanted = wanted(8, 8);
        assert_eq!(standing(Some(6), None, 9, &wanted), Standing::Behind);
        assert_eq!(standing(Some(6), None, 9, &WantedShard { revision: 9, ..wanted }), Standing::Due);
    }

    #[test]
    fn a_shard_counts_as_configured_when_all_of_it_is() {
        let commands = wanted(7, 8).commands(QueueId(1));
        assert!(matches!(
            commands[..],
            [Command::SetRetryBudget { .. }, Command::SetIsolation { .. }, Command::Configure { .. }]
        ));
    }
}
