//! Code that the tasks of this repository share with its tests.

pub mod kafka;
pub mod python;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Removes a folder, if it exists.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("could not remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Sends SIGTERM to a process.
///
/// # Errors
/// If the process has ended and was waited for.
pub fn terminate(process: &Child) -> Result<()> {
    let id = i32::try_from(process.id())?;
    kill(Pid::from_raw(id), Signal::SIGTERM).with_context(|| format!("could not send SIGTERM to process {id}"))
}

fn checked(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("could not start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output)
}
