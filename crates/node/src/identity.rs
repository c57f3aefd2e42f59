//! Who this data directory belongs to: a small checksummed file, replaced atomically.
//!
//! ```text
//!   leasehold identity 2
//!   cluster 5f0c...            16 bytes in hexadecimal
//!   node 3
//!   catalogue 3
//!   name a
//!   log 77e1...                16 bytes: which log is that of the node; format 1 did not say
//!   crc32c 1d2e3f40            of everything above
//! ```
//!
//! It is text because an operator reads it when something is wrong. The first line and the last mean the same in every
//! format version, so that a file of a newer version is told from a damaged one. A node without the file belongs to no
//! cluster yet.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The newest format of a data directory that this code understands, and the one it writes.
pub const FORMAT_VERSION: u32 = 2;
/// The first format that says which log is that of the node.
const FORMAT_WITH_LOG: u32 = 2;

const FILE: &str = "identity";
/// Left behind by a crash before the rename; the next `store` writes over it.
const FILE_NEW: &str = "identity.new";
const FIRST_LINE: &str = "leasehold identity ";
const LAST_LINE: &str = "crc32c ";
const FILE_BYTES_MAX: u64 = 4096;

/// Written once, when the node joins its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: [u8; 16],
    /// Never zero, never given to another node of the cluster.
    pub node_id: u64,
    /// The Raft id of this node's replica of the catalogue.
    pub catalogue_replica: u64,
    pub name: String,
    /// Of the log that the node joined with, which has every vote that it gave since. `None` where an older program wrote it.
    pub log_unique_id: Option<[u8; 16]>,
    /// Of the data directory as a whole.
    pub format_version: u32,
}

/// The log that lies beside an identity.
#[derive(Clone, Copy, Debug)]
pub struct FoundLog {
    pub unique_id: [u8; 16],
    /// Whether no group has anything in it.
    pub is_empty: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {action} {}: {error}; check the disk and the permissions of the data directory", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },

    #[error(
        "{} is damaged ({detail}): the data directory cannot be trusted. Restore the file from a copy, or remove the node \
         from its cluster, empty the directory and add the node again",
        path.display()
    )]
    Damaged { path: PathBuf, detail: &'static str },

    #[error(
        "{} has format version {found}, but this program understands up to {FORMAT_VERSION}: start the program of the \
         newer version that wrote it",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },

    #[error(
        "the data directory of {} belongs to node {found:?}, but the configuration names this node {wanted:?}: set `name` to \
         {found:?}, or point `data_dir` to an empty directory",
        path.display()
    )]
    OtherName { path: PathBuf, found: String, wanted: String },

    #[error(
        "the log beside {} is not the one with which this node joined its cluster: the votes and messages that it promised to \
         keep are not there. Mount the volume or restore the disk that has its log; or remove the node from its cluster, empty \
         the data directory and add the node again",
        path.display()
    )]
    OtherLog { path: PathBuf },
}

impl Identity {
    /// Reads the identity of a data directory, which must be that of the node `name`. `None` before it has joined a cluster.
    pub fn load(data_dir: &Path, name: &str) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let identity = decode(&bytes).map_err(|wrong| match wrong {
            Wrong::Damaged(detail) => IdentityError::Damaged { path: path.clone(), detail },
            Wrong::Newer(found) => IdentityError::Newer { path: path.clone(), found },
        })?;
        if identity.name != name {
            return Err(IdentityError::OtherName { path, found: identity.name, wanted: name.to_owned() });
        }
        Ok(Some(identity))
    }

    /// Makes sure that the log which was found is the one that the node joined its cluster with: any other knows nothing of the votes
    /// that it gave, and it would vote again. An identity that does not say is believed beside any log in which there is something; it stays
    /// as it is, for the node may go back to the program that wrote it.
    ///
    /// # Errors
    /// When it is another log.
    pub fn check_log(&self, data_dir: &Path, found: FoundLog) -> Result<(), IdentityError> {
        let is_own = self.log_unique_id.map_or(!found.is_empty, |known| known == found.unique_id);
        if is_own { Ok(()) } else { Err(IdentityError::OtherLog { path: data_dir.join(FILE) }) }
    }

    /// Replaces the identity of a data directory. When this returns, it is on the disk; when it fails or the power goes, the
    /// directory has the old one or the new one, whole.
    pub fn store(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let (path, path_new) = (data_dir.join(FILE), data_dir.join(FILE_NEW));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| IdentityError::Io { action, path, error }
        };
        let mut file = File::create(&path_new).map_err(failed("create", &path_new))?;
        file.write_all(encode(self).as_bytes()).map_err(failed("write", &path_new))?;
        file.sync_all().map_err(failed("sync", &path_new))?;
        fs::rename(&path_new, &path).map_err(failed("replace", &path))?;
        let directory = File::open(data_dir).map_err(failed("open", data_dir))?;
        directory.sync_all().map_err(failed("sync", data_dir))
    }
}

