//! What is made of results: JSON, Markdown and plots.

use super::document::Document;
use super::floor::Row;
use super::journal::{Conditions, Journal, Measured, Part, Skipped, VERSION};
use super::machine::Machine;
use super::metric::Metric;
use super::report;
use super::results::Log;
use super::system::Failure;
use super::systems::Name;
use super::workloads::Workload;

fn part(systems: &[(Name, &str)], skipped: &[(Name, &str)], sync_ms: f64) -> Part {
    let systems =
        systems.iter().map(|(name, version)| Measured { name: *name, version: (*version).to_owned() });
    let skipped = skipped.iter().map(|(name, reason)| Skipped { name: *name, reason: Failure::new(*reason) });
    Part {
        command: format!("leasehold-bench compare --systems {}", systems.len()),
        note: "quiet".to_owned(),
        systems: systems.collect(),
        skipped: skipped.collect(),
        floor: vec![Row { what: "sync".to_owned(), readings: vec![(Metric::P50Ms, sync_ms)] }],
    }
}

fn journal() -> Journal {
    Journal::in_memory(Conditions {
        version: VERSION,
        machine: Machine::default(),
        harness: "release build 0a1b".to_owned(),
        runs: 2,
        seconds: 1,
        pipeline_seconds: 300,
        kills: 5,
        partitions: 4,
    })
}

/// A document of two parts with figures of two systems that nobody measured.
fn document() -> Document {
    let mut journal = journal();
    let absent = (Name::Rabbitmq, "it is not installed");
    journal.begin_part(part(&[(Name::Leasehold, "1")], &[absent, (Name::Nats, "not yet")], 0.2)).unwrap();
    journal.begin_part(part(&[(Name::Leasehold, "1"), (Name::Nats, "2")], &[absent], 0.4)).unwrap();
    for (round, system, factor) in
        [(0, Name::Leasehold, 4.0), (0, Name::Nats, 1.0), (1, Name::Leasehold, 6.0)]
    {
        let mut log = Log::new(Workload::W1, round, system);
        log.record("W1 128 B, 1 outstanding", vec![(Metric::MessagesPerS, factor * 1000.0)]);
        log.took_s = 60.0;
        journal.keep(log).unwrap();
        let mut log = Log::new(Workload::W4, round, system);
        log.record("W4 kill", vec![(Metric::SendGapMs, 100.0 / factor), (Metric::Lost, 0.0)]);
        journal.keep(log).unwrap();
    }
    for (round, reason) in ["it | stopped", "it stood"].into_iter().enumerate() {
        let mut log = Log::new(Workload::W2, round as u32, Name::Nats);
        log.fail("W2", Failure::new(reason));
        journal.keep(log).unwrap();
    }
    journal.into_document()
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
    let sync = json["floor"][0]["figures"]["p50_ms"]["median"].as_f64().unwrap();
    assert!((0.29..0.31).contains(&sync), "{sync}");
    assert_eq!(json["skipped"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["parts"][1]["command"], "leasehold-bench compare --systems 2");
    assert_eq!((&json["version"], &json["took_s"]), (&2.into(), &180.0.into()));
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
        "\nLeft out: RabbitMQ: it is not installed\n\n",
        "- NATS, default, W2: it | stopped; it stood",
        "| sync | - | - | 0.3 (0.2 to 0.4) | - | - |",
        "- command: `leasehold-bench compare --systems 1` (quiet)\n- command: `leasehold-bench compare --systems 2` (quiet)",
        "- runs: 2, each case for 1 s; measuring took 3 minutes in all",
        "- measured by: release build 0a1b",
        "Not every system ran this 2 times: NATS, default once.\n\n![W1",
        "Not every system ran this 2 times: NATS, default once.\n\n![W4",
        "A queue of Leasehold is spread over 4 partitions in W1",
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

#[test]
fn a_report_names_the_command_that_builds_what_was_measured() {
    let mut document = document();
    for (harness, command) in [
        ("release/leasehold-bench (SHA-256 0a1b)", "cargo build --release -p leasehold"),
        ("dist/leasehold-bench (SHA-256 0a1b)", "cargo build --profile dist -p leasehold"),
    ] {
        harness.clone_into(&mut document.conditions.harness);
        let text = report::markdown(&document, None);
        assert!(text.contains(command), "{command} is not in\n{text}");
    }
    assert!(report::markdown(&document, None).contains("\ntarget/dist/leasehold-bench compare"));
}

#[test]
fn a_report_says_over_how_many_partitions_a_queue_spreads() {
    let mut document = document();
    document.conditions.partitions = 1;
    assert!(
        report::markdown(&document, None)
            .contains("A queue of Leasehold is in one partition, except under W8.")
    );
}
