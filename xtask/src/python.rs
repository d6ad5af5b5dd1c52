//! Virtual environments of Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{checked, root};

/// The Python of the virtual environment `target/{name}/venv`, with the packages of a requirements file.
///
/// The environment is made once, and again when the file has changed.
///
/// # Errors
/// If there is no Python, or pip cannot install a package.
pub fn environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let folder = root().join("target").join(name).join("venv");
    let (python, stamp) = (folder.join("bin").join("python"), folder.join("requirements.txt"));
    let wanted = std::fs::read_to_string(requirements)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    checked(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    checked(Command::new(&python).args(pip).arg(requirements))?;
    std::fs::write(&stamp, wanted)?;
    Ok(python)
}
