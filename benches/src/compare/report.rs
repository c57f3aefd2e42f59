//! The results as Markdown, with plots beside it where it is a file.

use std::fmt::Write as _;
use std::path::Path;

use super::document::Document;
use super::figures::{figure, with_spread};
use super::metric::{Better, Metric, Summary};
use super::plot::{Bar, Group, bars};
use super::system::Failure;
use super::systems::Name;
use super::workloads::Workload;

/// Those that are drawn; all others are in tables alone.
const PLOTTED: [Metric; 6] = [
    Metric::MessagesPerS,
    Metric::P99Ms,
    Metric::ServersCpuUs,
    Metric::SendGapMs,
    Metric::ReceiveGapMs,
    Metric::KibPerQueue,
];

/// Writes the document and its plots; those of `a/b.md` are in `a/b`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(document: &Document, path: &Path) -> Result<(), Failure> {
    let folder = path.with_extension("");
    std::fs::create_dir_all(&folder)?;
    for workload in Workload::ALL {
        for (metric, svg) in plots(document, workload) {
            std::fs::write(folder.join(plot_name(workload, metric)), svg)?;
        }
    }
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    std::fs::write(path, markdown(document, name.as_deref()))?;
    Ok(())
}

/// With links to plots in a folder, if there is one.
pub fn markdown(document: &Document, plots_folder: Option<&str>) -> String {
    let mut text = introduction(document);
    conditions(&mut text, document);
    at_a_glance(&mut text, document);
    floor(&mut text, document);
    for workload in Workload::ALL {
        section(&mut text, document, workload, plots_folder);
    }
    failures(&mut text, document);
    text
}

fn introduction(document: &Document) -> String {
    let partitions = match document.conditions.partitions {
        1 => "in one partition, except under W8".to_owned(),
        partitions => {
            format!("spread over {partitions} partitions in W1, W2, W3, W6 and W7, and in one in W4 and W5")
        }
    };
    // What is shipped is optimised across crates, what is built in a hurry is not.
    let (profile, folder) = match document.conditions.harness.starts_with("dist/") {
        true => ("--profile dist", "dist"),
        false => ("--release", "release"),
    };
    format!(
        "# Benchmarks

Leasehold beside NATS JetStream and RabbitMQ quorum queues: the same workloads, each system as a cluster of real processes on the
loopback of one machine, replication 3, one cluster at a time, with the clients beside it. Figures are medians over the runs, with
the lowest and the highest in brackets. This file is written by the program that measures:

```sh
apt-get install rabbitmq-server      # optional: without it RabbitMQ is left out; its service may stay stopped
cargo build {profile} -p leasehold -p leasehold-benches --features leasehold-benches/compare
target/{folder}/leasehold-bench compare --keep target/comparison --report docs/benchmarks.md
```

NATS is brought into a Python environment of its own below `target/tmp`. What is not there is left out, with the reason.
`--systems`, `--workloads`, `--runs`, `--seconds`, `--pipeline-seconds`, `--kills`, `--partitions` and `--json` do what they say. Each
workload is run in each run, with the systems in turn and on a fresh cluster each time. `--keep` names a file that takes each
run when it is done: the same command goes on where it was cut short, and with `--workloads` it can be given in parts.
`leasehold-bench report target/comparison --report docs/benchmarks.md` writes this file again without measuring.

Messages that wait for an answer are called outstanding: with 1, one sender waits for each message; 64 are 4 senders with 16 each,
and 4096 are 8 with 512, each of which hands over a batch when the one before is confirmed, as the system's own client does it best:
Leasehold in one request a batch, the others as messages in a row. Receivers get the next messages before they have acknowledged the ones
that they hold: by the streams of the others, and by asking ahead for Leasehold's. Leasehold's nodes share the machine's processors,
as their operator would set it for nodes on one machine (`limits.worker_threads`); the others have their defaults. A queue of Leasehold is {partitions}.
A partition is one group of replicas, as a JetStream stream and a quorum queue are. Latency at a fixed rate runs from when a message was
due, not from when it was sent, to when a receiver has it.
"
    )
}

