//! What is made of results: JSON, Markdown and plots.

use super::document::Document;
use super::machine::Machine;
use super::metric::Metric;
use super::report;
use super::results::{Log, Results};
use super::system::Failure;
use super::systems::{Found, Name};

/// A document with figures of two systems that nobody measured.
fn document() -> Document {
    let mut results = Results::default();
    for (system, factor) in [(Name::Leasehold, 4.0), (Name::Nats, 1.0), (Name::Leasehold, 6.0)] {
        let mut log = Log { system, results: &mut results };
        log.record("W1 128 B, 1 outstanding", vec![(Metric::MessagesPerS, factor * 1000.0)]);
        log.record("W4 kill", vec![(Metric::SendGapMs, 100.0 / factor), (Metric::Lost, 0.0)]);
    }
    Log { system: Name::Nats, results: &mut results }.fail("W2", Failure::new("it | stopped"));
    Document {
        machine: Machine::default(),
        command: "leasehold-bench compare".to_owned(),
        note: String::new(),
        runs: 2,
        seconds: 1,
        found: vec![Found::of(Name::Leasehold, "1"), Found::of(Name::Nats, "2")],
        skipped: vec![(Name::Rabbitmq, Failure::new("it is not installed"))],
        floor: vec![("sync", vec![(Metric::P50Ms, 0.2)])],
        results,
    }
}

#[test]
fn json_has_figures_and_how_many_times_as_good_they_are() {
    let json = document().json();
    let case = &json["cases"][0];
    assert_eq!(case["case"], "W1 128 B, 1 outstanding");
    assert_eq!(case["systems"]["leasehold"]["messages_per_s"]["median"], 5000.0);
    assert_eq!(case["systems"]["leasehold"]["messages_per_s"]["runs"].as_array().map(Vec::len), Some(2));
    assert_eq!(case["times_as_good_as"]["nats"]["messages_per_s"], 5.0);
    let gap = json["cases"][1]["times_as_good_as"]["nats"]["send_gap_ms_max"].as_f64().unwrap();
    assert!((4.0..6.0).contains(&gap), "{gap}");
    assert_eq!(json["skipped"][0]["reason"], "it is not installed");
    assert_eq!(json["failures"][0]["system"], "nats");
    assert_eq!(json["floor"][0]["figures"]["p50_ms"], 0.2);
}

#[test]
fn a_report_has_tables_plots_and_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("figures.md");
    report::write(&document(), &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    for part in [
        "| W1 128 B, 1 outstanding | 5,000 (4,000 to 6,000) | 1,000 |",
        "| W1 128 B, 1 outstanding | 5 × |",
        "| W4 kill | 0 | 0 |",
        "Left out: RabbitMQ: it is not installed",
        "- NATS, default, W2: it | stopped",
        "| sync | - | - | 0.2 | - | - |",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect::<Vec<_>>();
    assert_eq!(targets, ["figures/w1-messages-per-s.svg", "figures/w4-send-gap-ms-max.svg"]);
    for target in targets {
        let svg = std::fs::read_to_string(dir.path().join(target)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("Leasehold"), "{svg}");
    }
}
