//! Processes that answer lines with lines, and are killed when they take too long.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The process ended, by a signal or with a status.
    Died(String),
    /// It took too long and was killed.
    Hung,
}

/// A process that is started again after each failure.
#[derive(Debug)]
pub struct Watched {
    program: String,
    arguments: Vec<String>,
    limit: Duration,
    memory_kib: u64,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Watched {
    /// A process that is not started yet. `limit` is the time for an answer, `memory_kib` its largest address space.
    pub fn new(program: impl Into<String>, arguments: Vec<String>, limit: Duration, memory_kib: u64) -> Self {
        Self { program: program.into(), arguments, limit, memory_kib, running: None }
    }

    /// The answer to a line: the next line that is JSON.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn ask(&mut self, line: &str) -> Result<std::result::Result<String, Failure>> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let sent = writeln!(running.stdin, "{line}").and_then(|()| running.stdin.flush());
        let deadline = Instant::now() + self.limit;
        while sent.is_ok() {
            match running.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) if answer.starts_with('{') => {
                    self.running = Some(running);
                    return Ok(Ok(answer));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    running.child.kill()?;
                    running.child.wait()?;
                    return Ok(Err(Failure::Hung));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(Err(Failure::Died(ending(running.child.wait()?))))
    }

    fn start(&self) -> Result<Running> {
        let mut command = limited(&self.program, &self.arguments, self.memory_kib);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("could not start {}", self.program))?;
        let stdin = child.stdin.take().context("the process has no standard input")?;
        let stdout = child.stdout.take().context("the process has no standard output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Running { child, stdin, lines })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // it may have ended
            drop(running.child.kill());
            drop(running.child.wait());
        }
    }
}

/// A command with a limit for its address space.
fn limited(program: &str, arguments: &[String], memory_kib: u64) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {memory_kib}; ulimit -c 0; exec \"$0\" \"$@\""), program]).args(arguments);
    command
}

/// The end of a process, in words.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("signal {signal}"),
        (code, None) => format!("status {}", code.unwrap_or(-1)),
    }
}

/// Runs a command to its end. It fails if it ends by a signal, with a status of 128 or more, or too late. A panic of one
/// of its threads is a failure, too.
///
/// # Errors
/// If the command cannot be started.
pub fn survives(program: &str, arguments: &[String], limit: Duration, memory_kib: u64) -> Result<Option<Failure>> {
    let mut command = limited(program, arguments, memory_kib);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {program}"))?;
    let stderr = child.stderr.take().context("the process has no standard error")?;
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stderr).split(b'\n').map_while(std::io::Result::ok);
        lines.map(|line| String::from_utf8_lossy(&line).into_owned()).collect::<Vec<_>>().join("\n")
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(Some(Failure::Hung));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let printed = reader.join().unwrap_or_default();
    let panicked = ["panicked at", "overflowed its stack"].into_iter().find(|text| printed.contains(text));
    Ok(match (status.code(), panicked) {
        (Some(code), None) if code < 128 => None,
        (Some(code), Some(text)) if code < 128 => Some(Failure::Died(format!("status {code}, {text}"))),
        _ => Some(Failure::Died(ending(status))),
    })
}
