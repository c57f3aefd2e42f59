//! Backups of whole clusters: folders that are taken, checked, and restored into new clusters. docs/backup.md is for their users.
//!
//! ```text
//!   FOLDER/ partition-00000 ... partition-NNNNN  catalogue      records as the nodes sent them, each with its checksum
//!           manifest                                            what there is, and the checksum of each file; written last
//! ```

mod files;
mod manifest;
mod restore;
mod take;

use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold_client::{Client, Error, v1::NodeStatus};

pub use manifest::{Manifest, Part};
pub use restore::{Restored, restore};
pub use take::take;

/// How long a node is tried that may not be there.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no backup, or no restored cluster.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{} is not empty: a backup gets a folder of its own", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} is no backup: it has no manifest. One that was broken off cannot be used: take another", path.display())]
    Incomplete { path: PathBuf },
    #[error("{} is damaged at byte {offset} ({detail}): use another copy of the backup", path.display())]
    Damaged { path: PathBuf, offset: u64, detail: &'static str },
    #[error(
        "{} has backup format {found}, and this program knows {}: use the version that took it",
        path.display(),
        manifest::FORMAT
    )]
    Newer { path: PathBuf, found: u64 },
    #[error("the cluster was not calm enough for a backup: {detail}")]
    Restless { detail: String },
    #[error(
        "the cluster is founded, but {detail}: stop its nodes, empty their data folders, and restore again"
    )]
    Unfinished { detail: String },
    #[error(transparent)]
    Client(#[from] Error),
}

/// Reads a whole backup, and says what is in it.
///
/// # Errors
/// When a file is missing or damaged: names it and the place.
pub fn verify(folder: &Path) -> Result<Manifest, BackupError> {
    let manifest = Manifest::load(folder)?;
    for part in &manifest.parts {
        let mut reader = files::Reader::open(folder, part)?;
        while reader.next()?.is_some() {}
    }
    Ok(manifest)
}

/// A client that asks one node only, as this one asks all.
fn client_of(client: &Client, node: &NodeStatus) -> Result<Client, Error> {
    client.builder_for([&node.client_address]).call_timeout(CALL_TIMEOUT).build()
}
