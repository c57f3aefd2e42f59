//! Patches that are kept: the lines that they change are in the code as they say.

use crate::Finding;

/// Checks the patch at `path`; `text` gives the file of a path.
pub fn fit<'a>(path: &str, patch: &str, text: impl Fn(&str) -> Option<&'a str>) -> Vec<Finding> {
    let files = patch.split("\n+++ b/").skip(1).filter_map(|part| part.split_once('\n'));
    let files = files.collect::<Vec<_>>();
    if files.is_empty() {
        return vec![format!("{path}: it changes no file")];
    }
    let does_not_fit = |(target, hunks): &(&str, &str)| {
        let code = text(target).unwrap_or_default();
        let hunks = format!("\n{hunks}");
        let mut befores = hunks.split("\n@@ ").skip(1).map(before);
        !befores.all(|before| !before.is_empty() && code.contains(&before))
    };
    let changed = files.into_iter().filter(does_not_fit);
    changed.map(|(target, _)| format!("{path}: {target} has changed; make the patch anew")).collect()
}

/// The lines of a hunk as they are before it.
fn before(hunk: &str) -> String {
    // What follows the numbers of the lines is for people; a next file is no part of the hunk.
    let lines = hunk.lines().skip(1).take_while(|line| !line.starts_with("diff --git"));
    lines.filter_map(|line| line.strip_prefix([' ', '-'])).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "diff --git a/one b/one\n--- a/one\n+++ b/one\n@@ -1,2 +1,2 @@ fn\n first\n-second\n+new\n\
        diff --git a/two b/two\n--- a/two\n+++ b/two\n@@ -1 +1 @@\n-third\n+new\n";

    fn found(one: &'static str, two: &'static str) -> Vec<Finding> {
        fit("a.patch", PATCH, |path| Some(if path == "one" { one } else { two }))
    }

    #[test]
    fn lines_that_are_there_fit_in_every_file() {
        assert!(found("zero\nfirst\nsecond\n", "third\n").is_empty());
    }

    #[test]
    fn a_file_that_has_changed_is_found_and_so_is_a_patch_of_nothing() {
        assert_eq!(found("first\nother\n", "third\n"), ["a.patch: one has changed; make the patch anew"]);
        assert_eq!(found("first\nsecond\n", "other\n"), ["a.patch: two has changed; make the patch anew"]);
        assert_eq!(fit("a.patch", "nothing", |_| None).len(), 1);
    }
}
