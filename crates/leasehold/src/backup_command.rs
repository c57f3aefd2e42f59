//! `leasehold backup`: taking and checking backups. They are restored by `leasehold cluster init --restore`.

use std::path::PathBuf;

use leasehold::backup::{self, Manifest};
use leasehold_client::Client;

use crate::output::{Failure, Output};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Copies the running cluster into a new folder. Nothing waits for it but dead letters and redrives.
    Take { folder: PathBuf },
    /// Reads a whole backup, and says what is in it or where it is damaged.
    Verify { folder: PathBuf },
}

pub async fn run(
    command: Command,
    client: impl FnOnce() -> Result<Client, Failure>,
    output: Output,
) -> Result<(), Failure> {
    let (done, manifest, folder) = match command {
        Command::Take { folder } => ("taken", backup::take(&client()?, &folder).await?, folder),
        Command::Verify { folder } => ("whole", backup::verify(&folder)?, folder),
    };
    let text = format!("the backup {} is {done}: {}", folder.display(), contents(&manifest));
    output.done(&text, &manifest.to_json())
}

/// What a backup holds, for people.
pub fn contents(manifest: &Manifest) -> String {
    let (partitions, queues) = (manifest.partitions().count(), manifest.queues);
    let (messages, bytes, cluster) = (manifest.messages(), manifest.bytes(), &manifest.cluster_id);
    format!(
        "{queues} queues and {messages} messages in {partitions} partitions of cluster {cluster}, {bytes} bytes"
    )
}
