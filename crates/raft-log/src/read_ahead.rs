//! Segments that are read by several threads at once, and taken in their order: one thread would spend a start copying.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use crate::error::OpenError;
use crate::filesystem::{File, FileSystem};
use crate::segment_index::SegmentIndex;

/// Each holds one segment in memory.
const READERS: usize = 2;

/// A segment, and all its bytes.
pub struct Whole {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    /// Empty when there is an index.
    pub bytes: Vec<u8>,
    /// What takes the place of the bytes, and where the segment ends.
    pub index: Option<(SegmentIndex, u64)>,
}

/// Whether a segment need not be read, by its number.
pub type Spared<'a> = dyn Fn(u64, &dyn File) -> Option<(SegmentIndex, u64)> + Sync + 'a;

/// Reads segments, but for those that are spared it, and hands each to `take`, in order; `take` gives the buffer back, to be filled
/// again.
///
/// # Errors
/// The first of a read or of `take`.
pub fn each_segment(
    fs: &Arc<dyn FileSystem>,
    segments: &[(u64, PathBuf)],
    spared: &Spared<'_>,
    mut take: impl FnMut(Whole) -> Result<Vec<u8>, OpenError>,
) -> Result<(), OpenError> {
    if !fs.may_wait() {
        let mut buffer = Vec::new();
        for (number, path) in segments {
            buffer = take(read(fs.as_ref(), *number, path, spared, buffer)?)?;
        }
        return Ok(());
    }
    thread::scope(|scope| {
        let reader = |first: usize| {
            let (sender, wholes) = sync_channel(0);
            let (buffers, returned) = channel();
            // The receiver is held by the thread that starts below.
            let _ = buffers.send(Vec::new());
            let mine = segments.iter().skip(first).step_by(READERS);
            scope.spawn(move || read_all(fs.as_ref(), mine, spared, &returned, &sender));
            (wholes, buffers)
        };
        let readers: [(Receiver<_>, Sender<_>); READERS] = std::array::from_fn(reader);
        for (wholes, buffers) in readers.iter().cycle().take(segments.len()) {
            let whole: Result<Whole, OpenError> = wholes.recv().expect("a reader sends each of its segments");
            // It has ended when this was its last.
            let _ = buffers.send(take(whole?)?);
        }
        Ok(())
    })
}

/// Reads until all are read, or nobody wants more.
fn read_all<'a>(
    fs: &dyn FileSystem,
    segments: impl Iterator<Item = &'a (u64, PathBuf)>,
    spared: &Spared<'_>,
    buffers: &Receiver<Vec<u8>>,
    wholes: &SyncSender<Result<Whole, OpenError>>,
) {
    for (number, path) in segments {
        let Ok(buffer) = buffers.recv() else { return };
        if wholes.send(read(fs, *number, path, spared, buffer)).is_err() {
            return;
        }
    }
}

fn read(
    fs: &dyn FileSystem,
    number: u64,
    path: &Path,
    spared: &Spared<'_>,
    mut bytes: Vec<u8>,
) -> Result<Whole, OpenError> {
    let failed = |action: &'static str| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    let file = fs.open(path).map_err(failed("open"))?;
    let path = path.to_owned();
    if let Some(index) = spared(number, file.as_ref()) {
        bytes.clear();
        return Ok(Whole { number, path, file, bytes, index: Some(index) });
    }
    let len = file.len_bytes().and_then(|len| usize::try_from(len).map_err(io::Error::other));
    bytes.resize(len.map_err(failed("read"))?, 0);
    file.read_at(&mut bytes, 0).map_err(failed("read"))?;
    Ok(Whole { number, path, file, bytes, index: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::RealFileSystem;

    fn segments(dir: &Path, count: u64) -> Vec<(u64, PathBuf)> {
        let segment = |number: u64| {
            let path = dir.join(number.to_string());
            std::fs::write(&path, vec![number as u8; 100 + number as usize % 3]).unwrap();
            (number, path)
        };
        (0..count).map(segment).collect()
    }

    #[test]
    fn segments_are_taken_in_their_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(RealFileSystem::default());
        for count in [0, 1, 2, 7] {
            let mut taken = Vec::new();
            let read = each_segment(&fs, &segments(dir.path(), count), &|_, _| None, |whole| {
                assert!(whole.bytes == std::fs::read(&whole.path).unwrap());
                taken.push(whole.number);
                Ok(whole.bytes)
            });
            read.unwrap();
            assert_eq!(taken, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(RealFileSystem::default());
        let mut segments = segments(dir.path(), 9);
        segments[4].1 = dir.path().join("missing");
        let mut taken = 0;
        let read = each_segment(&fs, &segments, &|_, _| None, |whole| {
            taken += 1;
            Ok(whole.bytes)
        });
        assert!(matches!(read, Err(OpenError::Io { action: "open", .. })));
        assert_eq!(taken, 4);
    }
}
