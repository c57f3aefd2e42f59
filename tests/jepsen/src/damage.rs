//! Damage to what had been written down safely: bits that flip, and blocks that are lost or land in the wrong place.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use leasehold_histories::random::Random;

const SEGMENT_HEADER_BYTES: usize = 64;
const BATCH_HEADER_BYTES: usize = 32;
const BATCH_MAGIC: u32 = 0x4248_4c4c;
const BLOCK_BYTES: [usize; 2] = [512, 4_096];

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Up to eight bits are not what they were.
    Bits,
    /// A block was never written.
    Zeros,
    /// A block has what belongs into another.
    Misdirected,
    /// The file ends early.
    Cut,
}

const KINDS: [Kind; 4] = [Kind::Bits, Kind::Zeros, Kind::Misdirected, Kind::Cut];
/// What a disk does to a file that a process has open.
const KINDS_IN_USE: [Kind; 3] = [Kind::Bits, Kind::Zeros, Kind::Misdirected];
/// Places of one file that are damaged at a time: a node reads what it leads, about a third of what it holds.
const PLACES_IN_USE: usize = 8;

/// Damages one file of a node that is down: a closed segment, a snapshot, or the identity. Says which and how.
///
/// # Errors
/// When the files cannot be read or written.
pub fn damage(data_dir: &Path, random: &mut Random) -> io::Result<String> {
    let Target { path, sound, written } = choose(data_dir, random)?;
    let kind = KINDS[random.below(KINDS.len() as u64) as usize];
    let mut bytes = sound.clone();
    apply(kind, &mut bytes, &written, random);
    while bytes == sound {
        flip(&mut bytes, &written, random);
    }
    fs::write(&path, bytes)?;
    Ok(format!("{kind:?} in {}", path.strip_prefix(data_dir).unwrap_or(&path).display()))
}

/// Damages one file that a running node may read, at several places: the last closed segment or a snapshot. Only bytes that change
/// are written. Says which file and how.
///
/// # Errors
/// As [`damage`].
pub fn damage_in_use(data_dir: &Path, random: &mut Random) -> io::Result<(PathBuf, String)> {
    let (segments, snapshots) = log_files(&data_dir.join("log"))?;
    let path = if random.percent(30) { any(&snapshots, random) } else { None };
    let path = path.or_else(|| closed(&segments).last().cloned());
    let path = path.ok_or_else(|| io::Error::other("the node has no segment"))?;
    let sound = fs::read(&path)?;
    let written = if segments.contains(&path) { written(&sound, true) } else { 0..sound.len() };
    let kind = KINDS_IN_USE[random.below(KINDS_IN_USE.len() as u64) as usize];
    let mut bytes = sound.clone();
    (0..PLACES_IN_USE).for_each(|_| apply(kind, &mut bytes, &written, random));
    while bytes == sound {
        flip(&mut bytes, &written, random);
    }
    write_changes(&path, &sound, &bytes)?;
    let what = format!("{kind:?} in {}", path.strip_prefix(data_dir).unwrap_or(&path).display());
    Ok((path, what))
}

fn write_changes(path: &Path, sound: &[u8], bytes: &[u8]) -> io::Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    let mut at = 0;
    while let Some(skipped) = sound[at..].iter().zip(&bytes[at..]).position(|(was, is)| was != is) {
        let begin = at + skipped;
        let differ = sound[begin..].iter().zip(&bytes[begin..]).take_while(|(was, is)| was != is).count();
        at = begin + differ;
        file.write_all_at(&bytes[begin..at], begin as u64)?;
    }
    Ok(())
}

/// Those that nothing is written to any more. The last one may end in what no sync covered: before its last batch everything is
/// followed by something.
fn closed(segments: &[PathBuf]) -> &[PathBuf] {
    &segments[..segments.len().saturating_sub(1).max(segments.len().min(1))]
}

fn any(paths: &[PathBuf], random: &mut Random) -> Option<PathBuf> {
    let at = random.below(paths.len() as u64) as usize;
    paths.get(at).cloned()
}

/// A file, its bytes, and those of them that count.
struct Target {
    path: PathBuf,
    sound: Vec<u8>,
    written: Range<usize>,
}

fn choose(data_dir: &Path, random: &mut Random) -> io::Result<Target> {
    let (segments, snapshots) = log_files(&data_dir.join("log"))?;
    let class = random.below(10);
    let closed = closed(&segments);
    let path = match class {
        0 => None,
        1..4 => any(&snapshots, random).or_else(|| any(closed, random)),
        _ => any(closed, random),
    };
    let path = path.unwrap_or_else(|| data_dir.join("identity"));
    let sound = fs::read(&path)?;
    let written = match segments.contains(&path) {
        true => written(&sound, segments.len() > 1),
        false => 0..sound.len(),
    };
    Ok(Target { path, sound, written })
}

/// The segments in their order, and the snapshots.
pub fn log_files(dir: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut paths =
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let named = |prefix: &str| {
        let is_so = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(prefix) && !name.ends_with(".tmp")
        };
        paths.iter().filter(is_so).cloned().collect::<Vec<_>>()
    };
    Ok((named("segment-"), named("snapshot-")))
}

/// The bytes of a segment's batches with its header; of one that is not closed, without the last batch.
fn written(bytes: &[u8], is_closed: bool) -> Range<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (mut last, mut at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
    while number(at) == Some(BATCH_MAGIC)
        && let (Some(body_bytes), Some(records)) = (number(at + 8), number(at + 12))
        && records > 0
    {
        last = at;
        at += BATCH_HEADER_BYTES + body_bytes as usize;
    }
    0..if is_closed { at } else { last }.min(bytes.len())
}

