//! A folder that looks like the root of a clone: what commands write there is gone with the folder.

#![allow(dead_code, reason = "each test executable uses a part")]

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The folder in it with the program.
pub(crate) const PROGRAMS: &str = ".programs";

/// A folder with links to what is in the root of the repository, but to its store of models.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in root.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        if name != "models" && name != ".git" {
            link(&root.join(&name), &folder.path().join(name));
        }
    }
    let programs = folder.path().join(PROGRAMS);
    std::fs::create_dir(&programs).unwrap();
    link(Path::new(env!("CARGO_BIN_EXE_aefusion")), &programs.join("aefusion"));
    folder
}

/// A command in such a folder that finds the program as `aefusion`.
pub(crate) fn command(folder: &TempDir, program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.current_dir(folder.path());
    command.env("PATH", format!("{}:{path}", folder.path().join(PROGRAMS).display()));
    command.env_remove("AEFUSION_MODELS").env_remove("AEFUSION_READ_FILES").env_remove("RUST_LOG");
    command
}

fn link(from: &Path, to: &Path) {
    std::os::unix::fs::symlink(from, to).unwrap();
}
