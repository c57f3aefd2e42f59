//! The journal that the shim writes: what each change took away, in order, and what a sync has covered.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: u32 = 0x4a52_4e4c;
const HEAD_LEN: usize = 48;

/// A change of a file's bytes: `before` stood at `offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub inode: u64,
    pub kind: ChangeKind,
    pub offset: u64,
    /// The file's, before.
    pub file_len: u64,
    pub before: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// So many bytes were written.
    Write { len: u64 },
    /// The file ends at the offset now.
    Resize,
}

impl Change {
    /// One past the last byte that it wrote.
    pub fn end(&self) -> u64 {
        match self.kind {
            ChangeKind::Write { len } => self.offset + len,
            ChangeKind::Resize => self.offset,
        }
    }

    /// What is left of it beside later changes that are durable: those of the same bytes put them on the disk after all.
    fn without<'a>(&self, later: impl Iterator<Item = &'a Self>) -> Vec<Self> {
        let mut left = Vec::from_iter(Some(self.offset..self.end()).filter(|range| !range.is_empty()));
        let mut file_len = self.file_len;
        for later in later {
            file_len = file_len.max(later.end());
            let around = |range: Range<u64>| {
                [range.start..range.end.min(later.offset), range.start.max(later.end())..range.end]
            };
            left = left.into_iter().flat_map(around).filter(|range| !range.is_empty()).collect();
        }
        let part = |range: Range<u64>| {
            let before = |offset: u64| self.before.len().min((offset - self.offset) as usize);
            Self {
                kind: ChangeKind::Write { len: range.end - range.start },
                offset: range.start,
                file_len,
                before: self.before[before(range.start)..before(range.end)].to_vec(),
                ..*self
            }
        };
        left.into_iter().map(part).collect()
    }
}

/// Changes of a file that a failed sync has left in the cache alone, though the kernel may call them clean.
struct Forgotten {
    inode: u64,
    positions: Range<u64>,
}

impl Forgotten {
    fn has(&self, inode: u64, position: u64) -> bool {
        self.inode == inode && self.positions.contains(&position)
    }
}

/// A change of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChange {
    pub dir: u64,
    pub kind: NameKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameKind {
    Create(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// The file has another name still, unless it was a folder.
    Remove {
        path: PathBuf,
        kept: Option<PathBuf>,
    },
}

/// What no sync covered, in the order in which it happened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unsynced {
    pub changes: Vec<Change>,
    pub names: Vec<NameChange>,
}

/// Reads a journal; the record that a killed process was writing does not count.
///
/// # Errors
/// When it is no journal.
pub fn read(bytes: &[u8]) -> io::Result<Unsynced> {
    let mut changes = Vec::new();
    let mut names = Vec::new();
    let mut covered = BTreeMap::<u64, u64>::new();
    let mut forgotten = Vec::new();
    let mut at = 0;
    while let Some((record, end)) = Record::read(bytes, at)? {
        let position = at as u64;
        match record.kind {
            1 | 2 => {
                let write = ChangeKind::Write { len: record.len };
                let kind = if record.kind == 1 { write } else { ChangeKind::Resize };
                let Record { inode, offset, file_len, body, .. } = record;
                changes.push((position, Change { inode, kind, offset, file_len, before: body.to_vec() }));
            }
            3 | 7 => {
                let until = covered.entry(record.inode).or_default();
                *until = record.len.max(*until);
            }
            8 => {
                let from = covered.get(&record.inode).copied().unwrap_or_default();
                forgotten.push(Forgotten { inode: record.inode, positions: from..record.len });
            }
            4..=6 => {
                let kind = name_kind(record.kind, record.body)?;
                names.push((position, NameChange { dir: record.inode, kind }));
            }
            kind => return Err(damaged(format!("a record of kind {kind} at byte {at}"))),
        }
        at = end;
    }
    let is_open = |inode: u64, position: u64| covered.get(&inode).is_none_or(|until| position >= *until);
    let mut unsynced = Vec::new();
    for (number, (position, change)) in changes.iter().enumerate() {
        if is_open(change.inode, *position) {
            unsynced.push(change.clone());
        } else if forgotten.iter().any(|forgotten| forgotten.has(change.inode, *position)) {
            let is_covered = |(position, later): &&(u64, Change)| {
                later.inode == change.inode
                    && !is_open(later.inode, *position)
                    && !forgotten.iter().any(|forgotten| forgotten.has(later.inode, *position))
            };
            let later = changes[number + 1..].iter().filter(is_covered).map(|(_, later)| later);
            unsynced.extend(change.without(later));
        }
    }
    Ok(Unsynced {
        changes: unsynced,
        names: names
            .into_iter()
            .filter_map(|(position, change)| is_open(change.dir, position).then_some(change))
            .collect(),
    })
}

struct Record<'a> {
    kind: u32,
    inode: u64,
    offset: u64,
    len: u64,
    file_len: u64,
    body: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at a place and where it ends; `None` when it is cut off.
    fn read(bytes: &'a [u8], at: usize) -> io::Result<Option<(Self, usize)>> {
        let Some(head) = bytes.get(at..at + HEAD_LEN) else { return Ok(None) };
        let short =
            |from: usize| head[from..from + 4].iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let long = |from: usize| u64::from(short(from + 4)) << 32 | u64::from(short(from));
        if short(0) != MAGIC {
            return Err(damaged(format!("no record at byte {at}")));
        }
        let end = at + HEAD_LEN + long(40) as usize;
        let Some(body) = bytes.get(at + HEAD_LEN..end) else { return Ok(None) };
        let record = Self {
            kind: short(4),
            inode: long(8),
            offset: long(16),
            len: long(24),
            file_len: long(32),
            body,
        };
        Ok(Some((record, end)))
    }
}

fn name_kind(kind: u32, body: &[u8]) -> io::Result<NameKind> {
    let mut parts =
        body.split(|byte| *byte == 0).map(|part| Path::new(std::str::from_utf8(part).unwrap_or("")));
    let (Some(first), Some(second)) = (parts.next(), parts.next()) else {
        return Err(damaged("a record without paths".to_owned()));
    };
    let (first, second) = (first.to_owned(), second.to_owned());
    Ok(match kind {
        4 => NameKind::Create(first),
        5 => NameKind::Rename { from: first, to: second },
        _ => NameKind::Remove { path: first, kept: (!second.as_os_str().is_empty()).then_some(second) },
    })
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the journal has {what}"))
}
