//! What to do about a queue's lease, in words, from what was measured.
//!
//! Each rule looks at the same facts and says one thing or nothing. docs/headroom.md lists them by code.

use std::collections::BTreeMap;

use leasehold_partition::Measure;
use leasehold_partition::limits::LEASE_MS_MAX;
use leasehold_proto::v1::Advice;

/// Acks below which no quantile is worth an advice.
const ACKS_MIN: u64 = 100;
/// A lease of less than so many p99 is too short, in thousandths.
const RATIO_PERMILLE_MIN: u64 = 2_000;
/// What a lease is raised to, in p99.
const RAISED_FACTOR: u64 = 3;
/// A lease of more than so many p99.9 is too long, and what it is lowered to.
const LOWERED_FACTOR: u64 = 10;
/// Leases below this are short enough to wait for.
const LEASE_MS_LONG: u64 = 60_000;
/// One version is slower than another from so many times its p99 on.
const SLOWER_FACTOR: u64 = 2;

struct Facts<'a> {
    lease_ms: u64,
    acks: u64,
    p99_ms: u64,
    p999_ms: u64,
    all: &'a Measure,
    versions: &'a BTreeMap<&'a str, Measure>,
}

type Rule = (&'static str, fn(&Facts<'_>) -> Option<String>);

const RULES: [Rule; 6] = [
    ("raise-lease", raise_lease),
    ("close-calls", close_calls),
    ("late-acks", late_acks),
    ("lost-leases", lost_leases),
    ("lower-lease", lower_lease),
    ("slower-version", slower_version),
];

/// Everything there is to say.
pub fn of(lease_ms: u64, all: &Measure, versions: &BTreeMap<&str, Measure>) -> Vec<Advice> {
    let held = &all.held;
    let (p99_ms, p999_ms) = (held.quantile_ms(990), held.quantile_ms(999));
    let facts = Facts { lease_ms, acks: held.total(), p99_ms, p999_ms, all, versions };
    let said = RULES.iter().filter_map(|(code, rule)| Some((code, rule(&facts)?)));
    said.map(|(code, text)| Advice { code: (*code).to_owned(), text }).collect()
}

impl Facts<'_> {
    fn is_short(&self) -> bool {
        self.acks >= ACKS_MIN && self.lease_ms * 1000 < self.p99_ms * RATIO_PERMILLE_MIN
    }

    /// Whether consumers keep short leases alive themselves, and well.
    fn is_kept_by_extensions(&self) -> bool {
        let Measure { last_tenth, late, extended, expired, .. } = self.all;
        *extended > 0 && *late == 0 && !self.is_frequent(*last_tenth) && !self.is_frequent(*expired)
    }

    /// More than one in a hundred acks.
    fn is_frequent(&self, count: u32) -> bool {
        u64::from(count) * 100 > self.acks
    }
}

fn raise_lease(facts: &Facts<'_>) -> Option<String> {
    if !facts.is_short() || facts.is_kept_by_extensions() {
        return None;
    }
    let (p99, lease) = (span(facts.p99_ms), span(facts.lease_ms));
    let raised_ms = round_up(facts.p99_ms * RAISED_FACTOR);
    Some(match raised_ms > u64::from(LEASE_MS_MAX) {
        true => format!("p99 {p99}, timeout {lease}: extend leases while working, or expect redelivery"),
        false => format!("p99 {p99}, timeout {lease}: raise to {} or expect redelivery", span(raised_ms)),
    })
}

fn close_calls(facts: &Facts<'_>) -> Option<String> {
    let last_tenth = facts.all.last_tenth;
    let is_worth_it = facts.acks >= ACKS_MIN && facts.is_frequent(last_tenth) && !facts.is_short();
    is_worth_it.then(|| {
        format!(
            "{last_tenth} of {} acks came in the last tenth of their lease: ask for longer leases, or extend them earlier",
            facts.acks
        )
    })
}

