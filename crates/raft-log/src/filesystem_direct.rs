//! Files made as a whole, without a copy in the cache of the machine.
//!
//! The copy would cost processor time. It would also leave pages in the cache that are so large that every small write to one has to
//! look through it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use crate::filesystem::sync_failed;

/// What is written at once.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// What a write past the cache is aligned to, in memory and in the file.
const ALIGNMENT_BYTES: usize = 4096;

/// Makes a file of zeros.
///
/// # Errors
/// Also where there is no way past the cache, or none for this length.
pub fn zero(path: &Path, len_bytes: u64) -> io::Result<()> {
    let mut file = Direct::create(path)?;
    let mut left = len_bytes;
    while left > 0 {
        let len = left.min(CHUNK_BYTES as u64) as usize;
        file.write(len)?;
        left -= len as u64;
    }
    file.file.sync_data()
}

/// Makes a file of the parts one after the other.
///
/// # Errors
/// Also where there is no way past the cache.
pub fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = Direct::create(path)?;
    let mut filled = 0;
    for mut part in parts.iter().copied() {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(CHUNK_BYTES - filled));
            file.chunk()[filled..filled + now.len()].copy_from_slice(now);
            (part, filled) = (later, filled + now.len());
            if filled == CHUNK_BYTES {
                file.write(CHUNK_BYTES)?;
                filled = 0;
            }
        }
    }
    let len_bytes = file.at + filled as u64;
    let padded = filled.next_multiple_of(ALIGNMENT_BYTES);
    file.chunk()[filled..padded].fill(0);
    file.write(padded)?;
    file.file.set_len(len_bytes)?;
    file.file.sync_data().map_err(sync_failed)
}

/// Whether there is no way past the cache, and nothing is wrong with the disk.
pub fn is_not_possible(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// A file that is written from its start, by aligned pieces of one aligned buffer.
struct Direct {
    file: fs::File,
    buffer: Vec<u8>,
    start: usize,
    at: u64,
}

impl Direct {
    fn create(path: &Path) -> io::Result<Self> {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file =
            OpenOptions::new().create(true).truncate(true).write(true).custom_flags(direct).open(path)?;
        let buffer = vec![0; CHUNK_BYTES + ALIGNMENT_BYTES];
        let start = buffer.as_ptr().align_offset(ALIGNMENT_BYTES);
        Ok(Self { file, buffer, start, at: 0 })
    }

    fn chunk(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + CHUNK_BYTES]
    }

    /// Writes so much of the chunk to the end of the file.
    fn write(&mut self, len: usize) -> io::Result<()> {
        self.file.write_all_at(&self.buffer[self.start..self.start + len], self.at)?;
        self.at += len as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_parts_one_after_the_other_whatever_their_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whole");
        fs::write(&path, vec![7; 3 * CHUNK_BYTES]).unwrap();
        for state_bytes in
            [0, 1, ALIGNMENT_BYTES - 20, ALIGNMENT_BYTES, CHUNK_BYTES - 20, 2 * CHUNK_BYTES + 5]
        {
            let state = (0..state_bytes).map(|at| (at % 251) as u8).collect::<Vec<_>>();
            let parts: [&[u8]; 3] = [&[1; 16], &state, &[2; 4]];
            match write(&path, &parts) {
                Ok(()) => assert!(fs::read(&path).unwrap() == parts.concat(), "{state_bytes} bytes"),
                // Where the test runs there may be no way past the cache.
                Err(error) => assert!(is_not_possible(&error), "{error}"),
            }
        }
    }
}