fn apply(kind: Kind, bytes: &mut Vec<u8>, written: &Range<usize>, random: &mut Random) {
    let block_bytes = BLOCK_BYTES[random.below(2) as usize];
    let block = |random: &mut Random| {
        let begin = place(written, random) / block_bytes * block_bytes;
        begin..(begin + block_bytes).min(written.end)
    };
    match kind {
        Kind::Bits => (0..=random.below(8)).for_each(|_| flip(bytes, written, random)),
        Kind::Zeros => bytes[block(random)].fill(0),
        Kind::Misdirected => {
            let (from, to) = (block(random), block(random));
            let len = from.len().min(to.len());
            bytes.copy_within(from.start..from.start + len, to.start);
        }
        Kind::Cut => bytes.truncate(place(written, random)),
    }
}

fn flip(bytes: &mut [u8], written: &Range<usize>, random: &mut Random) {
    bytes[place(written, random)] ^= 1 << random.below(8);
}

fn place(written: &Range<usize>, random: &mut Random) -> usize {
    written.start + random.below(written.len() as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of batches with bodies of these lengths, a seal, and what was there before.
    fn segment(bodies: &[usize]) -> Vec<u8> {
        let mut bytes = vec![7; SEGMENT_HEADER_BYTES];
        let seal = [(0, 0)];
        for (body_bytes, records) in bodies.iter().map(|bytes| (*bytes, 1_u32)).chain(seal) {
            bytes.extend(BATCH_MAGIC.to_le_bytes());
            bytes.extend([9; 4]);
            bytes.extend((body_bytes as u32).to_le_bytes());
            bytes.extend(records.to_le_bytes());
            bytes.extend([9; 16]);
            bytes.extend((0..body_bytes).map(|at| at as u8 | 1));
        }
        bytes.extend([3; 9_000]);
        bytes
    }

    fn node(segments: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("identity"), "somebody\n").unwrap();
        fs::write(dir.path().join("log/snapshot-00000001"), [5; 600]).unwrap();
        fs::write(dir.path().join("log/snapshot-00000002.tmp"), [5; 600]).unwrap();
        for number in 0..segments {
            let bytes = segment(&[5_000, 700, 40]);
            fs::write(dir.path().join(format!("log/segment-{number:016x}")), bytes).unwrap();
        }
        dir
    }

    fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut paths, snapshots) = log_files(&dir.join("log")).unwrap();
        paths.extend(snapshots);
        paths.extend([dir.join("identity"), dir.join("log/snapshot-00000002.tmp")]);
        let with_bytes = |path: PathBuf| {
            let bytes = fs::read(&path).unwrap();
            (path.strip_prefix(dir).unwrap().to_owned(), bytes)
        };
        paths.into_iter().map(with_bytes).collect()
    }

    #[test]
    fn one_file_is_damaged_where_it_had_been_synced_and_the_seed_says_how() {
        let end = SEGMENT_HEADER_BYTES + 3 * BATCH_HEADER_BYTES + 5_740;
        for (segments, end) in [(3, end), (1, end - BATCH_HEADER_BYTES - 40)] {
            let mut seen = std::collections::BTreeSet::new();
            for seed in 0..200 {
                let [left, right] = [node(segments), node(segments)];
                let before = contents(left.path());
                let what = damage(left.path(), &mut Random::new(seed, 0)).unwrap();
                assert_eq!(damage(right.path(), &mut Random::new(seed, 0)).unwrap(), what);
                let after = contents(left.path());
                assert_eq!(after, contents(right.path()), "seed {seed}");
                let changed = before.iter().zip(&after).filter(|(before, after)| before != after);
                let [((path, sound), (_, bytes))] = changed.collect::<Vec<_>>()[..] else {
                    panic!("seed {seed}: {what}");
                };
                let name = path.to_str().unwrap();
                if name.contains("segment-") {
                    let is_last = name.ends_with(&format!("{:x}", segments - 1));
                    assert!(segments == 1 || !is_last, "seed {seed}: {what}");
                    assert!(bytes.len() < end || bytes[end..] == sound[end..], "seed {seed}: {what}");
                }
                seen.insert(what);
            }
            // Four kinds in each of: the segments, the snapshot, the identity.
            assert_eq!(seen.len(), 4 * (segments.max(2) - 1 + 2), "{seen:?}");
        }
    }
    #[test]
    fn a_file_in_use_is_damaged_in_its_place_and_keeps_its_length() {
        let end = SEGMENT_HEADER_BYTES + 3 * BATCH_HEADER_BYTES + 5_740;
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let node = node(3);
            let before = contents(node.path());
            let open = |name: &str| fs::File::open(node.path().join(name)).unwrap();
            let held = before.iter().map(|(name, _)| open(name.to_str().unwrap())).collect::<Vec<_>>();
            let (path, what) = damage_in_use(node.path(), &mut Random::new(seed, 0)).unwrap();
            let mut changed = Vec::new();
            for ((name, sound), file) in before.iter().zip(held) {
                // Who has the file open sees it.
                let mut bytes = vec![0; sound.len() + 1];
                assert_eq!(file.read_at(&mut bytes, 0).unwrap(), sound.len(), "seed {seed}: {what}");
                bytes.pop();
                if bytes != *sound {
                    changed.push((name, bytes[end.min(sound.len())..] == sound[end.min(sound.len())..]));
                }
            }
            let [(name, is_tail_sound)] = changed[..] else { panic!("seed {seed}: {what}: {changed:?}") };
            assert!(is_tail_sound && node.path().join(name) == path, "seed {seed}: {what}");
            seen.insert(what);
        }
        // Three kinds in each of: the last closed segment, the snapshot.
        assert_eq!(seen.len(), 6, "{seen:?}");
        assert!(seen.iter().all(|what| what.ends_with("1")), "{seen:?}");
    }
}
