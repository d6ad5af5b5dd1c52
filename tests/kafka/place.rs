//! Programs that run pipelines, and what they need.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::program::send;

static LOGS: AtomicUsize = AtomicUsize::new(0);

/// A folder with what a pipeline needs: its file, its models, its output.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    /// Of the program.
    pub(crate) environment: BTreeMap<&'static str, String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), environment: BTreeMap::new() };
        std::fs::create_dir(place.path("out")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aefusion"));
        command.env("AEFUSION_MODELS", self.path("models")).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_remove("RUST_LOG").envs(&self.environment);
        command
    }

    /// Runs statements, and gives what they print as CSV without header, or the error.
    pub(crate) fn sql(&self, sql: &str) -> Result<String, String> {
        let output = self.program().args(["sql", "--format", "csv", "-c", sql]).output().unwrap();
        match output.status.success() {
            true => {
                let text = String::from_utf8(output.stdout).unwrap();
                Ok(text.lines().skip(1).collect::<Vec<_>>().join("\n"))
            }
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The ids in the files of a folder.
    pub(crate) fn ids(&self, location: &str) -> Vec<usize> {
        let read = self.sql(&format!("SELECT id FROM '{location}'")).unwrap();
        read.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Starts a pipeline.
    pub(crate) fn run(&self, sql: &str, arguments: &[&str]) -> Pipeline {
        self.run_as("pipeline", sql, arguments)
    }

    pub(crate) fn run_as(&self, name: &str, sql: &str, arguments: &[&str]) -> Pipeline {
        let file = self.path(&format!("{name}.sql"));
        std::fs::write(&file, sql).unwrap();
        let log = self.path(&format!("{name}-{}.log", LOGS.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.program();
        command.arg("run").arg(file).args(arguments).stderr(std::fs::File::create(&log).unwrap());
        Pipeline { process: command.spawn().unwrap(), log }
    }

    /// Runs a pipeline up to the end of its topic.
    pub(crate) fn run_to_end(&self, sql: &str) -> String {
        let (status, log) = self.run(sql, &["--until-end"]).wait();
        assert!(status.success(), "{log}");
        log
    }
}

/// A running pipeline, which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Pipeline {
    process: Child,
    log: PathBuf,
}

impl Pipeline {
    /// Without warning.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(&self.process, signal);
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Where its page is.
    pub(crate) fn address(&self) -> String {
        self.says("metrics at http://");
        self.log().split("page at http://").nth(1).unwrap().split('/').next().unwrap().to_owned()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and gives its log.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return (status, self.log());
            }
            assert!(start.elapsed() < Duration::from_secs(300), "the pipeline does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its log says something.
    pub(crate) fn says(&self, text: &str) {
        until(&format!("the log says {text:?}: {}", self.log.display()), || self.log().contains(text));
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(90), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An HTTP answer: its status and its body.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The names of the files in a folder.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
