//! The files of a backup: records, each with its length and checksum.
//!
//! ```text
//!   [magic 8 B] { [bytes u32][crc32c u32 of the bytes] bytes }*        little-endian
//! ```
//!
//! The manifest has the length and the checksum of each file as a whole, so nothing can be missing at its end.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::BackupError;
use super::manifest::Part;

const MAGIC: [u8; 8] = *b"LHLDBKP\n";
const HEADER_BYTES: usize = 8;
/// The largest record that a node sends or takes.
const RECORD_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Writes one file.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    crc32c: u32,
}

impl Writer {
    pub fn create(folder: &Path, name: &str) -> Result<Self, BackupError> {
        let path = folder.join(name);
        let file = File::create(&path).map_err(|error| BackupError::Io {
            action: "create",
            path: path.clone(),
            error,
        })?;
        let mut writer = Self { path, file: BufWriter::new(file), bytes: 0, crc32c: 0 };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    pub fn append(&mut self, record: &[u8]) -> Result<(), BackupError> {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(record.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&crc32c::crc32c(record).to_le_bytes());
        self.write(&header)?;
        self.write(record)
    }

    /// Brings the file to the disk; returns its length and checksum.
    pub fn finish(mut self) -> Result<(u64, u32), BackupError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|error| BackupError::Io { action: "sync", path: self.path, error })?;
        Ok((self.bytes, self.crc32c))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        let path = || self.path.clone();
        self.file.write_all(bytes).map_err(|error| BackupError::Io { action: "write", path: path(), error })
    }
}

/// Reads one file, and checks every byte of it.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    at: u64,
    crc32c: u32,
    bytes_wanted: u64,
    crc32c_wanted: u32,
}

impl Reader {
    pub fn open(folder: &Path, part: &Part) -> Result<Self, BackupError> {
        let path = folder.join(&part.file);
        let failed = |error| BackupError::Io { action: "read", path: path.clone(), error };
        let file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut reader = Self {
            path: path.clone(),
            file: BufReader::new(file),
            at: 0,
            crc32c: 0,
            bytes_wanted: part.bytes,
            crc32c_wanted: part.crc32c,
        };
        if bytes != part.bytes {
            reader.at = bytes.min(part.bytes);
            return Err(reader.damaged("its length is not that of the manifest"));
        }
        let mut magic = [0; MAGIC.len()];
        reader.read(&mut magic)?;
        if magic != MAGIC {
            reader.at = 0;
            return Err(reader.damaged("it does not begin as a file of a backup"));
        }
        Ok(reader)
    }

    /// The next record; `None` at the end of a file that is whole.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        if self.at == self.bytes_wanted {
            let is_sound = self.crc32c == self.crc32c_wanted;
            return if is_sound {
                Ok(None)
            } else {
                Err(self.damaged("its checksum is not that of the manifest"))
            };
        }
        let mut header = [0; HEADER_BYTES];
        self.read(&mut header)?;
        let number =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (len, crc32c) = (number(0), number(4));
        if len > RECORD_BYTES_MAX {
            return Err(self.damaged("a record is longer than any can be"));
        }
        let mut record = vec![0; len as usize];
        self.read(&mut record)?;
        if crc32c::crc32c(&record) != crc32c {
            return Err(self.damaged("the checksum of the record before is wrong"));
        }
        Ok(Some(record))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        if self.at + bytes.len() as u64 > self.bytes_wanted {
            return Err(self.damaged("a record goes beyond its end"));
        }
        let path = || self.path.clone();
        self.file.read_exact(bytes).map_err(|error| BackupError::Io {
            action: "read",
            path: path(),
            error,
        })?;
        self.at += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        Ok(())
    }

    fn damaged(&self, detail: &'static str) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), offset: self.at, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) -> Part {
        let mut writer = Writer::create(folder, "part").unwrap();
        for record in [&b"one"[..], b"", b"three"] {
            writer.append(record).unwrap();
        }
        let (bytes, crc32c) = writer.finish().unwrap();
        let file = "part".to_owned();
        Part { file, partition: None, log_index: 0, log_time_ms: 0, messages: 0, bytes, crc32c }
    }

    fn read(folder: &Path, part: &Part) -> Result<Vec<Vec<u8>>, BackupError> {
        let mut reader = Reader::open(folder, part)?;
        let mut records = Vec::new();
        while let Some(record) = reader.next()? {
            records.push(record);
        }
        Ok(records)
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let part = write(dir.path());
        assert_eq!(read(dir.path(), &part).unwrap(), [&b"one"[..], b"", b"three"]);
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_damage_at_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let part = write(dir.path());
        let path = dir.path().join("part");
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(read(dir.path(), &part), Err(BackupError::Damaged { .. })), "bit {bit}");
        }
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let error = read(dir.path(), &part).unwrap_err();
            assert!(matches!(error, BackupError::Damaged { offset, .. } if offset == len as u64), "{len}");
        }
    }
}