fn late_acks(facts: &Facts<'_>) -> Option<String> {
    let late = facts.all.late;
    (late > 0).then(|| {
        let acks = if late == 1 { "1 ack" } else { &format!("{late} acks") };
        format!("{acks} came after the lease had ended: what was done may be done again by another consumer")
    })
}

fn lost_leases(facts: &Facts<'_>) -> Option<String> {
    let expired = facts.all.expired;
    let is_worth_it = u64::from(expired) + facts.acks >= ACKS_MIN && facts.is_frequent(expired);
    if !is_worth_it || facts.is_short() {
        return None;
    }
    let seen = match facts.acks {
        0 => "nothing was acknowledged".to_owned(),
        acks => format!("{acks} messages were acknowledged, p99 {}", span(facts.p99_ms)),
    };
    Some(format!("{expired} leases ended by themselves and {seen}: look for consumers that crash or hang"))
}

fn lower_lease(facts: &Facts<'_>) -> Option<String> {
    let enough_ms = round_up(facts.p999_ms * LOWERED_FACTOR).max(LEASE_MS_LONG / 2);
    let is_long = facts.lease_ms >= LEASE_MS_LONG && facts.lease_ms >= enough_ms * 2;
    (facts.acks >= ACKS_MIN && is_long).then(|| {
        let (p999, lease, enough) = (span(facts.p999_ms), span(facts.lease_ms), span(enough_ms));
        format!("p99.9 {p999}, timeout {lease}: messages of a consumer that died wait that long; {enough} is enough")
    })
}

fn slower_version(facts: &Facts<'_>) -> Option<String> {
    let known = facts
        .versions
        .iter()
        .filter(|(version, measure)| !version.is_empty() && measure.held.total() >= ACKS_MIN);
    let by_p99 = known.map(|(version, measure)| (measure.held.quantile_ms(990), *version));
    let (fast, slow) = (by_p99.clone().min()?, by_p99.max()?);
    (slow.0 >= fast.0.max(1) * SLOWER_FACTOR).then(|| {
        format!("p99 of version {} is {}, that of {} is {}", slow.1, span(slow.0), fast.1, span(fast.0))
    })
}

/// To two digits, and not below.
fn round_up(ms: u64) -> u64 {
    let mut step = 1;
    while ms / step >= 100 {
        step *= 10;
    }
    ms.div_ceil(step) * step
}