fn conditions(text: &mut String, document: &Document) {
    let conditions = &document.conditions;
    let machine = &conditions.machine;
    heading(text, "Conditions");
    let (processor, cores, kernel) = (&machine.processor, machine.cores, &machine.kernel);
    let (memory_gib, filesystem) = (machine.memory_mib as f64 / 1024.0, &machine.filesystem);
    line(
        text,
        &format!("- machine: {processor}, {cores} cores, {memory_gib:.0} GiB, Linux {kernel}, {filesystem}"),
    );
    for part in &document.parts {
        let note = if part.note.is_empty() { String::new() } else { format!(" ({})", part.note) };
        line(text, &format!("- command: `{}`{note}", part.command));
    }
    line(
        text,
        &format!(
            "- runs: {}, each case for {} s; measuring took {} minutes in all",
            conditions.runs,
            conditions.seconds,
            figure(document.results.took_s() / 60.0)
        ),
    );
    line(text, &format!("- measured by: {}", conditions.harness));
    line(text, "\n| system | version | an answer means |\n|---|---|---|");
    for system in document.systems() {
        line(text, &row([system.name.title(), &system.version, system.name.durability()]));
    }
    for skipped in document.skipped() {
        line(text, &format!("\nLeft out: {}: {}", skipped.name.title(), skipped.reason));
    }
}

/// Leasehold's rate over that of each other system.
fn at_a_glance(text: &mut String, document: &Document) {
    let others = document.others();
    let cases = document.results.cases().into_iter().filter(|case| {
        let metric = Metric::MessagesPerS;
        others.iter().any(|other| document.results.ratio(case, metric, Name::Leasehold, *other).is_some())
    });
    let rows = cases.map(|case| {
        let cells = others.iter().map(|other| {
            let ratio = document.results.ratio(case, Metric::MessagesPerS, Name::Leasehold, *other);
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{} ×", figure(ratio)))
        });
        row(std::iter::once(case.to_owned()).chain(cells))
    });
    let rows = rows.collect::<Vec<_>>();
    if rows.is_empty() {
        return;
    }
    heading(text, "Leasehold's rate as a multiple of the others'");
    table_head(text, "", others.iter().map(|other| other.title()));
    rows.iter().for_each(|row| line(text, row));
}

fn floor(text: &mut String, document: &Document) {
    heading(text, "The floor of this machine");
    line(text, "What it does without any queue, before the runs of each command above.\n");
    let metrics = [Metric::MessagesPerS, Metric::MibPerS, Metric::P50Ms, Metric::P99Ms, Metric::P999Ms];
    table_head(text, "", metrics.iter().map(|metric| metric.title()));
    for (what, figures) in document.floor() {
        let cells = metrics.iter().map(|metric| {
            let of_it = figures.iter().find(|(known, _)| known == metric);
            cell(of_it.map(|(_, summary)| summary))
        });
        line(text, &row(std::iter::once(what.to_owned()).chain(cells)));
    }
}

fn section(text: &mut String, document: &Document, workload: Workload, plots_folder: Option<&str>) {
    let cases = cases(document, workload);
    if cases.is_empty() {
        return;
    }
    heading(text, workload.title());
    line(text, workload.description());
    if let Some(note) = note_on_runs(document, workload) {
        line(text, &format!("\n{note}"));
    }
    if let Some(folder) = plots_folder {
        for (metric, _) in plots(document, workload) {
            let name = plot_name(workload, metric);
            line(text, &format!("\n![{}: {}]({folder}/{name})", workload.key(), metric.title()));
        }
    }
    let systems = document.systems();
    for metric in metrics(document, &cases) {
        line(text, "");
        table_head(text, metric.title(), systems.iter().map(|system| system.name.title()));
        for case in &cases {
            let summaries = systems.iter().map(|system| document.results.summary(case, system.name, metric));
            let summaries = summaries.collect::<Vec<_>>();
            if summaries.iter().any(Option::is_some) {
                let cells = summaries.iter().map(|summary| cell(summary.as_ref()));
                line(text, &row(std::iter::once((*case).to_owned()).chain(cells)));
            }
        }
    }
}

