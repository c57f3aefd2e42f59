//! What the state machine made of a log, it makes of it for ever: a cluster whose nodes are of two versions applies the same entries,
//! and its replicas must not differ.
//!
//! `rules/log.bin` is what the random clients of `model.rs` proposed once, each entry behind its length; `rules/hashes.txt` has the
//! hash of the state after every 50 of them.
#![allow(clippy::unwrap_used)] // outside test functions, too, a panic is how a test fails

use std::fmt::Write as _;
use std::path::Path;

use leasehold_partition::*;

const ENTRIES_BETWEEN_HASHES: usize = 50;
/// Writes the hashes anew in place of comparing them.
const REWRITE: &str = "LEASEHOLD_REWRITE_HASHES";

/// The entries of the kept log.
fn entries() -> impl Iterator<Item = &'static [u8]> {
    let mut rest = &include_bytes!("rules/log.bin")[..];
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (entry, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        rest = behind;
        Some(entry)
    })
}

#[test]
fn a_kept_log_gives_the_states_that_it_always_gave() {
    let mut partition = Partition::new();
    let mut hashes = String::new();
    for (number, entry) in (1..).zip(entries()) {
        partition.apply(number, entry, History::All).unwrap();
        if (number as usize).is_multiple_of(ENTRIES_BETWEEN_HASHES) {
            writeln!(hashes, "{number} {:016x}", partition.state_hash()).unwrap();
        }
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/hashes.txt");
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(&kept, &hashes).unwrap();
    }
    let kept = std::fs::read_to_string(&kept).unwrap();
    assert!(kept.lines().count() >= 40, "the kept log is long");
    for (now, before) in hashes.lines().zip(kept.lines()) {
        assert_eq!(
            now, before,
            "the {ENTRIES_BETWEEN_HASHES} entries up to this one give another state than they gave: replicas of this version and of those \
             before would differ. Where that is meant it is a new machine version; until the first release say so in the commit, and \
             run this test with {REWRITE}=1"
        );
    }
    assert_eq!(hashes.lines().count(), kept.lines().count());
}
