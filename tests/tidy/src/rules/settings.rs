//! Environment variables that are installed somewhere must be settings that a node takes. (Files are loaded by a test of the node.)

use std::collections::BTreeSet;

use crate::Finding;

/// Begins every environment variable that is a setting; `__` stands between a section and its key.
const VARIABLE_PREFIX: &str = "LEASEHOLD_";
/// Of the command and not of a node.
const VARIABLES_OF_THE_COMMAND: &[&str] = &["LEASEHOLD_CONFIG", "LEASEHOLD_ENDPOINT"];

/// The names of all settings, from the source of the table: `const NAME: &str = "name";`.
pub fn known(keys: &str) -> BTreeSet<&str> {
    let constants = keys
        .lines()
        .filter(|line| line.trim_start().starts_with("pub(super) const") && line.contains(": &str ="));
    constants.filter_map(|line| line.split('"').nth(1)).collect()
}

/// Checks the environment variables that a file names.
pub fn of_environment(path: &str, text: &str, known: &BTreeSet<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for (start, _) in line.match_indices(VARIABLE_PREFIX) {
            let is_part = |byte: &char| byte.is_ascii_uppercase() || *byte == '_';
            let variable = line[start..].chars().take_while(is_part).collect::<String>();
            let key = variable[VARIABLE_PREFIX.len()..].replace("__", ".").to_ascii_lowercase();
            if !known.contains(key.as_str()) && !VARIABLES_OF_THE_COMMAND.contains(&variable.as_str()) {
                findings.push(format!("{path}:{}: {variable} is not a setting", at + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str =
        "pub(super) const NAME: &str = \"name\";\npub(super) const LOW: &str = \"limits.disk_low_bytes\";\n";

    #[test]
    fn settings_that_no_node_takes_are_found() {
        let known = known(KEYS);
        assert_eq!(known.len(), 2);
        let yaml = "LEASEHOLD_NAME: a\nLEASEHOLD_LIMITS__DISK_LOW_BYTES: 1\n";
        assert_eq!(of_environment("a.yaml", yaml, &known), Vec::<String>::new());
        assert_eq!(of_environment("a.yaml", "LEASEHOLD_DISK_LOW: 1\n", &known).len(), 1);
    }
}