/// Bytes as people see them: two hexadecimal digits each.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(digits).map(char::from).collect()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let failed = |error| IdentityError::Io { action: "read", path: path.to_owned(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

fn encode(identity: &Identity) -> String {
    assert!(
        identity.format_version <= FORMAT_VERSION && identity.node_id != 0 && identity.catalogue_replica != 0
    );
    assert!(!identity.name.contains('\n'));
    assert_eq!(identity.log_unique_id.is_some(), identity.format_version >= FORMAT_WITH_LOG);
    let log = identity.log_unique_id.map(|id| format!("log {}\n", to_hex(&id))).unwrap_or_default();
    let body = format!(
        "{FIRST_LINE}{}\ncluster {}\nnode {}\ncatalogue {}\nname {}\n{log}",
        identity.format_version,
        to_hex(&identity.cluster_id),
        identity.node_id,
        identity.catalogue_replica,
        identity.name
    );
    let crc = crc32c::crc32c(body.as_bytes());
    let text = format!("{body}{LAST_LINE}{crc:08x}\n");
    assert!(text.len() as u64 <= FILE_BYTES_MAX);
    text
}

enum Wrong {
    Damaged(&'static str),
    Newer(u32),
}

/// The checksum comes first: what is under it was written so, and a version that it covers is really a newer one.
fn decode(bytes: &[u8]) -> Result<Identity, Wrong> {
    let text = std::str::from_utf8(bytes).map_err(|_| Wrong::Damaged("it is not text"))?;
    let last_line = text.len().checked_sub(LAST_LINE.len() + 9).filter(|at| text.is_char_boundary(*at));
    let (body, last_line) = text.split_at(last_line.ok_or(Wrong::Damaged("it is too short"))?);
    if last_line != format!("{LAST_LINE}{:08x}\n", crc32c::crc32c(body.as_bytes())) {
        return Err(Wrong::Damaged("its checksum is wrong"));
    }
    let malformed = || Wrong::Damaged("its checksum is right, but its lines are not those of an identity");
    let mut lines = body.lines();
    let mut field = |prefix: &str| lines.next()?.strip_prefix(prefix);
    let format_version = field(FIRST_LINE).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    if format_version > FORMAT_VERSION {
        return Err(Wrong::Newer(format_version));
    }
    let cluster_id = field("cluster ").and_then(from_hex).ok_or_else(malformed)?;
    let node_id =
        field("node ").and_then(|text| text.parse().ok()).filter(|id| *id != 0).ok_or_else(malformed)?;
    let catalogue_replica =
        field("catalogue ").and_then(|text| text.parse().ok()).filter(|id| *id != 0).ok_or_else(malformed)?;
    let name = field("name ").ok_or_else(malformed)?.to_owned();
    let log_unique_id = if format_version < FORMAT_WITH_LOG {
        None
    } else {
        Some(field("log ").and_then(from_hex).ok_or_else(malformed)?)
    };
    match lines.next() {
        None => Ok(Identity { cluster_id, node_id, catalogue_replica, name, log_unique_id, format_version }),
        Some(_) => Err(malformed()),
    }
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok())?.map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: *b"\x00cluster--id-123",
            node_id: 3,
            catalogue_replica: 4,
            name: "a".into(),
            log_unique_id: Some(*b"log--------id-45"),
            format_version: FORMAT_VERSION,
        }
    }

    /// As the first programs wrote it.
    fn of_format_1() -> Identity {
        Identity { log_unique_id: None, format_version: 1, ..identity() }
    }

    fn with_crc(body: &str) -> String {
        format!("{body}{LAST_LINE}{:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path(), "a").unwrap(), None);
        identity().store(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path(), "a").unwrap(), Some(identity()));
        let other = Identity { node_id: u64::MAX, cluster_id: [0xff; 16], ..identity() };
        other.store(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path(), "a").unwrap(), Some(other));
        assert!(!dir.path().join(FILE_NEW).exists());
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_identity() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NEW), "leasehold iden").unwrap();
        assert_eq!(Identity::load(dir.path(), "a").unwrap(), None);
        identity().store(dir.path()).unwrap();
        fs::write(dir.path().join(FILE_NEW), "").unwrap();
        assert_eq!(Identity::load(dir.path(), "a").unwrap(), Some(identity()));
    }

    #[test]
    fn a_torn_file_is_damaged_wherever_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let text = encode(&identity());
        for len in 0..text.len() {
            fs::write(dir.path().join(FILE), &text[..len]).unwrap();
            let error = Identity::load(dir.path(), "a").unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{len}: {error}");
            assert!(error.to_string().contains("add the node again"));
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_and_never_another_identity() {
        let text = encode(&identity()).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&bytes), Err(Wrong::Damaged(_))), "bit {bit}");
        }
        let mut long = text.clone();
        long.resize(2 * FILE_BYTES_MAX as usize, b'x');
        assert!(matches!(decode(&long), Err(Wrong::Damaged(_))));
    }

    #[test]
    fn a_right_checksum_does_not_make_wrong_lines_right() {
        for body in [
            "",
            "leasehold identity 1\n",
            "leasehold identity 1\ncluster 00\nnode 1\ncatalogue 1\nname a\n",
            "leasehold identity 1\ncluster +0000000000000000000000000000001\nnode 1\ncatalogue 1\nname a\n",
            "leasehold identity 1\ncluster 00000000000000000000000000000001\nnode 0\ncatalogue 1\nname a\n",
            "leasehold identity 1\ncluster 00000000000000000000000000000001\nnode 1\ncatalogue 1\nname a\nmore\n",
            "leasehold identity 2\ncluster 00000000000000000000000000000001\nnode 1\ncatalogue 1\nname a\n",
            "leasehold identity 2\ncluster 00000000000000000000000000000001\nnode 1\ncatalogue 1\nname a\nlog 01\n",
        ] {
            assert!(matches!(decode(with_crc(body).as_bytes()), Err(Wrong::Damaged(_))), "{body}");
        }
    }

    #[test]
    fn a_newer_version_and_another_owner_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), with_crc("leasehold identity 3\nunheard of\n")).unwrap();
        let error = Identity::load(dir.path(), "a").unwrap_err();
        assert!(matches!(error, IdentityError::Newer { found: 3, .. }), "{error}");

        identity().store(dir.path()).unwrap();
        let error = Identity::load(dir.path(), "b").unwrap_err();
        assert!(matches!(&error, IdentityError::OtherName { found, .. } if found == "a"), "{error}");
    }

    #[test]
    fn another_log_is_refused_and_so_is_an_empty_one_in_its_place() {
        let dir = Path::new("data");
        let own = identity().log_unique_id.unwrap();
        // A crash between the two leaves a node that has joined and has nothing yet.
        for is_empty in [true, false] {
            identity().check_log(dir, FoundLog { unique_id: own, is_empty }).unwrap();
            let error = identity().check_log(dir, FoundLog { unique_id: [9; 16], is_empty }).unwrap_err();
            assert!(matches!(error, IdentityError::OtherLog { .. }), "{error}");
            assert!(error.to_string().contains("add the node again"), "{error}");
        }
    }

    #[test]
    fn an_identity_of_format_1_has_a_log_with_something_in_it_and_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        of_format_1().store(dir.path()).unwrap();
        let found = |is_empty| FoundLog { unique_id: [9; 16], is_empty };
        let load = || Identity::load(dir.path(), "a").unwrap().unwrap();
        assert!(load().check_log(dir.path(), found(true)).is_err());
        load().check_log(dir.path(), found(false)).unwrap();
        assert_eq!(load(), of_format_1());
    }

    #[test]
    fn a_directory_that_is_away_is_an_error_of_its_own() {
        let error = identity().store(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, IdentityError::Io { action: "create", .. }), "{error}");
    }
}
