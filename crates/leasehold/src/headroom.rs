//! How long consumers take beside the lease they have, as `queue describe` shows it.

use leasehold_client::v1::{DescribeQueueResponse, Headroom};
use serde_json::{Value, json};

/// For programs; null while nothing was measured.
pub fn objects(described: &DescribeQueueResponse) -> (Value, Value) {
    let measured = described.headroom.as_ref().filter(|headroom| !is_empty(headroom));
    let versions = described.versions.iter().map(|version| {
        let mut object = object(version);
        object["version"] = json!(version.version);
        object
    });
    (measured.map_or(Value::Null, object), versions.collect())
}

/// Everything that is advised, for programs.
pub fn advice(described: &DescribeQueueResponse) -> Value {
    described.advice.iter().map(|advice| json!({ "code": advice.code, "text": advice.text })).collect()
}

fn object(headroom: &Headroom) -> Value {
    let Headroom { acks, p50_ms, p99_ms, p999_ms, lease_ms, last_tenth, late, extended, expired, .. } =
        headroom;
    let ratio = (*acks > 0).then(|| headroom.ratio_permille as f64 / 1000.0);
    json!({
        "acks": acks, "p50_ms": p50_ms, "p99_ms": p99_ms, "p999_ms": p999_ms, "lease_ms": lease_ms, "ratio": ratio,
        "last_tenth": last_tenth, "late": late, "extended": extended, "expired": expired,
    })
}

fn is_empty(headroom: &Headroom) -> bool {
    let Headroom { acks, late, extended, expired, .. } = headroom;
    acks + late + extended + expired == 0
}

/// For people; nothing while nothing was measured.
pub fn lines(described: &DescribeQueueResponse) -> Vec<String> {
    let Some(all) = described.headroom.as_ref().filter(|headroom| !is_empty(headroom)) else {
        return Vec::new();
    };
    let mut lines = vec![format!("  from grant to ack: {}", times(all))];
    if all.acks > 0 {
        let ratio = all.ratio_permille as f64 / 1000.0;
        lines.push(format!("  the lease of {} ms is {ratio:.1} times p99", all.lease_ms));
    }
    lines.push(format!(
        "  {} acks in the last tenth of their lease, {} late; {} leases extended, {} ended by themselves",
        all.last_tenth, all.late, all.extended, all.expired
    ));
    let named = described.versions.iter().filter(|version| !version.version.is_empty());
    lines.extend(named.map(|version| {
        format!("  version {}: {}, {} ended by themselves", version.version, times(version), version.expired)
    }));
    lines
}

fn times(headroom: &Headroom) -> String {
    let Headroom { acks, p50_ms, p99_ms, p999_ms, .. } = headroom;
    match acks {
        0 => "no acks".to_owned(),
        _ => format!("p50 {p50_ms} ms, p99 {p99_ms} ms, p99.9 {p999_ms} ms of {acks} acks"),
    }
}

#[cfg(test)]
mod tests {
    use leasehold_client::v1::Advice;

    use super::*;

    fn measured(version: &str, acks: u64) -> Headroom {
        Headroom {
            version: version.to_owned(),
            acks,
            p50_ms: 12,
            p99_ms: 2_559,
            p999_ms: 2_815,
            ratio_permille: 1_172,
            last_tenth: 3,
            late: 2,
            extended: 1,
            expired: 4,
            lease_ms: 3_000,
            ..Headroom::default()
        }
    }

    #[test]
    fn nothing_measured_is_nothing_shown() {
        for headroom in [None, Some(Headroom::default())] {
            let described = DescribeQueueResponse { headroom, ..DescribeQueueResponse::default() };
            assert!(lines(&described).is_empty());
            assert_eq!(objects(&described), (Value::Null, json!([])));
        }
    }

    #[test]
    fn what_was_measured_is_shown_by_version_and_with_advice() {
        let advice = Advice { code: "raise-lease".into(), text: "raise it".into() };
        let described = DescribeQueueResponse {
            headroom: Some(measured("", 1_000)),
            versions: vec![measured("", 900), measured("mailer-1", 0)],
            advice: vec![advice],
            ..DescribeQueueResponse::default()
        };
        assert_eq!(
            lines(&described),
            [
                "  from grant to ack: p50 12 ms, p99 2559 ms, p99.9 2815 ms of 1000 acks",
                "  the lease of 3000 ms is 1.2 times p99",
                "  3 acks in the last tenth of their lease, 2 late; 1 leases extended, 4 ended by themselves",
                "  version mailer-1: no acks, 4 ended by themselves",
            ]
        );
        let (all, versions) = objects(&described);
        assert_eq!((&all["p99_ms"], &all["ratio"]), (&json!(2_559), &json!(1.172)));
        assert_eq!((&versions[1]["version"], &versions[1]["ratio"]), (&json!("mailer-1"), &Value::Null));
        assert_eq!(super::advice(&described), json!([{ "code": "raise-lease", "text": "raise it" }]));
    }
}
