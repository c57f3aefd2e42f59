//! What happens to a packet on its way from one place to another: decided by the disturbances in force and by one seeded random
//! of each link, so that a link that carries more does not change the luck of the others.

use std::collections::BTreeMap;
use std::time::Duration;

/// Where packets come from and go to: a node by its number, from 0; the clients have the number after the last node.
use leasehold_histories::random::Random;

pub type Place = usize;

/// One direction between two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub from: Place,
    pub to: Place,
}

/// What a disturbance does to each packet of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// So many of a hundred vanish; 100 is a cut.
    Loss { percent: u64 },
    /// Each is late by a time of its own, so they overtake each other.
    Delay { min: Duration, max: Duration },
    /// So many of a hundred come twice.
    Duplicate { percent: u64 },
}

/// One effect on some links. Several may be in force: a packet suffers all those of its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disturbance {
    pub links: Vec<Link>,
    pub effect: Effect,
}

/// The disturbances in force, by the number under which they were imposed.
pub struct Rules {
    seed: u64,
    in_force: BTreeMap<usize, Disturbance>,
    randoms: BTreeMap<Link, Random>,
}

/// The copies of a packet that arrive, each after a delay; none is a loss.
pub type Fate = Vec<Duration>;

impl Rules {
    pub fn new(seed: u64) -> Self {
        Self { seed, in_force: BTreeMap::new(), randoms: BTreeMap::new() }
    }

    pub fn impose(&mut self, number: usize, disturbance: Disturbance) {
        self.in_force.insert(number, disturbance);
    }

    pub fn lift(&mut self, number: usize) {
        self.in_force.remove(&number);
    }

    /// Draws what happens to the next packet of a link.
    pub fn fate(&mut self, link: Link) -> Fate {
        let seed = self.seed;
        let stream = || Random::new(seed, STREAMS_BEGIN + (link.from * PLACES_MAX + link.to) as u64);
        let random = self.randoms.entry(link).or_insert_with(stream);
        let mut copies = 1;
        let mut windows = Vec::new();
        for disturbance in self.in_force.values().filter(|disturbance| disturbance.links.contains(&link)) {
            match disturbance.effect {
                Effect::Loss { percent } if random.percent(percent) => return Fate::new(),
                Effect::Loss { .. } => {}
                Effect::Delay { min, max } => windows.push((min, max)),
                Effect::Duplicate { percent } => copies += u32::from(random.percent(percent)),
            }
        }
        let mut late = |(min, max): &(Duration, Duration)| {
            *min + Duration::from_micros(random.below(max.saturating_sub(*min).as_micros() as u64))
        };
        (0..copies).map(|_| windows.iter().map(&mut late).sum()).collect()
    }
}

/// The randoms of links are streams of the run's seed beyond those of its workers and its schedule.
const STREAMS_BEGIN: u64 = 1_000_000;
pub const PLACES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const FORTH: Link = Link { from: 0, to: 1 };
    const BACK: Link = Link { from: 1, to: 0 };

    fn one(effect: Effect) -> Disturbance {
        Disturbance { links: vec![FORTH], effect }
    }

    fn arrivals(rules: &mut Rules, link: Link) -> Vec<Fate> {
        (0..1_000).map(|_| rules.fate(link)).collect()
    }

    #[test]
    fn undisturbed_packets_arrive_once_and_at_once() {
        assert_eq!(Rules::new(1).fate(FORTH), [Duration::ZERO]);
    }

    #[test]
    fn a_cut_in_one_direction_leaves_the_other_and_ends_when_it_is_lifted() {
        let mut rules = Rules::new(1);
        rules.impose(4, one(Effect::Loss { percent: 100 }));
        assert!(arrivals(&mut rules, FORTH).iter().all(Vec::is_empty));
        assert!(arrivals(&mut rules, BACK).iter().all(|fate| fate == &[Duration::ZERO]));
        rules.lift(4);
        assert!(arrivals(&mut rules, FORTH).iter().all(|fate| fate == &[Duration::ZERO]));
    }

    #[test]
    fn loss_takes_its_share() {
        let mut rules = Rules::new(1);
        rules.impose(0, one(Effect::Loss { percent: 20 }));
        let lost = arrivals(&mut rules, FORTH).iter().filter(|fate| fate.is_empty()).count();
        assert!((150..250).contains(&lost), "{lost}");
    }

    #[test]
    fn delays_keep_their_bounds_and_change_the_order() {
        let mut rules = Rules::new(1);
        let (min, max) = (Duration::from_millis(20), Duration::from_millis(200));
        rules.impose(0, one(Effect::Delay { min, max }));
        let delays = arrivals(&mut rules, FORTH).concat();
        assert_eq!(delays.len(), 1_000);
        assert!(delays.iter().all(|delay| (min..max).contains(delay)));
        assert!(delays.windows(2).any(|pair| pair[1] < pair[0]));
    }

    #[test]
    fn disturbances_that_overlap_add_up() {
        let mut rules = Rules::new(1);
        rules.impose(0, one(Effect::Duplicate { percent: 100 }));
        let delay = Duration::from_millis(30);
        rules.impose(1, one(Effect::Delay { min: delay, max: delay }));
        assert_eq!(rules.fate(FORTH), [delay, delay]);
        rules.lift(1);
        assert_eq!(rules.fate(FORTH), [Duration::ZERO; 2]);
        rules.impose(1, one(Effect::Loss { percent: 100 }));
        assert_eq!(rules.fate(FORTH), Fate::new());
    }

    #[test]
    fn a_link_has_its_own_luck() {
        let with_traffic_on = |links: &[Link]| {
            let mut rules = Rules::new(7);
            let links_of = vec![FORTH, BACK];
            rules.impose(0, Disturbance { links: links_of, effect: Effect::Loss { percent: 50 } });
            for _ in 0..100 {
                links.iter().for_each(|link| drop(rules.fate(*link)));
            }
            arrivals(&mut rules, FORTH)
        };
        assert_eq!(with_traffic_on(&[]), with_traffic_on(&[BACK]));
        assert_ne!(with_traffic_on(&[]), with_traffic_on(&[FORTH]));
    }
}
