//! Words that no file of the repository may have: marks of unfinished work, and the hosts of package registries.

use super::at_byte;
use crate::Finding;

/// In two parts, so that this file has none of them.
const MARKS: &[(&str, &str)] = &[
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X"),
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("#[ign", "ore"),
];

const HOSTS: &[(&str, &str)] = &[
    ("crates", ".io"),
    ("pypi", ".org"),
    ("files.python", "hosted"),
    ("registry.npm", "js"),
    ("deb.deb", "ian.org"),
    ("archive.ubu", "ntu.com"),
    ("dl-cdn.alp", "inelinux.org"),
    ("proxy.gol", "ang.org"),
    ("docker", ".io"),
    ("ghcr", ".io"),
    ("quay", ".io"),
];

/// The name of an index, in every file that names where packages come from.
const INDEX_SUFFIX: &str = "-index";

/// Work that is left is an issue, not a mark in a file.
pub fn marks(path: &str, text: &str) -> Vec<Finding> {
    let found = MARKS.iter().flat_map(|(begin, end)| {
        let mark = format!("{begin}{end}");
        let starts = text.match_indices(&mark).map(|(at, _)| at).collect::<Vec<_>>();
        starts
            .into_iter()
            .filter(move |at| is_whole(text, *at, begin.len() + end.len()))
            .map(move |at| at_byte(path, text, at, &format!("`{mark}`: finish it, or write an issue")))
    });
    found.collect()
}

/// Whether a mark is a word of its own and not a part of one.
fn is_whole(text: &str, at: usize, len: usize) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = text.as_bytes();
    let (first, last) = (bytes.get(at), bytes.get(at + len - 1));
    let joins_before = at > 0 && is_word(bytes.get(at - 1)) && is_word(first);
    let joins_after = is_word(bytes.get(at + len)) && is_word(last);
    !joins_before && !joins_after
}

/// Packages come through their clients' own configuration.
pub fn registry_hosts(path: &str, text: &str) -> Vec<Finding> {
    let found = HOSTS.iter().flat_map(|(begin, end)| {
        let host = format!("{begin}{end}");
        let starts = text.match_indices(&host).map(|(at, _)| at).collect::<Vec<_>>();
        let is_index = move |at: &usize| text[at + begin.len() + end.len()..].starts_with(INDEX_SUFFIX);
        starts.into_iter().filter(move |at| !is_index(at)).map(move |at| {
            at_byte(
                path,
                text,
                at,
                &format!(
                    "`{host}` is the host of a package registry: leave it to the client's configuration"
                ),
            )
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_found() {
        for (begin, end) in MARKS {
            let text = format!("fine\n// {begin}{end}: later\n");
            let found = marks("a.rs", &text);
            assert!(found.len() == 1 && found[0].starts_with("a.rs:2: "), "{text}: {found:?}");
        }
        let (begin, end) = MARKS[0];
        assert_eq!(marks("a.md", &format!("MAS{begin}{end}NS and {begin}{end}_MAX")), Vec::<String>::new());
    }

    #[test]
    fn every_host_is_found() {
        for (begin, end) in HOSTS {
            let found = registry_hosts("a.toml", &format!("\nurl = \"https://{begin}{end}/x\"\n"));
            assert!(found.len() == 1 && found[0].starts_with("a.toml:2: "), "{begin}: {found:?}");
        }
        let (begin, end) = HOSTS[0];
        assert_eq!(registry_hosts("a", &format!("{begin}{end}{INDEX_SUFFIX}")), Vec::<String>::new());
    }
}
