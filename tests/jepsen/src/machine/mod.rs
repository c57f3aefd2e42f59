//! What a node's process stands on: a disk that can lose power and a clock that can lie, through a library that is preloaded into it.
//!
//! ```text
//!   harness ── control file ──▶ shim in the process ── journal of changes and syncs ──▶ harness, after a kill:
//!                                                                                       takes back what no sync covered
//! ```

use leasehold_histories::random::Random;

mod control;
mod journal;
mod power;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use leasehold::processes::Place;

pub use control::Control;
pub use power::Loss;

const SOURCE: &str = include_str!("../../shim/shim.c");

/// The machines of a run's nodes.
pub struct Machines {
    library: PathBuf,
    machines: Vec<Machine>,
}

/// The machine of one node.
pub struct Machine {
    data_dir: PathBuf,
    journal_dir: PathBuf,
    control_path: PathBuf,
    pub control: Control,
}

impl Machines {
    /// Makes machines for the nodes whose data is in `dir`. `None` without a C compiler: then there are no such faults.
    ///
    /// # Errors
    /// When files cannot be written, or the library cannot be made by the compiler that is there.
    pub fn make(dir: &Path, nodes: usize) -> Result<Option<Self>, String> {
        let shim_dir = dir.join("shim");
        std::fs::create_dir_all(&shim_dir).map_err(|error| error.to_string())?;
        let library = shim_dir.join("shim.so");
        if !compile(&shim_dir, &library)? {
            return Ok(None);
        }
        let machines = (1..=nodes).map(|number| Machine::make(dir, &shim_dir, &format!("n{number}")));
        Ok(Some(Self { library, machines: machines.collect::<Result<_, _>>()? }))
    }

    pub fn of(&self, node: usize) -> &Machine {
        &self.machines[node]
    }

    /// Lets no sync of any node cover anything.
    ///
    /// # Errors
    /// When a control file cannot be written.
    pub fn lie_about_syncs(&self) -> std::io::Result<()> {
        self.machines.iter().try_for_each(|machine| machine.control.lie_about_syncs())
    }

    /// The place of a node, on its machine.
    pub fn place(&self, node: usize, mut place: Place) -> Place {
        let machine = &self.machines[node];
        place.launcher.push("env".into());
        for (name, path) in [
            ("LD_PRELOAD", &self.library),
            ("SHIM_DATA", &machine.data_dir),
            ("SHIM_JOURNAL", &machine.journal_dir),
            ("SHIM_CONTROL", &machine.control_path),
        ] {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(path);
            place.launcher.push(setting);
        }
        place
    }
}

impl Machine {
    fn make(dir: &Path, shim_dir: &Path, name: &str) -> Result<Self, String> {
        let journal_dir = shim_dir.join(name);
        std::fs::create_dir(&journal_dir).map_err(|error| error.to_string())?;
        let control_path = shim_dir.join(format!("{name}.control"));
        let control = Control::create(&control_path).map_err(|error| error.to_string())?;
        Ok(Self { data_dir: dir.join(name), journal_dir, control_path, control })
    }

    /// Forgets what was not synced: the files are gone.
    ///
    /// # Errors
    /// When the journal's folder cannot be made anew.
    pub fn forget(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.journal_dir)?;
        std::fs::create_dir(&self.journal_dir)
    }

    /// Takes back what was not synced, as a loss of power does. The process must be gone.
    ///
    /// # Errors
    /// When the journal cannot be read, or the files are not as it says.
    pub fn lose_power(&self, random: &mut Random) -> Result<Loss, String> {
        power::lose(&self.data_dir, &self.journal_dir, random).map_err(|error| format!("power loss: {error}"))
    }
}

/// Whether there is a compiler.
fn compile(dir: &Path, library: &Path) -> Result<bool, String> {
    let source = dir.join("shim.c");
    std::fs::write(&source, SOURCE).map_err(|error| error.to_string())?;
    let arguments = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-o"];
    let compiled =
        Command::new("cc").args(arguments).arg(library).arg(&source).args(["-ldl", "-lpthread"]).output();
    match compiled {
        Ok(output) if output.status.success() => Ok(true),
        Ok(output) => Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("cc: {error}")),
    }
}
