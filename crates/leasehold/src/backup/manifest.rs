//! What a backup holds: a small file, written last and as a whole. A folder without it is no backup.
//!
//! ```text
//!   {"format":1,...}            one line of JSON
//!   crc32c 1d2e3f40             of everything above
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::BackupError;

/// The format of backups that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;
const FILE: &str = "manifest";
const FILE_NEW: &str = "manifest.new";
const LAST_LINE: &str = "crc32c ";

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub file: String,
    /// Of a partition; none for the catalogue.
    pub partition: Option<u32>,
    /// Every entry through this one is in it.
    pub log_index: u64,
    pub log_time_ms: u64,
    /// When the copy was begun. Some of them were settled before it had ended, and are not in it.
    pub messages: u64,
    pub bytes: u64,
    pub crc32c: u32,
}

/// A whole backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub cluster_id: String,
    /// The program that took it.
    pub program: String,
    pub taken_wall_ms: u64,
    pub queues: u64,
    /// The partitions in order, then the catalogue.
    pub parts: Vec<Part>,
}

impl Manifest {
    pub fn partitions(&self) -> impl Iterator<Item = (u32, &Part)> {
        self.parts.iter().filter_map(|part| Some((part.partition?, part)))
    }

    pub fn catalogue(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.partition.is_none())
    }

    pub fn messages(&self) -> u64 {
        self.parts.iter().map(|part| part.messages).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    pub fn to_json(&self) -> Value {
        let parts = self.parts.iter().map(|part| {
            json!({
                "file": part.file, "partition": part.partition, "log_index": part.log_index,
                "log_time_ms": part.log_time_ms, "messages": part.messages, "bytes": part.bytes,
                "crc32c": part.crc32c,
            })
        });
        json!({
            "format": FORMAT, "cluster_id": self.cluster_id, "program": self.program,
            "taken_wall_ms": self.taken_wall_ms, "queues": self.queues, "parts": parts.collect::<Vec<_>>(),
        })
    }

    /// Puts the manifest into a folder whose files are on the disk.
    pub(super) fn store(&self, folder: &Path) -> Result<(), BackupError> {
        let (path, path_new) = (folder.join(FILE), folder.join(FILE_NEW));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| BackupError::Io { action, path, error }
        };
        let body = format!("{}\n", self.to_json());
        let text = format!("{body}{LAST_LINE}{:08x}\n", crc32c::crc32c(body.as_bytes()));
        let mut file = File::create(&path_new).map_err(failed("create", &path_new))?;
        file.write_all(text.as_bytes()).map_err(failed("write", &path_new))?;
        file.sync_all().map_err(failed("sync", &path_new))?;
        fs::rename(&path_new, &path).map_err(failed("replace", &path))?;
        let directory = File::open(folder).map_err(failed("open", folder))?;
        directory.sync_all().map_err(failed("sync", folder))
    }

    pub(super) fn load(folder: &Path) -> Result<Self, BackupError> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(BackupError::Incomplete { path: folder.to_owned() });
            }
            Err(error) => return Err(BackupError::Io { action: "read", path, error }),
        };
        let damaged = |detail| BackupError::Damaged { path: path.clone(), offset: 0, detail };
        let text = std::str::from_utf8(&text).map_err(|_| damaged("it is not text"))?;
        let end = text.find('\n').map(|end| end + 1).ok_or_else(|| damaged("it is too short"))?;
        let (body, last_line) = text.split_at(end);
        if last_line != format!("{LAST_LINE}{:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(damaged("its checksum is wrong"));
        }
        let object: Value = serde_json::from_str(body).map_err(|_| damaged("it is not JSON"))?;
        match object["format"].as_u64() {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => return Err(BackupError::Newer { path, found }),
            _ => return Err(damaged("it has no format")),
        }
        Self::from_json(&object).ok_or_else(|| damaged("a field is missing"))
    }

    fn from_json(object: &Value) -> Option<Self> {
        let text = |name: &str| object[name].as_str().map(str::to_owned);
        let parts = object["parts"].as_array()?.iter().map(Part::from_json).collect::<Option<Vec<_>>>()?;
        let manifest = Self {
            cluster_id: text("cluster_id")?,
            program: text("program")?,
            taken_wall_ms: object["taken_wall_ms"].as_u64()?,
            queues: object["queues"].as_u64()?,
            parts,
        };
        let is_whole = manifest.catalogue().is_some()
            && manifest.partitions().zip(0..).all(|((partition, _), number)| partition == number);
        is_whole.then_some(manifest)
    }
}

impl Part {
    fn from_json(object: &Value) -> Option<Self> {
        let number = |name: &str| object[name].as_u64();
        let small = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
        Some(Self {
            // A name, and no way to anywhere else.
            file: object["file"].as_str().filter(|name| !name.contains('/'))?.to_owned(),
            partition: small("partition"),
            log_index: number("log_index")?,
            log_time_ms: number("log_time_ms")?,
            messages: number("messages")?,
            bytes: number("bytes")?,
            crc32c: small("crc32c")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let part = |partition: Option<u32>| Part {
            file: partition.map_or("catalogue".to_owned(), |partition| format!("partition-{partition:05}")),
            partition,
            log_index: 7,
            log_time_ms: 8,
            messages: 9,
            bytes: 10,
            crc32c: u32::MAX,
        };
        Manifest {
            cluster_id: "00ff".to_owned(),
            program: "0.1.0".to_owned(),
            taken_wall_ms: 11,
            queues: 12,
            parts: vec![part(Some(0)), part(Some(1)), part(None)],
        }
    }

    #[test]
    fn what_is_stored_is_loaded_and_a_folder_without_it_is_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Manifest::load(dir.path()), Err(BackupError::Incomplete { .. })));
        manifest().store(dir.path()).unwrap();
        assert_eq!(Manifest::load(dir.path()).unwrap(), manifest());
    }

    #[test]
    fn every_flipped_bit_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        manifest().store(dir.path()).unwrap();
        let text = fs::read(dir.path().join(FILE)).unwrap();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join(FILE), &bytes).unwrap();
            assert!(matches!(Manifest::load(dir.path()), Err(BackupError::Damaged { .. })), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_and_a_missing_partition_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = |object: &Value| {
            let body = format!("{object}\n");
            let crc = crc32c::crc32c(body.as_bytes());
            fs::write(dir.path().join(FILE), format!("{body}{LAST_LINE}{crc:08x}\n")).unwrap();
        };
        let mut newer = manifest().to_json();
        newer["format"] = json!(FORMAT + 1);
        store(&newer);
        let error = Manifest::load(dir.path()).unwrap_err();
        assert!(matches!(error, BackupError::Newer { found, .. } if found == FORMAT + 1), "{error}");
        let mut short = manifest();
        short.parts.remove(0);
        store(&short.to_json());
        assert!(matches!(Manifest::load(dir.path()), Err(BackupError::Damaged { .. })));
    }
}
