//! A loss of power, made up after a kill: of what no sync covered, some is on the disk and some is not, in any order that a disk
//! may choose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use leasehold_histories::random::Random;

use super::journal::{self, Change, ChangeKind, NameChange, NameKind};

/// What was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    pub changes: usize,
    pub names: usize,
}

/// How much of what was not synced is lost, and in what pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Everything,
    /// Each piece of a file stands as it stood at some time of its own.
    Pieces {
        bytes: u64,
    },
}

/// Takes back what no sync covered, and forgets the journal.
pub fn lose(data_dir: &Path, journal_dir: &Path, random: &mut Random) -> io::Result<Loss> {
    let journal_path = journal_dir.join("journal");
    // Every process begins one: without it the shim was not loaded, and nothing is known of what was synced.
    let read = fs::read(&journal_path);
    let read = read.map_err(|error| io::Error::new(error.kind(), format!("no journal: {error}")))?;
    let unsynced = journal::read(&read)?;
    let extent = match random.below(3) {
        0 => Extent::Everything,
        1 => Extent::Pieces { bytes: 512 },
        _ => Extent::Pieces { bytes: 4096 },
    };
    let loss = Loss {
        changes: lose_changes(&unsynced.changes, &files(&[data_dir, journal_dir])?, extent, random)?,
        names: lose_names(&unsynced.names, data_dir, extent, random)?,
    };
    fs::remove_dir_all(journal_dir)?;
    fs::create_dir(journal_dir)?;
    Ok(loss)
}

/// Every file below the folders, by inode.
fn files(dirs: &[&Path]) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = dirs.iter().map(|dir| dir.to_path_buf()).collect::<Vec<_>>();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let of = entry.metadata()?;
            if of.is_dir() {
                open.push(entry.path());
            } else {
                found.insert(of.ino(), entry.path());
            }
        }
    }
    Ok(found)
}

fn lose_changes(
    changes: &[Change],
    files: &BTreeMap<u64, PathBuf>,
    extent: Extent,
    random: &mut Random,
) -> io::Result<usize> {
    let mut lost = 0;
    for inode in changes.iter().map(|change| change.inode).collect::<BTreeSet<_>>() {
        let of_file = changes.iter().filter(|change| change.inode == inode).collect::<Vec<_>>();
        // A file without a name is gone in any case.
        let Some(path) = files.get(&inode) else { continue };
        let file = File::options().read(true).write(true).open(path)?;
        let is_resized = of_file.iter().any(|change| change.kind == ChangeKind::Resize);
        lost += match extent {
            Extent::Everything => lose_last(&file, &of_file, 0)?,
            Extent::Pieces { .. } if is_resized => {
                lose_last(&file, &of_file, random.below(of_file.len() as u64 + 1) as usize)?
            }
            Extent::Pieces { bytes } => lose_pieces(&file, &of_file, bytes, random)?,
        };
    }
    Ok(lost)
}

/// Takes back all changes but the first so many.
fn lose_last(file: &File, changes: &[&Change], kept: usize) -> io::Result<usize> {
    for change in changes[kept..].iter().rev() {
        file.set_len(change.file_len)?;
        file.write_all_at(&change.before, change.offset)?;
    }
    Ok(changes.len() - kept)
}

/// Takes each piece of the file back to some time of its own. The file is as long as the last byte that is kept wants it.
fn lose_pieces(file: &File, changes: &[&Change], bytes: u64, random: &mut Random) -> io::Result<usize> {
    let mut times = BTreeMap::<u64, u64>::new();
    for change in changes {
        pieces(change, bytes).for_each(|piece| *times.entry(piece).or_default() += 1);
    }
    let kept =
        times.iter().map(|(piece, times)| (*piece, random.below(times + 1))).collect::<BTreeMap<_, _>>();
    let mut len = changes.first().map_or(0, |change| change.file_len);
    let mut lost = 0;
    for change in changes.iter().rev() {
        let mut is_touched = false;
        let end = change.end();
        for piece in pieces(change, bytes).collect::<Vec<_>>() {
            let number = times.get_mut(&piece).map_or(0, |times| {
                *times -= 1;
                *times
            });
            let (from, to) = (change.offset.max(piece * bytes), end.min((piece + 1) * bytes));
            if number < kept[&piece] {
                len = len.max(to);
                continue;
            }
            is_touched = true;
            let mut before = vec![0; (to - from) as usize];
            let known = change.before.get((from - change.offset) as usize..).unwrap_or_default();
            let known = &known[..known.len().min(before.len())];
            before[..known.len()].copy_from_slice(known);
            file.write_all_at(&before, from)?;
        }
        lost += usize::from(is_touched);
    }
    file.set_len(len)?;
    Ok(lost)
}

/// The pieces that a write touches.
fn pieces(change: &Change, bytes: u64) -> std::ops::Range<u64> {
    change.offset / bytes..change.end().div_ceil(bytes)
}

/// Names change in the order in which the file system writes them down: the last ones are lost.
fn lose_names(
    names: &[NameChange],
    data_dir: &Path,
    extent: Extent,
    random: &mut Random,
) -> io::Result<usize> {
    let kept = match extent {
        Extent::Everything => 0,
        Extent::Pieces { .. } => random.below(names.len() as u64 + 1) as usize,
    };
    // What a rename replaces goes with it.
    let is_torn = |at: usize| match (at.checked_sub(1).map(|before| &names[before].kind), names.get(at)) {
        (Some(NameKind::Remove { path, .. }), Some(NameChange { kind: NameKind::Rename { to, .. }, .. })) => {
            path == to
        }
        _ => false,
    };
    let kept = if is_torn(kept) { kept - 1 } else { kept };
    for name in names[kept..].iter().rev() {
        match &name.kind {
            // Whoever made the data folder has synced the one that it is in.
            NameKind::Create(path) if path == data_dir => {}
            NameKind::Create(path) if path.is_dir() => done_or_gone(fs::remove_dir_all(path))?,
            NameKind::Create(path) => done_or_gone(fs::remove_file(path))?,
            NameKind::Rename { from, to } => done_or_gone(fs::rename(to, from))?,
            NameKind::Remove { path, kept: Some(kept) } => match fs::hard_link(kept, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => done_or_gone(linked)?,
            },
            NameKind::Remove { kept: None, .. } => {}
        }
    }
    Ok(names.len() - kept)
}

/// What is gone already, with the folder that it was in, cannot be lost again.
fn done_or_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
