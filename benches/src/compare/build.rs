//! Which build of a program was measured, so that figures of two builds are not taken for those of one.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::system::Failure;

/// Of the digest: enough to tell builds apart.
const SHOWN_BYTES: usize = 6;

/// The program's name and that of its folder, which Cargo names after the profile, and a digest of its content.
pub fn identity(program: &Path) -> Result<String, Failure> {
    let content = std::fs::read(program);
    let content =
        content.map_err(|error| Failure::new(format!("{} cannot be read: {error}", program.display())))?;
    let [folder, name] = [program.parent().and_then(Path::file_name), program.file_name()]
        .map(|part| part.unwrap_or_default().to_string_lossy());
    let digest = Sha256::digest(&content);
    let digest = digest.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(format!("{folder}/{name} (SHA-256 {digest})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_by_its_folder_and_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("release");
        std::fs::create_dir(&folder).unwrap();
        let program = folder.join("program");
        std::fs::write(&program, "abc").unwrap();
        let before = identity(&program).unwrap();
        assert_eq!(before, "release/program (SHA-256 ba7816bf8f01)");
        std::fs::write(&program, "abd").unwrap();
        assert_ne!(identity(&program).unwrap(), before);
        assert!(identity(&folder.join("nothing")).unwrap_err().to_string().contains("nothing"));
    }
}
