//! Licences of everything that is built into the programs.

use serde_json::Value;

use crate::Finding;

/// Licences that ask for no more than to be named. A new one is a decision: deny.toml has the same list.
pub const ALLOWED: &[&str] = &["Apache-2.0", "BSD-3-Clause", "ISC", "MIT", "Unicode-3.0", "Zlib"];

/// Checks that the list in `deny.toml` is this one.
pub fn list_of_deny(path: &str, deny: &str) -> Vec<Finding> {
    let list = deny.split("\nallow = [").nth(1).and_then(|after| after.split(']').next()).unwrap_or_default();
    let listed = list.split('"').skip(1).step_by(2).collect::<Vec<_>>();
    if listed == ALLOWED {
        return Vec::new();
    }
    vec![format!("{path}: allows {listed:?} where tests/tidy allows {ALLOWED:?}: say the same in both")]
}

/// Checks the packages in what `cargo metadata` prints.
pub fn packages(metadata: &str) -> Vec<Finding> {
    let Ok(metadata) = serde_json::from_str::<Value>(metadata) else {
        return vec!["cargo metadata: not JSON".to_owned()];
    };
    let list = |key: &str| metadata[key].as_array().cloned().unwrap_or_default();
    // With a platform, `packages` may name more than `resolve` needs there.
    let nodes = metadata["resolve"]["nodes"].as_array().cloned().unwrap_or_default();
    let is_needed = |package: &Value| nodes.iter().any(|node| node["id"] == package["id"]);
    let packages = list("packages").into_iter().filter(is_needed).collect::<Vec<_>>();
    if packages.is_empty() {
        return vec!["cargo metadata: no package".to_owned()];
    }
    packages.iter().filter_map(finding).collect()
}

fn finding(package: &Value) -> Option<Finding> {
    let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
    match package["license"].as_str() {
        Some(expression) if is_allowed(expression) => None,
        Some(expression) => Some(format!("{name} {version}: the licence `{expression}` is not on the list")),
        None => Some(format!("{name} {version}: it names no licence")),
    }
}

/// Whether an SPDX expression can be satisfied from the list. `A/B` is an old form of `A OR B`.
pub fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words = expression.split_whitespace().collect::<Vec<_>>();
    any_of(&words)
}

fn any_of(words: &[&str]) -> bool {
    split_outside(words, "OR").into_iter().any(all_of)
}

fn all_of(words: &[&str]) -> bool {
    split_outside(words, "AND").into_iter().all(|part| match part {
        ["(", inside @ .., ")"] => any_of(inside),
        licence => ALLOWED.contains(&licence.join(" ").as_str()),
    })
}

/// Splits at a word that stands outside of all brackets.
fn split_outside<'a, 'b>(words: &'a [&'b str], separator: &str) -> Vec<&'a [&'b str]> {
    let mut depth = 0_i32;
    words
        .split(|word| {
            depth += i32::from(*word == "(") - i32::from(*word == ")");
            depth == 0 && *word == separator
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_understood() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0",
            "(MIT AND (BSD-3-Clause OR GPL-2.0))",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT AND (GPL-3.0 OR AGPL-3.0)",
            "(GPL-3.0 OR MIT) AND (GPL-2.0)",
            "Apache-2.0 WITH other-exception",
            "MIT OR-LATER",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn another_list_is_found() {
        let deny = |list: &str| format!("[licenses]\nallow = [\n{list}]\n");
        let same = ALLOWED.iter().map(|licence| format!("    \"{licence}\",\n")).collect::<String>();
        assert_eq!(list_of_deny("deny.toml", &deny(&same)), Vec::<String>::new());
        assert_eq!(list_of_deny("deny.toml", &deny(&format!("{same}\"GPL-3.0\""))).len(), 1);
        assert_eq!(list_of_deny("deny.toml", "").len(), 1);
    }

    #[test]
    fn a_package_with_another_licence_or_none_is_found() {
        let package = |licence: &str| {
            format!(
                r#"{{"packages":[{{"id":"a","name":"a","version":"1","license":{licence}}},{{"id":"b","name":"b","version":"1","license":"X"}}],"resolve":{{"nodes":[{{"id":"a"}}]}}}}"#
            )
        };
        assert_eq!(packages(&package("\"MIT\"")), Vec::<String>::new());
        assert_eq!(packages(&package("\"AGPL-3.0\"")).len(), 1);
        assert_eq!(packages(&package("null")).len(), 1);
        assert_eq!(packages("{}").len(), 1);
        assert_eq!(packages("no").len(), 1);
    }
}
