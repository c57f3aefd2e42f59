//! What this machine can do without any queue: how long a sync takes, how fast a log can be written, and what a stream of gRPC
//! carries. No system that syncs and speaks over connections can be faster than these let it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::echo;
use super::latency::Latencies;
use super::metric::{Metric, Reading};
use super::system::Failure;

/// As large as a segment of the log in the clusters that are compared.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
const SMALL_BYTES: usize = 4 * 1024;
const LARGE_BYTES: usize = 1024 * 1024;

/// One thing that was measured, and its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub what: String,
    pub readings: Vec<Reading>,
}

impl Row {
    fn new(what: &str, readings: Vec<Reading>) -> Self {
        Self { what: what.to_owned(), readings }
    }
}

/// Measures each for some time.
pub async fn measure(work_dir: &Path, time: Duration) -> Result<Vec<Row>, Failure> {
    let dir = tempfile::tempdir_in(work_dir)?;
    let path = dir.path().join("segment");
    let written = tokio::task::spawn_blocking(move || {
        let file = zeroed(&path)?;
        Ok::<_, Failure>([
            Row::new(
                "4 KiB written and synced (`fdatasync`), again and again",
                overwrite(&file, SMALL_BYTES, time)?,
            ),
            Row::new("a recycled segment, written and synced by 1 MiB", overwrite(&file, LARGE_BYTES, time)?),
        ])
    });
    let [small, large] = written.await??;
    let one = echo::measure(1, time).await?;
    let many = echo::measure(4096, time).await?;
    Ok(vec![
        small,
        large,
        Row::new("128 B echoed on a stream of gRPC, one at a time", one),
        Row::new("128 B echoed on a stream of gRPC, 4096 outstanding", many),
    ])
}

/// A file whose blocks are there already, as those of a recycled segment are.
fn zeroed(path: &Path) -> Result<File, Failure> {
    let file = File::options().create_new(true).write(true).open(path)?;
    let zeros = vec![0; LARGE_BYTES];
    for at in (0..FILE_BYTES).step_by(LARGE_BYTES) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn overwrite(file: &File, bytes: usize, time: Duration) -> Result<Vec<Reading>, Failure> {
    let data = vec![b'x'; bytes];
    let (began, mut writes, mut latencies) = (Instant::now(), 0_u64, Latencies::default());
    while began.elapsed() < time {
        let one = Instant::now();
        file.write_all_at(&data, writes * bytes as u64 % FILE_BYTES)?;
        file.sync_data()?;
        latencies.add(one.elapsed());
        writes += 1;
    }
    let mib = (writes * bytes as u64) as f64 / (1024.0 * 1024.0);
    let mut readings = latencies.readings();
    readings.push((Metric::MibPerS, mib / began.elapsed().as_secs_f64()));
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_row_has_figures() {
        let dir = tempfile::tempdir().unwrap();
        let rows = measure(dir.path(), Duration::from_millis(50)).await.unwrap();
        assert_eq!(rows.len(), 4);
        for Row { what, readings } in rows {
            assert!(readings.len() >= 4, "{what}: {readings:?}");
            assert!(readings.iter().all(|(_, value)| *value > 0.0), "{what}: {readings:?}");
        }
    }
}
