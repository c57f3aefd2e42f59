//! The direction of dependencies: who decides knows nobody, who does knows who decides, and nobody knows the command.

use crate::Finding;

/// Each crate of the workspace and those of ours that it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("leasehold-partition", &[]),
    ("leasehold-catalogue", &[]),
    ("leasehold-proto", &[]),
    ("leasehold-raft-log", &[]),
    ("leasehold-tls", &[]),
    ("leasehold-client", &["leasehold-proto", "leasehold-tls"]),
    ("leasehold-connect", &["leasehold-client", "leasehold-tls"]),
    (
        "leasehold-node",
        &[
            "leasehold-catalogue",
            "leasehold-partition",
            "leasehold-proto",
            "leasehold-raft-log",
            "leasehold-tls",
        ],
    ),
    ("leasehold-sqs", &["leasehold-node", "leasehold-proto"]),
    (
        "leasehold",
        &["leasehold-client", "leasehold-connect", "leasehold-node", "leasehold-sqs", "leasehold-tls"],
    ),
    ("leasehold-tidy", &[]),
    ("leasehold-histories", &[]),
    ("leasehold-jepsen", &["leasehold", "leasehold-client", "leasehold-histories"]),
    (
        "leasehold-simulation",
        &["leasehold-histories", "leasehold-node", "leasehold-proto", "leasehold-raft-log"],
    ),
    (
        "leasehold-cluster-tests",
        &["leasehold", "leasehold-client", "leasehold-connect", "leasehold-node", "leasehold-tls"],
    ),
    ("leasehold-store-tests", &["leasehold-client"]),
    ("leasehold-examples", &["leasehold-client", "leasehold-cluster-tests"]),
    ("leasehold-benches", &["leasehold", "leasehold-client", "leasehold-node", "leasehold-cluster-tests"]),
    ("leasehold-instructions", &["leasehold-partition", "leasehold-raft-log"]),
];

/// Crates that decide, and what reads a clock, waits, draws or talks: they may not have it, not even in tests.
pub const DECIDERS: &[&str] = &["leasehold-partition", "leasehold-catalogue"];
const DOERS: &[&str] = &[
    "async-trait",
    "chrono",
    "futures",
    "futures-util",
    "getrandom",
    "hyper",
    "libc",
    "mio",
    "openraft",
    "parking_lot",
    "rand",
    "rustix",
    "sled",
    "socket2",
    "time",
    "tokio",
    "tokio-stream",
    "tokio-util",
    "tonic",
    "tracing",
];

/// Checks the manifest at `path`.
pub fn direction(path: &str, manifest: &str) -> Vec<Finding> {
    let Some(name) = package_name(manifest) else { return Vec::new() };
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
        return vec![format!(
            "{path}: {name} is new: say in tests/tidy/src/rules/dependencies.rs what it may depend on"
        )];
    };
    let mut findings = Vec::new();
    for (line, dependency) in dependencies(manifest) {
        let is_ours = dependency == "leasehold" || dependency.starts_with("leasehold-");
        if is_ours && dependency != name && !allowed.contains(&dependency.as_str()) {
            findings.push(format!("{path}:{line}: {name} must not depend on {dependency}"));
        }
        if DECIDERS.contains(&name) && DOERS.contains(&dependency.as_str()) {
            findings.push(format!(
                "{path}:{line}: {name} decides and must not depend on {dependency}, which does"
            ));
        }
    }
    findings
}

/// The name in `[package]`; a virtual manifest has none.
pub fn package_name(manifest: &str) -> Option<&str> {
    let package = manifest.split("[package]").nth(1)?;
    let line =
        package.lines().take_while(|line| !line.starts_with('[')).find(|line| line.starts_with("name"))?;
    line.split('"').nth(1)
}

/// Every dependency of every kind and target, with its line.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut section = "";
    for (at, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            // `[dependencies.name]`
            if let Some((_, name)) = section.split_once("dependencies.") {
                found.push((at + 1, name.to_owned()));
            }
            continue;
        }
        let is_renamed = line.split_once("package").filter(|(_, after)| after.trim_start().starts_with('='));
        let original = is_renamed.and_then(|(_, after)| after.split('"').nth(1));
        let is_setting = section.ends_with("dependencies") && line.contains('=') && !line.starts_with('#');
        if is_setting {
            let key = line.split(['.', '=', ' ']).next().unwrap_or_default().trim_matches('"');
            found.push((at + 1, original.unwrap_or(key).to_owned()));
        } else if let Some(original) = original.filter(|_| section.contains("dependencies.")) {
            found.push((at + 1, original.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, rest: &str) -> String {
        format!("[package]\nname = \"{name}\"\n\n{rest}\n")
    }

    #[test]
    fn each_way_to_name_a_dependency_is_seen() {
        for rest in [
            "[dependencies]\nleasehold-node.workspace = true",
            "[dependencies]\nleasehold-node = { path = \"../node\" }",
            "[dev-dependencies]\n\"leasehold-node\" = \"0.1\"",
            "[build-dependencies]\nnode = { path = \"../node\", package = \"leasehold-node\" }",
            "[target.'cfg(unix)'.dependencies]\nleasehold-node.workspace = true",
            "[dependencies.leasehold-node]\npath = \"../node\"",
            "[dependencies.node]\npath = \"../node\"\npackage = \"leasehold-node\"",
        ] {
            for name in [
                "leasehold-partition",
                "leasehold-catalogue",
                "leasehold-client",
                "leasehold-raft-log",
                "leasehold-proto",
            ] {
                let found = direction("Cargo.toml", &manifest(name, rest));
                assert!(
                    found.len() == 1 && found[0].contains("must not depend on leasehold-node"),
                    "{rest}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn the_node_does_not_know_the_client_and_deciders_do_nothing() {
        let found = direction(
            "a",
            &manifest("leasehold-node", "[dev-dependencies]\nleasehold-client.workspace = true"),
        );
        assert_eq!(found.len(), 1, "{found:?}");
        for decider in DECIDERS {
            let found = direction("a", &manifest(decider, "[dependencies]\ntokio = { workspace = true }"));
            assert_eq!(found.len(), 1, "{found:?}");
        }
        assert_eq!(direction("a", &manifest("leasehold-gateway", "")).len(), 1);
    }

    #[test]
    fn what_is_allowed_passes() {
        let rest = "[dependencies]\nleasehold-proto.workspace = true\ntokio.workspace = true\n# leasehold-node = no\n";
        assert_eq!(direction("a", &manifest("leasehold-client", rest)), Vec::<String>::new());
        let itself = "[dev-dependencies]\nleasehold-raft-log = { path = \".\", features = [\"testing\"] }";
        assert_eq!(direction("a", &manifest("leasehold-raft-log", itself)), Vec::<String>::new());
        assert_eq!(direction("a", "[workspace]\nmembers = []\n"), Vec::<String>::new());
    }
}
