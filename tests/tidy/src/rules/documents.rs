//! Documents that say what the code says: reasons, links, names of files and tests.

use std::collections::BTreeSet;

use crate::Finding;

pub const ARCHITECTURE_LINES_MAX: usize = 399;

/// The names of an enum of a `.proto` file.
pub fn names_of_enum<'a>(proto: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("enum {name} {{");
    let body =
        proto.split(header.as_str()).nth(1).and_then(|after| after.split('}').next()).unwrap_or_default();
    let values = body.lines().map(str::trim).filter(|line| !line.starts_with("//") && line.contains('='));
    values.filter_map(|line| line.split_whitespace().next()).collect()
}

/// Each reason has a row under `## Reasons` that begins with its name, and each such row is of a reason.
pub fn reasons(path: &str, document: &str, proto: &str) -> Vec<Finding> {
    let reasons = names_of_enum(proto, "Reason");
    let section = document
        .split("## Reasons\n")
        .nth(1)
        .and_then(|after| after.split("\n## ").next())
        .unwrap_or_default();
    let rows =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect::<Vec<_>>();
    let mut findings = Vec::new();
    if reasons.is_empty() {
        findings.push(format!("{path}: the protocol has no enum Reason any more"));
    }
    for reason in &reasons {
        match rows.iter().filter(|row| row == &reason).count() {
            1 => {}
            0 => findings.push(format!("{path}: {reason} is missing")),
            _ => findings.push(format!("{path}: {reason} is there twice")),
        }
    }
    let stale = rows.iter().filter(|row| !reasons.contains(row));
    findings.extend(stale.map(|row| format!("{path}: {row} is not a reason of the protocol")));
    findings
}

/// Links within the repository lead somewhere; `headings` gives those of another document, by its path.
pub fn links(
    path: &str,
    document: &str,
    paths: &BTreeSet<&str>,
    headings: impl Fn(&str) -> BTreeSet<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, target) in targets(document) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let found = if file.is_empty() { Some(path.to_owned()) } else { resolve(path, file) };
        let is_there = |file: &String| {
            let folder = format!("{file}/");
            paths.contains(file.as_str()) || paths.iter().any(|path| path.starts_with(&folder))
        };
        match found.filter(is_there) {
            None => findings.push(format!("{path}:{line}: `{target}` leads nowhere")),
            Some(file) if !anchor.is_empty() && !headings(&file).contains(anchor) => {
                findings.push(format!("{path}:{line}: {file} has no heading `{anchor}`"));
            }
            Some(_) => {}
        }
    }
    findings
}

/// The targets of `[text](target)`, outside of code.
fn targets(document: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, line) in outside_of_blocks(document) {
        for (start, _) in line.match_indices("](") {
            let is_code = line[..start].matches('`').count() % 2 == 1;
            let target = line[start + 2..].split([')', ' ']).next().unwrap_or_default();
            if !is_code && !target.is_empty() {
                found.push((at, target));
            }
        }
    }
    found
}

fn outside_of_blocks(document: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_block = false;
    document.lines().enumerate().filter_map(move |(at, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_block ^= is_fence;
        (!is_block && !is_fence).then_some((at + 1, line))
    })
}

/// `target` as seen from the document at `path`; `None` when it leaves the repository.
fn resolve(path: &str, target: &str) -> Option<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let from = if target.starts_with('/') { "" } else { folder };
    let mut parts = Vec::new();
    for part in from.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The anchors of a document's headings.
pub fn headings(document: &str) -> BTreeSet<String> {
    let titles = outside_of_blocks(document).filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len() && title.starts_with(' ')).then(|| title.trim())
    });
    let kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
    titles
        .map(|title| title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"))
        .collect()
}

/// Files, and tests as `file.rs::test`, that a document names in code exist. `text_of` gives the text of a file.
pub fn names<'a>(path: &str, document: &str, text_of: impl Fn(&str) -> Option<&'a str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in outside_of_blocks(document) {
        for name in line.split('`').skip(1).step_by(2) {
            let (file, item) = name.split_once("::").unwrap_or((name, ""));
            if !is_path(file) {
                continue;
            }
            match text_of(file) {
                None => findings.push(format!("{path}:{at}: there is no file `{file}`")),
                Some(text) if !item.is_empty() && !text.contains(&format!("fn {item}(")) => {
                    findings.push(format!("{path}:{at}: {file} has no function `{item}`"));
                }
                Some(_) => {}
            }
        }
    }
    findings
}

fn is_path(name: &str) -> bool {
    let folders = ["benches/", "crates/", "deploy/", "docs/", "examples/", "proto/", "tests/"];
    let endings = [".rs", ".md", ".toml", ".proto", ".yaml", ".service", ".gz"];
    folders.iter().any(|folder| name.starts_with(folder))
        && endings.iter().any(|ending| name.ends_with(ending))
        && !name.contains(['*', ' ', '{', '<'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str = "enum Other {\n  A = 0;\n}\nenum Reason {\n  NONE = 0;\n  // Why.\n  BUSY = 14;\n}\n";

    #[test]
    fn a_reason_that_is_missing_stale_or_twice_is_found() {
        assert_eq!(names_of_enum(PROTO, "Reason"), ["NONE", "BUSY"]);
        let check = |rows: &str| {
            reasons("e.md", &format!("| `DONE` |\n\n## Reasons\n\n{rows}\n## More\n| `X` |\n"), PROTO)
        };
        assert_eq!(check("| `NONE` | a |\n| `BUSY` | b |\n"), Vec::<String>::new());
        assert_eq!(check("| `NONE` | BUSY |\n"), ["e.md: BUSY is missing"]);
        assert_eq!(
            check("| `NONE` |\n| `BUSY` |\n| `OLD` |\n"),
            ["e.md: OLD is not a reason of the protocol"]
        );
        assert_eq!(check("| `NONE` |\n| `BUSY` |\n| `BUSY` |\n"), ["e.md: BUSY is there twice"]);
        assert_eq!(reasons("e.md", "", "").len(), 1);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let paths = BTreeSet::from(["docs/a.md", "docs/decisions/001-b.md", "README.md"]);
        let check = |document: &str| links("docs/a.md", document, &paths, |_| headings("# One thing: `x`\n"));
        for good in [
            "[a](decisions/001-b.md)",
            "[a](../README.md#one-thing-x)",
            "[a](#one-thing-x)",
            "[a](https://example.org/x)",
            "[a](/README.md)",
            "[a](decisions)",
            "`[a](no.md)`",
            "```\n[a](no.md)\n```\n",
        ] {
            assert_eq!(check(good), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "[a](no.md)",
            "text [b](../docs/no.md)",
            "[a](../../outside.md)",
            "[a](#two)",
            "[a](../README.md#two)",
        ] {
            assert_eq!(check(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn files_and_tests_that_are_not_there_are_found() {
        let text_of = |path: &str| (path == "crates/a/tests/b.rs").then_some("#[test]\nfn it_holds() {}\n");
        let check = |document: &str| names("g.md", document, text_of);
        for good in [
            "`crates/a/tests/b.rs`",
            "`crates/a/tests/b.rs::it_holds`",
            "`crates/*/b.rs`",
            "`cargo test`",
            "crates/no.rs",
        ] {
            assert_eq!(check(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["`crates/a/tests/no.rs`", "x `crates/a/tests/b.rs::it_hold`", "`docs/no.md`"] {
            assert_eq!(check(bad).len(), 1, "{bad}");
        }
    }
}
