//! Which fault comes when. It depends on the seed alone.

use std::time::Duration;

use leasehold_histories::random::Random;

use super::Fault;

/// One fault of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its place in the schedule.
    pub number: usize,
    pub fault: Fault,
    pub node: usize,
    /// What else the fault may choose, such as a share of packets or a direction.
    pub choice: u64,
    /// Since the start of the faults.
    pub begins: Duration,
    pub lasts: Duration,
    /// Calm afterwards, unless the next one overlaps.
    pub pause: Duration,
}

impl Planned {
    fn ends(&self) -> Duration {
        self.begins + self.lasts
    }
}

/// Before the first fault, so that there is traffic that it can stop.
const WARM_UP: Duration = Duration::from_secs(1);

/// How many faults are in force at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    One,
    /// Up to two: every other fault begins while the one before is in force, where both can be.
    Two,
}

/// The faults of a run, in the order in which they begin. Each kind comes once before any comes again, and once if the time is too
/// short for all of them.
pub fn schedule(
    faults: &[Fault],
    seed: u64,
    nodes: usize,
    time_limit: Duration,
    overlap: Overlap,
) -> Vec<Planned> {
    let mut random = Random::new(seed, u64::MAX);
    let mut planned: Vec<Planned> = Vec::new();
    let mut calm_at = WARM_UP;
    let mut awaited = Vec::new();
    while !faults.is_empty() && (calm_at < time_limit || planned.len() < faults.len()) {
        if awaited.is_empty() {
            awaited.extend_from_slice(faults);
        }
        let fault = awaited.swap_remove(random.below(awaited.len() as u64) as usize);
        let [shortest, longest] = fault.lasts_ms();
        let [calm_min, calm_max] = fault.calm_ms();
        let mut next = Planned {
            number: planned.len(),
            fault,
            node: random.below(nodes as u64) as usize,
            choice: random.draw(),
            begins: calm_at,
            lasts: Duration::from_millis(shortest + random.below(longest - shortest)),
            pause: Duration::from_millis(calm_min + random.below(calm_max - calm_min)),
        };
        let wants_company = random.percent(50);
        if overlap == Overlap::Two && wants_company {
            next.begins = begin_with_the_last(&planned, fault).unwrap_or(calm_at);
        }
        let last_end = planned.iter().map(Planned::ends).max().unwrap_or_default().max(next.ends());
        calm_at = last_end + next.pause;
        planned.push(next);
    }
    planned
}

/// The middle of the last fault, when that is alone then, the two do not meet at a process, and neither has to ask the cluster.
fn begin_with_the_last(planned: &[Planned], fault: Fault) -> Option<Duration> {
    let (last, earlier) = planned.split_last()?;
    let middle = last.begins + last.lasts / 2;
    let is_alone = earlier.iter().all(|other| other.ends() <= middle);
    let is_possible = (last.fault.is_of_network() || fault.is_of_network())
        && !(last.fault.is_of_queue() || fault.is_of_queue());
    (is_alone && is_possible).then_some(middle)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Begin,
    End,
}

/// Beginnings and ends in their order, each with the number of its fault.
pub fn steps(schedule: &[Planned]) -> Vec<(Duration, usize, Moment)> {
    let both = |(number, planned): (usize, &Planned)| {
        [(planned.begins, number, Moment::Begin), (planned.ends(), number, Moment::End)]
    };
    let mut steps = schedule.iter().enumerate().flat_map(both).collect::<Vec<_>>();
    steps.sort_unstable();
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{network, process, queue};
    use super::*;

    const FAULTS: [Fault; 6] = [
        Fault::Process(process::Fault::Kill),
        Fault::Process(process::Fault::Pause),
        Fault::Process(process::Fault::PauseKill),
        Fault::Network(network::Fault::PartitionHalves),
        Fault::Network(network::Fault::Delay),
        Fault::Queue(queue::Fault::QueueFull),
    ];

    fn plan(seed: u64, overlap: Overlap) -> Vec<Planned> {
        schedule(&FAULTS, seed, 3, Duration::from_secs(120), overlap)
    }

    fn meet(left: &Planned, right: &Planned) -> bool {
        left.begins < right.ends() && right.begins < left.ends()
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule() {
        for overlap in [Overlap::One, Overlap::Two] {
            assert_eq!(plan(7, overlap), plan(7, overlap));
            assert_ne!(plan(7, overlap), plan(8, overlap));
            assert!(plan(7, overlap).len() > 10);
        }
    }

    #[test]
    fn one_at_a_time_leaves_calm_between_two() {
        for pair in plan(7, Overlap::One).windows(2) {
            assert_eq!(pair[1].begins, pair[0].ends() + pair[0].pause);
        }
    }

    #[test]
    fn at_most_two_overlap_and_never_two_of_processes() {
        let mut meetings = 0;
        for seed in 0..50 {
            let planned = plan(seed, Overlap::Two);
            for (at, one) in planned.iter().enumerate() {
                let met = planned[at + 1..].iter().filter(|other| meet(one, other)).collect::<Vec<_>>();
                meetings += met.len();
                for other in &met {
                    let of_network = [one.fault.is_of_network(), other.fault.is_of_network()];
                    assert!(of_network.contains(&true), "{one:?} and {other:?}");
                    assert!(!one.fault.is_of_queue() && !other.fault.is_of_queue(), "{one:?} and {other:?}");
                }
                assert!(met.windows(2).all(|pair| !meet(pair[0], pair[1])), "three at a time: {met:?}");
            }
        }
        assert!(meetings > 100, "{meetings}");
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        for seed in 0..50 {
            let planned = plan(seed, Overlap::One);
            for round in planned.chunks_exact(FAULTS.len()) {
                assert!(FAULTS.iter().all(|fault| round.iter().any(|planned| planned.fault == *fault)));
            }
        }
    }

    #[test]
    fn every_kind_comes_once_however_short_the_time_is() {
        for overlap in [Overlap::One, Overlap::Two] {
            let planned = schedule(&FAULTS, 3, 3, Duration::from_secs(1), overlap);
            assert_eq!(planned.len(), FAULTS.len());
            assert!(FAULTS.iter().all(|fault| planned.iter().any(|planned| planned.fault == *fault)));
        }
        assert!(schedule(&[], 3, 3, Duration::from_secs(1), Overlap::One).is_empty());
    }

    #[test]
    fn every_fault_begins_and_ends_in_order() {
        let planned = plan(7, Overlap::Two);
        let steps = steps(&planned);
        assert_eq!(steps.len(), planned.len() * 2);
        assert!(steps.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        for number in 0..planned.len() {
            let of = |moment| steps.iter().position(|step| (step.1, step.2) == (number, moment));
            assert!(of(Moment::Begin) < of(Moment::End));
        }
    }
}
