//! Rust files: how long they and their functions are, how they begin, and that they return errors instead of panicking.

use super::at_byte;
use crate::Finding;
use crate::source::{code_of, without_tests};

pub const SOURCE_LINES_MAX: usize = 500;
pub const TEST_LINES_MAX: usize = 800;
pub const FUNCTION_LINES_MAX: usize = 70;

/// A file is short enough to be read at once.
pub fn length(path: &str, text: &str, lines_max: usize) -> Vec<Finding> {
    let lines = text.lines().count();
    if lines <= lines_max {
        return Vec::new();
    }
    vec![format!("{path}: {lines} lines: split it where it changes its subject ({lines_max} at most)")]
}

/// A function outside of tests is short enough to be held in mind. Formatted code ends a function with a brace in its own column.
pub fn function_lengths(path: &str, text: &str) -> Vec<Finding> {
    let code = without_tests(&code_of(text));
    let lines = code.lines().collect::<Vec<_>>();
    let mut findings = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let length = body_end(&lines[at..], &format!("{indent}}}")).map_or(0, |end| end + 1);
        if length > FUNCTION_LINES_MAX {
            findings
                .push(format!("{path}:{}: {name} has {length} lines ({FUNCTION_LINES_MAX} at most)", at + 1));
        }
    }
    findings
}

/// Where the body of the function that begins with the first line ends; `None` for a declaration or a body in one line.
fn body_end(lines: &[&str], end: &str) -> Option<usize> {
    let begin = lines.iter().position(|line| line.contains('{') || line.trim_end().ends_with(';'))?;
    if !lines[begin].trim_end().ends_with('{') {
        return None;
    }
    lines.iter().position(|line| line.trim_end() == end)
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| {
        ["const", "async", "unsafe", "extern", "pub"].contains(&word) || word.starts_with("pub(")
    };
    let name = after.split(['(', '<']).next()?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && before.split_whitespace().all(is_qualifier)).then_some(name)
}

/// A file opens with its idea.
pub fn opening(path: &str, text: &str) -> Vec<Finding> {
    if text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{path}: begin with `//!` and the idea of the file")]
}

/// Code outside of tests returns what can go wrong, and says with `expect` which invariant rules out what cannot.
pub fn panics(path: &str, text: &str) -> Vec<Finding> {
    let code = without_tests(&code_of(text));
    let what = "no `unwrap` outside of tests: return the error, or name the invariant with `expect`";
    code.match_indices(".unwrap()").map(|(at, _)| at_byte(path, &code, at, what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found() {
        assert_eq!(length("a.rs", &"x\n".repeat(500), 500).len(), 0);
        assert_eq!(length("a.rs", &"x\n".repeat(501), 500).len(), 1);
    }

    #[test]
    fn long_functions_are_found_wherever_they_stand() {
        let body = "        work();\n".repeat(69);
        let short = format!(
            "impl A {{\n    pub(crate) async fn short() {{\n{}    }}\n}}\n",
            body.replacen("        work();\n", "", 1)
        );
        assert_eq!(function_lengths("a.rs", &short), Vec::<String>::new());
        let long = format!(
            "impl A {{\n    fn next();\n    pub(crate) async fn long(\n        a: u8,\n    ) {{\n{body}    }}\n}}\n"
        );
        assert_eq!(function_lengths("a.rs", &long), ["a.rs:3: long has 73 lines (70 at most)"]);
        let test = format!("#[cfg(test)]\nmod tests {{\n    fn long() {{\n{body}{body}    }}\n}}\n");
        assert_eq!(function_lengths("a.rs", &test), Vec::<String>::new());
    }

    #[test]
    fn a_file_without_its_idea_is_found() {
        assert_eq!(opening("a.rs", "//! What it is.\n").len(), 0);
        assert_eq!(opening("a.rs", "use std::fmt;\n//! Late.\n").len(), 1);
    }

    #[test]
    fn panics_are_found_outside_of_tests_only() {
        let bad = "fn a() {\n    b().unwrap();\n    c.lock()\n        .unwrap();\n    d.expect(\"it is set\");\n}\n";
        let found = panics("a.rs", bad);
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("a.rs:2: ") && found[1].starts_with("a.rs:4: "), "{found:?}");
        let good = "/// a.unwrap()\nfn a() { b.unwrap_or(\".unwrap()\"); }\n#[cfg(test)]\nmod tests { fn t() { a.unwrap(); } }\n";
        assert_eq!(panics("a.rs", good), Vec::<String>::new());
    }
}
