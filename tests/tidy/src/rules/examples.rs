//! Public items of a library that are in no example: who reads the documentation of one shall see it used.

use std::collections::BTreeSet;

use crate::Finding;
use crate::source::{code_of, without_tests};

const KINDS: [&str; 5] = ["fn", "struct", "enum", "trait", "type"];
const MODIFIERS: [&str; 3] = ["async", "const", "unsafe"];

/// Each public item that a file declares has an example, or is named in one of the same file.
pub fn missing(path: &str, text: &str) -> Vec<Finding> {
    let examples = examples(text);
    let shown = examples.iter().flatten().flat_map(|code| words(code)).collect::<BTreeSet<_>>();
    let code = without_tests(&code_of(text));
    let items = code.lines().enumerate().filter_map(|(at, line)| Some((at, public_item(line)?)));
    let missing = items.filter(|(at, name)| !shown.contains(name) && !has_example(text, &examples, *at));
    missing.map(|(at, name)| format!("{path}:{}: `{name}` is in no example of this file", at + 1)).collect()
}

fn public_item(line: &str) -> Option<&str> {
    let mut words = line.trim_start().strip_prefix("pub ")?.split_whitespace();
    let kind = words.find(|word| !MODIFIERS.contains(word))?;
    let name = words.next().filter(|_| KINDS.contains(&kind))?;
    name.split(|letter: char| !is_of_word(letter)).next()
}

/// Of each line of a file, the code in documentation that it has.
fn examples(text: &str) -> Vec<Option<&str>> {
    let (mut is_block, mut is_code) = (false, false);
    let lines = text.lines().map(str::trim_start).map(|line| {
        let document = line.strip_prefix("///").or(line.strip_prefix("//!"))?.trim_start();
        if let Some(language) = document.strip_prefix("```") {
            is_block = !is_block;
            is_code = is_block && !language.starts_with("text");
            return None;
        }
        is_code.then_some(document)
    });
    lines.collect()
}

/// Whether an example is in the documentation right above a line.
fn has_example(text: &str, examples: &[Option<&str>], at: usize) -> bool {
    let above = text.lines().zip(examples).take(at).collect::<Vec<_>>();
    let documents = above.into_iter().rev().take_while(|(line, _)| {
        let line = line.trim_start();
        line.starts_with("///") || line.starts_with("#[")
    });
    documents.into_iter().any(|(_, example)| example.is_some())
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !is_of_word(letter))
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_without_an_example_is_found() {
        let example = "/// It is.\n///\n/// ```\n/// shown(Shown::new());\n/// ```\n";
        let code = "pub struct Shown;\nimpl Shown {\n    pub fn new() {}\n    pub(crate) fn own() {}\n}\n\
                    pub async fn shown(a: u8) {}\npub const MOST: u8 = 1;\nfn private() {}\n\
                    #[cfg(test)]\nmod tests {\n    pub fn of_tests() {}\n}\n";
        assert_eq!(missing("a.rs", &format!("{example}{code}")), Vec::<String>::new());
        let without = missing("a.rs", code);
        assert_eq!(without.len(), 3, "{without:?}");
        assert!(without[0].starts_with("a.rs:1: `Shown`"), "{without:?}");
    }

    #[test]
    fn an_example_of_its_own_need_not_name_an_item() {
        let text =
            "/// It is.\n///\n/// ```\n/// a().b();\n/// ```\n#[must_use]\npub fn c() {}\npub fn d() {}\n";
        assert_eq!(missing("a.rs", text), ["a.rs:8: `d` is in no example of this file"]);
    }

    #[test]
    fn words_and_pictures_are_no_example() {
        for text in ["//! Shown\npub struct Shown;\n", "//! ```text\n//! Shown\n//! ```\npub struct Shown;\n"]
        {
            assert_eq!(missing("a.rs", text).len(), 1, "{text}");
        }
        assert_eq!(missing("a.rs", "//! ```no_run\n//! Shown\n//! ```\npub struct Shown;\n").len(), 0);
        let after_picture = "//! ```text\n//! a\n//! ```\n\n/// Shown\npub struct Shown;\n";
        assert_eq!(missing("a.rs", after_picture).len(), 1);
        // A prefix is another word.
        assert_eq!(
            missing("a.rs", "/// ```\n/// Shown\n/// ```\nfn other() {}\npub struct Show;\n").len(),
            1
        );
    }
}
