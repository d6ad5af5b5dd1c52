//! Blocks of shell commands: the program runs in a folder that looks like the root of the repository.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::commands::{self, Kind};
use super::session::{Outcome, PageSession};
use crate::clone;

/// A folder that looks like the root of the repository, with its own store of models.
pub(super) struct Shell {
    folder: TempDir,
}

impl Shell {
    pub(super) fn new() -> Self {
        Self { folder: clone::folder() }
    }

    /// Runs the commands of a block that can run here, and checks the names in the others.
    pub(super) async fn run(&self, block: &str, session: &PageSession) -> Result<Outcome, String> {
        let mut script = String::new();
        for command in commands::split(block)? {
            match commands::kind(&command)? {
                Kind::Runs(command) => script += &format!("{command}\n"),
                Kind::Checked => {}
            }
        }
        if script.is_empty() {
            return Ok(Outcome::NotRun);
        }
        self.take_models(&script, session).await?;
        let output = self.command("sh").args(["-e", "-c", &format!("exec 2>&1\n{script}")]).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(if output.status.success() { Outcome::Printed(vec![printed]) } else { Outcome::Failed(printed) })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = clone::command(&self.folder, program);
        command.stdin(Stdio::null());
        command
    }

    /// Gives the commands the models of the page's session that they name.
    async fn take_models(&self, script: &str, session: &PageSession) -> Result<(), String> {
        let words: Vec<&str> = script.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
        for name in session.models().await {
            if !words.contains(&name.as_str()) || self.folder.path().join("models").join(&name).exists() {
                continue;
            }
            let file = self.folder.path().join(clone::PROGRAMS).join(format!("{name}.onnx"));
            drop(std::fs::remove_file(&file));
            let export = session.run(&format!("EXPORT MODEL {name} TO '{}'", file.display())).await;
            let create = format!("CREATE MODEL {name} OPTIONS (model_path = '{}')", file.display());
            let output = self.command("aefusion").args(["sql", "--quiet", "-c", &create]).output().unwrap();
            if !output.status.success() {
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(format!("the model {name} of the page: {export:?} {error}"));
            }
        }
        Ok(())
    }
}