/// Which systems ran a workload less or more often than the conditions say, when any did.
fn note_on_runs(document: &Document, workload: Workload) -> Option<String> {
    let runs = document.systems().into_iter().map(|system| {
        let runs = document.results.runs(workload, system.name);
        (system.name.title(), runs)
    });
    let different = runs.filter(|(_, runs)| *runs != document.conditions.runs as usize);
    let told = different.map(|(title, runs)| match runs {
        0 => format!("{title} never"),
        1 => format!("{title} once"),
        2 => format!("{title} twice"),
        _ => format!("{title} {runs} times"),
    });
    let told = told.collect::<Vec<_>>();
    (!told.is_empty()).then(|| {
        format!("Not every system ran this {} times: {}.", document.conditions.runs, told.join("; "))
    })
}

fn failures(text: &mut String, document: &Document) {
    let told = failures_in_rounds(document);
    if told.is_empty() {
        return;
    }
    heading(text, "What failed or was not measured");
    for (name, what, reasons) in told {
        line(text, &format!("- {}, {what}: {}", name.title(), reasons.join("; ")));
    }
}

/// For each system and what it did, all reasons.
fn failures_in_rounds(document: &Document) -> Vec<(Name, &str, Vec<String>)> {
    let mut told = Vec::<(Name, &str, Vec<String>)>::new();
    for (name, failed) in document.results.failures() {
        let reason = failed.reason.to_string();
        match told.iter_mut().find(|(known, what, _)| (*known, *what) == (name, failed.what.as_str())) {
            Some((_, _, reasons)) => reasons.push(reason),
            None => told.push((name, &failed.what, vec![reason])),
        }
    }
    told
}

fn cases(document: &Document, workload: Workload) -> Vec<&str> {
    document.results.cases().into_iter().filter(|case| workload.has(case)).collect()
}

/// Those of any of the cases.
fn metrics(document: &Document, cases: &[&str]) -> Vec<Metric> {
    let mut metrics = cases.iter().flat_map(|case| document.results.metrics(case)).collect::<Vec<_>>();
    metrics.sort_unstable();
    metrics.dedup();
    metrics
}

fn plots(document: &Document, workload: Workload) -> Vec<(Metric, String)> {
    let cases = cases(document, workload);
    let metrics = metrics(document, &cases).into_iter().filter(|metric| PLOTTED.contains(metric));
    metrics.map(|metric| (metric, plot(document, workload, &cases, metric))).collect()
}

fn plot(document: &Document, workload: Workload, cases: &[&str], metric: Metric) -> String {
    let bar = |case: &str, name: Name| Bar {
        title: name.title(),
        colour: Name::ALL.iter().position(|known| *known == name).unwrap_or_default(),
        summary: document.results.summary(case, name, metric),
    };
    let group = |case: &&'_ str| document.results.metrics(case).contains(&metric);
    let groups = cases.iter().filter(|case| group(case)).map(|case| Group {
        title: case,
        bars: document.systems().iter().map(|system| bar(case, system.name)).collect(),
    });
    let better = match metric.better() {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let title = format!("{}: {} ({better})", workload.key(), metric.title());
    bars(&title, &groups.collect::<Vec<_>>())
}

fn plot_name(workload: Workload, metric: Metric) -> String {
    format!("{}-{}.svg", workload.key().to_lowercase(), metric.key().replace('_', "-"))
}

fn heading(text: &mut String, heading: &str) {
    line(text, &format!("\n## {heading}\n"));
}

fn table_head<'a>(text: &mut String, first: &'a str, others: impl ExactSizeIterator<Item = &'a str>) {
    let columns = others.len() + 1;
    line(text, &row(std::iter::once(first).chain(others)));
    line(text, &format!("|{}", "---|".repeat(columns)));
}

fn cell(summary: Option<&Summary>) -> String {
    summary.map_or_else(|| "-".to_owned(), with_spread)
}

fn row(cells: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let cells = cells.into_iter().map(|cell| format!(" {} |", cell.as_ref().replace('|', "\\|")));
    format!("|{}", cells.collect::<String>())
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what is written");
}
