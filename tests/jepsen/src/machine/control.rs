//! What a running shim is told: `struct control` of `shim/shim.c`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const LEN: usize = 40;

/// The control file of one node. It outlives the node's process, and so does what it says.
#[derive(Debug, Clone)]
pub struct Control(Arc<File>);

impl Control {
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().create_new(true).read(true).write(true).open(path)?;
        file.write_all_at(&[0; LEN], 0)?;
        Ok(Self(Arc::new(file)))
    }

    /// Moves the wall clock.
    pub fn set_clock_offset(&self, offset_ms: i64) -> io::Result<()> {
        self.0.write_all_at(&offset_ms.to_ne_bytes(), 0)
    }

    /// Stops the wall clock at a time, or lets it run with 0.
    pub fn freeze_clock(&self, at_ms: i64) -> io::Result<()> {
        self.0.write_all_at(&at_ms.to_ne_bytes(), 8)
    }

    /// Lets every sync take this much longer.
    pub fn stall_syncs(&self, stall_ms: u32) -> io::Result<()> {
        self.0.write_all_at(&stall_ms.to_ne_bytes(), 16)
    }

    /// Lets so many syncs fail.
    pub fn fail_syncs(&self, count: u32) -> io::Result<()> {
        self.0.write_all_at(&count.to_ne_bytes(), 20)
    }

    /// Lets so many writes fail.
    pub fn fail_writes(&self, count: u32) -> io::Result<()> {
        self.0.write_all_at(&count.to_ne_bytes(), 32)
    }

    /// Lets so many reads fail.
    pub fn fail_reads(&self, count: u32) -> io::Result<()> {
        self.0.write_all_at(&count.to_ne_bytes(), 36)
    }

    /// Lets writes fail for want of room.
    pub fn fill_disk(&self, is_full: bool) -> io::Result<()> {
        self.0.write_all_at(&u32::from(is_full).to_ne_bytes(), 24)
    }

    /// Lets syncs say that they are done without making anything durable: a disk on which nothing can be safe.
    pub fn lie_about_syncs(&self) -> io::Result<()> {
        self.0.write_all_at(&1_u32.to_ne_bytes(), 28)
    }
}
