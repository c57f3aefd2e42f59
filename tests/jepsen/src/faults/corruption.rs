//! Damage to files that a node reads while it runs: bodies that have left its cache, entries for a follower that is behind.
//!
//! ```text
//!   consumers held back, one follower stopped ── segments fill with what nobody has read
//!   a closed one is damaged                   ── the follower goes on, the consumers too: both make the node read it
//!   the node is killed and started            ── it refuses, or is not harmed, and is replaced
//! ```

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leasehold_histories::random::Random;
use tokio::time::{Instant, sleep};

use super::Scene;
use super::data::{failed, is_refusal, replace, restart_damaged, until};
use super::process::{pause, signal};
use super::schedule::Planned;
use crate::damage::{damage_in_use, log_files};

/// Segments that are filled while nothing is received.
const SEGMENTS_FILLED: usize = 1;
/// How long the node has at least to come upon the damage. It never does when it reads nothing there.
const NOTICE_PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A file that is damaged under a running node.
pub struct Damaged {
    file: PathBuf,
    /// Where the node's words after the damage begin, in what it says.
    words_begin: usize,
}

pub async fn begin(scene: &mut Scene<'_>, planned: &Planned) -> Result<String, String> {
    let (node, nodes) = (planned.node, scene.processes.nodes.len());
    let behind = (node + 1 + (planned.choice % (nodes as u64 - 1)) as usize) % nodes;
    scene.stage.is_held_back.store(true, Ordering::Relaxed);
    pause(scene, behind)?;
    let filled = fill_segments(scene, node).await;
    let words_begin = words(scene, node)?.len();
    let damaged = filled.and_then(|()| {
        let mut random = Random::new(planned.choice, 0);
        damage_in_use(&scene.processes.data_dir(node), &mut random).map_err(failed)
    });
    signal(scene.processes, behind, "CONT")?;
    scene.stage.is_held_back.store(false, Ordering::Relaxed);
    let (file, what) = damaged?;
    scene.damaged.insert(planned.number, Damaged { file, words_begin });
    Ok(format!("{what}, with node {} behind", behind + 1))
}

pub async fn end(scene: &mut Scene<'_>, planned: &Planned) -> Result<(), String> {
    let node = planned.node;
    let Some(Damaged { file, words_begin }) = scene.damaged.remove(&planned.number) else { return Ok(()) };
    let end = Instant::now() + NOTICE_PATIENCE;
    let noticed = loop {
        let words = words(scene, node)?;
        let noticed = judge(words.get(words_begin..).unwrap_or_default(), &file.display().to_string())?;
        if noticed > 0 || Instant::now() > end {
            break noticed;
        }
        sleep(LOOK_AGAIN).await;
    };
    scene.noticed += noticed;
    if !scene.processes.is_running(node).map_err(failed)? {
        return Err(format!("node {} ended by itself", node + 1));
    }
    scene.processes.kill(node).await.map_err(failed)?;
    match restart_damaged(scene, node).await {
        Ok(_) => replace(scene, node).await,
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

async fn fill_segments(scene: &Scene<'_>, node: usize) -> Result<(), String> {
    let dir = scene.processes.data_dir(node).join("log");
    let count = || log_files(&dir).map(|(segments, _)| segments.len()).map_err(failed);
    let wanted = count()? + SEGMENTS_FILLED;
    until("segments are filled", async || Ok(count()? >= wanted)).await
}

/// What the node has said, in whole lines.
fn words(scene: &Scene<'_>, node: usize) -> Result<String, String> {
    let mut words = fs::read_to_string(scene.processes.log_path(node)).map_err(failed)?;
    words.truncate(words.rfind('\n').map_or(0, |end| end + 1));
    Ok(words)
}

/// How many times the node said that the file is damaged.
///
/// # Errors
/// When it said so without the file or what to do.
fn judge(words: &str, file: &str) -> Result<u64, String> {
    let mut noticed = 0;
    for line in words.lines().filter(|line| line.contains("damaged")) {
        if !line.contains(file) || !is_refusal(line) {
            return Err(format!("of damage to {file} it says neither where it is nor what to do: {line}"));
        }
        noticed += 1;
    }
    Ok(noticed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_said_with_its_file_and_what_to_do_about_it() {
        let file = "/n1/log/segment-01";
        let said =
            format!("2026 ERROR error={file} is damaged at byte 7: restore the disk, or wipe the folder");
        assert_eq!(judge(&format!("ready\n{said}\n{said}\n"), file), Ok(2));
        assert_eq!(judge("ready\n", file), Ok(0));
        for said in ["group 3 is damaged: restore the disk", "/n1/log/segment-01 is damaged"] {
            assert!(judge(said, file).is_err(), "{said}");
        }
    }
}
