//! Rust source as far as the rules need it: which of its bytes are code, and which of its code is only for tests.

use std::collections::BTreeSet;

use crate::files::TextFile;

/// The same text with comments and the contents of literals replaced by spaces. Lines stay where they are.
pub fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped_from(bytes, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Only whole comments and literals were replaced, by ASCII.
    String::from_utf8_lossy(&code).into_owned()
}

/// The end of the comment or literal that begins at `at`; `at` itself when none does.
fn skipped_from(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let begins_word = at == 0 || !is_word(&bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + comment_bytes(rest),
        [b'"', ..] => at + quoted_bytes(rest, b'"'),
        [b'r', b'"' | b'#', ..] if begins_word => at + raw_bytes(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if begins_word => at + raw_bytes(rest, 2),
        // A lifetime has no second quote where a character has one.
        [b'\'', b'\\', ..] => at + quoted_bytes(rest, b'\''),
        [b'\'', ..] => {
            let text = std::str::from_utf8(&rest[1..rest.len().min(5)]);
            let valid = text.map_or_else(|error| error.valid_up_to(), str::len);
            let first = std::str::from_utf8(&rest[1..=valid]).unwrap_or_default().chars().next();
            let after = 1 + first.map_or(0, char::len_utf8);
            if rest.get(after) == Some(&b'\'') { at + after + 1 } else { at }
        }
        _ => at,
    }
}

fn comment_bytes(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_bytes(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 1,
            byte if byte == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    rest.len()
}

fn raw_bytes(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let begin = prefix + hashes + 1;
    // `r#name` is an identifier.
    if rest.get(begin - 1) != Some(&b'"') {
        return 0;
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let found = rest[begin..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |found| begin + found + end.len())
}

/// `code` with the items behind `#[cfg(test)]` and `#[cfg(any(test, ...` replaced by spaces. Lines stay where they are.
pub fn without_tests(code: &str) -> String {
    let mut kept = code.as_bytes().to_vec();
    for (begin, end) in test_items(code) {
        for byte in &mut kept[begin..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn test_items(code: &str) -> Vec<(usize, usize)> {
    let marks = ["#[cfg(test)]", "#[cfg(any(test"];
    let begins = marks.iter().flat_map(|mark| code.match_indices(mark).map(|(at, _)| at));
    begins.map(|begin| (begin, begin + item_bytes(&code[begin..]))).collect()
}

/// An item with its attributes ends with its first block, or with a semicolon before one.
fn item_bytes(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in item.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// The files that are compiled for tests alone: those below a folder of tests or benches, and modules behind `#[cfg(test)]`.
pub fn test_files(files: &[TextFile]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        if is_below_tests(&file.path) {
            found.insert(file.path.clone());
        }
        let code = code_of(&file.text);
        for (begin, end) in test_items(&code) {
            let Some(name) = module_name(&code[begin..end]) else { continue };
            let folder = module_folder(&file.path);
            found.insert(format!("{folder}/{name}.rs"));
            found.insert(format!("{folder}/{name}/mod.rs"));
        }
    }
    found
}

fn is_below_tests(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "benches", "examples"].contains(&part))
}

/// The name in `... mod name;`.
fn module_name(item: &str) -> Option<&str> {
    item.strip_suffix(';')?.trim_end().rsplit_once("mod ").map(|(_, name)| name.trim())
}

/// Where the modules that a file declares are.
fn module_folder(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder,
        _ => path.strip_suffix(".rs").unwrap_or(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        for text in [
            "// bad()",
            "/// bad()",
            "/* a /* bad() */ b */",
            r#"let a = "bad() \" bad()";"#,
            "let a = r#\"bad() \" bad()\"#;",
            "let a = br\"bad()\";",
            "let a = '\"'; // bad()",
            "let a = '\\''; let b = \"bad()\";",
            "let ä = 'ä'; let b = \"bad()\";",
        ] {
            assert!(!code_of(text).contains("bad"), "{text}: {}", code_of(text));
            assert_eq!(code_of(text).lines().count(), 1);
        }
        for text in ["fn f<'a>(a: &'a str) { good() }", "let a = r#type; good()", "let a = b'\"'; good()"] {
            assert!(code_of(text).contains("good()"), "{text}: {}", code_of(text));
        }
    }

    #[test]
    fn what_is_only_for_tests_is_left_out() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn bad() { {} }\n}\nfn b() {}\n";
        assert!(!without_tests(code).contains("bad"));
        assert!(without_tests(code).contains("fn b()"));
        assert_eq!(without_tests(code).lines().count(), code.lines().count());
        let code = "#[cfg(any(test, feature = \"t\"))]\npub use bad::Bad;\nfn b() {}";
        assert!(!without_tests(code).contains("bad"));
        assert!(without_tests(code).contains("fn b()"));
    }

    #[test]
    fn modules_that_are_only_for_tests_are_found() {
        let file = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let files = [
            file("crates/a/src/config/mod.rs", "mod keys;\n#[cfg(test)]\nmod tests;\n"),
            file(
                "crates/a/src/lib.rs",
                "#[cfg(any(test, feature = \"t\"))]\nmod fake;\n#[cfg(test)]\nmod tests { fn f() {} }",
            ),
            file("crates/a/tests/whole.rs", ""),
        ];
        let found = test_files(&files);
        for path in ["crates/a/src/config/tests.rs", "crates/a/src/fake.rs", "crates/a/tests/whole.rs"] {
            assert!(found.contains(path), "{path}: {found:?}");
        }
        assert!(!found.contains("crates/a/src/config/keys.rs"));
    }
}