/// A duration for people: `120 ms`, `2.5 s`, `12 h`.
fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let Some((unit_ms, name)) = UNITS.into_iter().find(|(unit_ms, _)| ms >= *unit_ms) else {
        return format!("{ms} ms");
    };
    let tenths = (ms * 10 + unit_ms / 2) / unit_ms;
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times as (how many, ms); then last tenth, late, extended, expired.
    struct Case {
        lease_ms: u64,
        acks: &'static [(u32, u64)],
        counts: [u32; 4],
        says: &'static [&'static str],
    }

    const fn case(
        lease_ms: u64,
        acks: &'static [(u32, u64)],
        counts: [u32; 4],
        says: &'static [&'static str],
    ) -> Case {
        Case { lease_ms, acks, counts, says }
    }

    const CASES: [Case; 15] = [
        // Room enough, and the default lease is not called long.
        case(30_000, &[(1_000, 50)], [0; 4], &[]),
        // Too few to tell.
        case(1_000, &[(99, 900)], [0; 4], &[]),
        // The text of the issue.
        case(
            3_000,
            &[(1_000, 2_500)],
            [0; 4],
            &["p99 2.6 s, timeout 3 s: raise to 7.7 s or expect redelivery"],
        ),
        // A slow hundredth and a bit is enough.
        case(
            3_000,
            &[(980, 20), (20, 2_500)],
            [0; 4],
            &["p99 2.6 s, timeout 3 s: raise to 7.7 s or expect redelivery"],
        ),
        case(3_000, &[(999, 20), (1, 2_500)], [0; 4], &[]),
        // Consumers extend in time: a short lease is what they want.
        case(3_000, &[(1_000, 60_000)], [5, 0, 20_000, 3], &[]),
        // They extend, and not in time.
        case(
            3_000,
            &[(1_000, 60_000)],
            [5, 0, 20_000, 30],
            &["p99 1 min, timeout 3 s: raise to 3.2 min or expect redelivery"],
        ),
        // No lease is long enough.
        case(
            43_200_000,
            &[(100, 36_000_000)],
            [0; 4],
            &["p99 10.5 h, timeout 12 h: extend leases while working, or expect redelivery"],
        ),
        // A receive that asks for shorter leases than the queue has.
        case(
            30_000,
            &[(1_000, 900)],
            [11, 0, 0, 0],
            &[
                "11 of 1000 acks came in the last tenth of their lease: ask for longer leases, or extend them earlier",
            ],
        ),
        case(30_000, &[(1_000, 900)], [10, 0, 0, 0], &[]),
        case(
            30_000,
            &[(1_000, 900)],
            [0, 1, 0, 1],
            &["1 ack came after the lease had ended: what was done may be done again by another consumer"],
        ),
        case(
            30_000,
            &[(1_000, 900)],
            [0, 2, 0, 11],
            &[
                "2 acks came after the lease had ended: what was done may be done again by another consumer",
                "11 leases ended by themselves and 1000 messages were acknowledged, p99 959 ms: look for consumers that \
                 crash or hang",
            ],
        ),
        case(
            30_000,
            &[],
            [0, 0, 0, 100],
            &[
                "100 leases ended by themselves and nothing was acknowledged: look for consumers that crash or hang",
            ],
        ),
        // A lease for the worst of days.
        case(
            43_200_000,
            &[(1_000, 2_500)],
            [0; 4],
            &["p99.9 2.6 s, timeout 12 h: messages of a consumer that died wait that long; 30 s is enough"],
        ),
        case(60_000, &[(1_000, 3_500)], [0; 4], &[]),
    ];

    fn measure(acks: &[(u32, u64)], [last_tenth, late, extended, expired]: [u32; 4]) -> Measure {
        let mut measure = Measure { last_tenth, late, extended, expired, ..Measure::default() };
        acks.iter().for_each(|(count, ms)| measure.held.record_many(*ms, *count));
        measure
    }

    #[test]
    fn each_rule_says_what_it_should_and_is_silent_else() {
        for Case { lease_ms, acks, counts, says } in CASES {
            let all = measure(acks, counts);
            let said = of(lease_ms, &all, &BTreeMap::from([("", all.clone())]));
            let texts = said.iter().map(|advice| advice.text.as_str()).collect::<Vec<_>>();
            assert_eq!(texts, says, "lease {lease_ms} ms, acks {acks:?}, counts {counts:?}");
        }
    }

    #[test]
    fn a_version_is_told_that_takes_twice_as_long() {
        let said = |slow_ms, count| {
            let versions = BTreeMap::from([
                ("", measure(&[(500, 9_000)], [0; 4])),
                ("mailer-1", measure(&[(500, 100)], [0; 4])),
                ("mailer-2", measure(&[(count, slow_ms)], [0; 4])),
            ]);
            of(30_000, &measure(&[(1_000, 100)], [0; 4]), &versions)
        };
        assert_eq!(said(190, 500), []);
        assert_eq!(said(4_000, 99), [], "too few to tell");
        let [advice] = &said(4_000, 100)[..] else { panic!("one advice") };
        assert_eq!(advice.code, "slower-version");
        assert_eq!(advice.text, "p99 of version mailer-2 is 4.1 s, that of mailer-1 is 103 ms");
    }

    #[test]
    fn durations_are_short_and_round() {
        let spans = [(0, "0 ms"), (999, "999 ms"), (1_000, "1 s"), (2_549, "2.5 s"), (2_550, "2.6 s")];
        spans.iter().for_each(|(ms, text)| assert_eq!(span(*ms), *text));
        assert_eq!([span(90_000), span(3_600_000), span(43_200_000)], ["1.5 min", "1 h", "12 h"]);
        assert_eq!([7, 99, 100, 7_677, 7_700, 99_001].map(round_up), [7, 99, 100, 7_700, 7_700, 100_000]);
    }
}
