//! The program as a process: what it prints, line by line, and signals to it.

#![allow(dead_code, reason = "each test executable uses a part")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends a signal to a process that was started here.
pub(crate) fn send(process: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal).unwrap();
}

/// That a program of the system is installed.
pub(crate) fn is_installed(program: &str) -> Result<(), String> {
    let started = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    started.map(drop).map_err(|e| format!("needs {program}: {e}"))
}

/// A program that runs. The lines of one of its outputs are read while it runs; it is killed when this is dropped.
pub(crate) struct Running {
    process: Child,
    lines: Box<dyn BufRead>,
    printed: String,
    other: Option<JoinHandle<String>>,
}

/// How a program ended, and all that it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// What it printed to the output that was read line by line.
    pub(crate) watched: String,
    /// What it printed to the other one.
    pub(crate) other: String,
}

impl Running {
    /// Starts a program, whose standard output is read line by line.
    pub(crate) fn watch_out(command: &mut Command) -> Self {
        let mut process = start(command);
        let (out, err) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        Self { process, lines: Box::new(BufReader::new(out)), printed: String::new(), other: Some(drain(err)) }
    }

    /// Starts a program, whose standard error is read line by line.
    pub(crate) fn watch_err(command: &mut Command) -> Self {
        let mut process = start(command);
        let (out, err) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        Self { process, lines: Box::new(BufReader::new(err)), printed: String::new(), other: Some(drain(out)) }
    }

    /// Waits until it has printed a line with this text.
    pub(crate) fn prints(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap();
            self.printed += &line;
            assert!(read > 0, "the program ended before it printed {text:?}; it printed\n{}", self.printed);
            if line.contains(text) {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(&self.process, signal);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Reads what else it prints, and waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        self.lines.read_to_string(&mut self.printed).unwrap();
        let code = self.process.wait().unwrap().code();
        let other = self.other.take().unwrap().join().unwrap();
        Ended { code, watched: std::mem::take(&mut self.printed), other }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads an output to its end, beside whatever is done meanwhile.
fn drain(mut output: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    })
}
