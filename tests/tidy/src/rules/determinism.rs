//! What clippy must forbid in the crates that decide. A crate's own `clippy.toml` replaces the one of the root.

use crate::Finding;

const FORBIDDEN: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "f32",
    "f64",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "std::thread::spawn",
];

/// Checks the `clippy.toml` of a crate that decides, `None` when it has none.
pub fn lints(path: &str, clippy: Option<&str>) -> Vec<Finding> {
    let Some(clippy) = clippy else {
        return vec![format!(
            "{path}: missing: this crate decides, and must forbid clocks, threads and orders of hashing"
        )];
    };
    let lines = || clippy.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let is_forbidden = |name: &str| {
        let entry = format!("path = \"{name}\"");
        lines().any(|line| line.contains(&entry) && line.contains("reason = \""))
    };
    let missing = FORBIDDEN.iter().filter(|name| !is_forbidden(name));
    missing.map(|name| format!("{path}: must forbid `{name}`, with a reason")).collect()
}

/// Checks that a crate's own `clippy.toml` restricts all that the root's does. What the root allows it may refuse.
pub fn keeps_the_root(path: &str, clippy: &str, root: &str) -> Vec<Finding> {
    let is_restriction =
        |line: &&str| line.contains('=') && !line.starts_with('#') && !line.starts_with("allow-");
    let settings = root.lines().map(str::trim).filter(is_restriction);
    // A list that spans lines is a rule of one crate; the root has plain values only.
    let lost = settings.filter(|line| !clippy.lines().any(|own| own.trim() == *line));
    lost.map(|line| format!("{path}: replaces the root's clippy.toml and loses `{line}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_or_a_hash_map_that_is_not_forbidden_is_found() {
        let whole = FORBIDDEN
            .iter()
            .map(|name| format!("    {{ path = \"{name}\", reason = \"order\" }},\n"))
            .collect::<String>();
        assert_eq!(lints("clippy.toml", Some(&whole)), Vec::<String>::new());
        for name in FORBIDDEN {
            let line = format!("    {{ path = \"{name}\", reason = \"order\" }},\n");
            assert_eq!(lints("clippy.toml", Some(&whole.replace(&line, ""))).len(), 1, "{name}");
            assert_eq!(
                lints("clippy.toml", Some(&whole.replace(&line, &format!("#{line}")))).len(),
                1,
                "{name}"
            );
        }
        assert_eq!(lints("clippy.toml", None).len(), 1);
    }

    #[test]
    fn a_restriction_of_the_root_that_is_lost_is_found() {
        let root = "# all crates\nallow-print-in-tests = true\ntoo-many-lines-threshold = 70\n";
        assert_eq!(keeps_the_root("a", "too-many-lines-threshold = 70\n", root).len(), 0);
        assert_eq!(keeps_the_root("a", "too-many-lines-threshold = 90\n", root).len(), 1);
        assert_eq!(keeps_the_root("a", "allow-print-in-tests = true\n", root).len(), 1);
    }
}
