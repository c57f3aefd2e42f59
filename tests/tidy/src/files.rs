//! The files of the repository: those that git tracks or would add.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file with text in it.
#[derive(Debug, Clone)]
pub struct TextFile {
    /// From the root of the repository, with `/` between the parts.
    pub path: String,
    pub text: String,
}

/// Beyond this a file is data.
const TEXT_BYTES_MAX: u64 = 1_000_000;

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// All paths, sorted. A file that is not tracked yet counts, so that a rule fails before the commit and not after it.
///
/// # Errors
/// When a folder cannot be read.
pub fn paths(root: &Path) -> io::Result<Vec<String>> {
    let mut paths = match listed_by_git(root) {
        Some(paths) => paths,
        None => {
            let mut paths = Vec::new();
            walk(root, "", &mut paths)?;
            paths
        }
    };
    paths.retain(|path| root.join(path).is_file());
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// The files among `paths` that are text.
///
/// # Errors
/// When a file cannot be read.
pub fn texts(root: &Path, paths: &[String]) -> io::Result<Vec<TextFile>> {
    let mut texts = Vec::new();
    for path in paths {
        let file = root.join(path);
        if fs::metadata(&file)?.len() > TEXT_BYTES_MAX {
            continue;
        }
        if let Ok(text) = String::from_utf8(fs::read(&file)?) {
            texts.push(TextFile { path: path.clone(), text });
        }
    }
    Ok(texts)
}

fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    let names = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// For a copy of the tree that is no git repository.
fn walk(root: &Path, folder: &str, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type()?.is_file() {
            paths.push(path);
        } else if entry.file_type()?.is_dir() && name != ".git" && name != "target" {
            walk(root, &path, paths)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_and_walking_find_this_file() {
        let root = root();
        let this = "tests/tidy/src/files.rs";
        assert!(paths(&root).unwrap().iter().any(|path| path == this));
        let mut walked = Vec::new();
        walk(&root.join("tests/tidy"), "", &mut walked).unwrap();
        assert!(walked.contains(&"src/files.rs".to_owned()));
    }
}
