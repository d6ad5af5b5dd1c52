//! Tries a file in another process. A file can make ONNX Runtime crash, or take all memory; then only that process ends.
//!
//! ```text
//! this process ── file, options ──▶ child: describes, loads and runs the file, within limits
//!              ◀── file with its contract, or the reason of a refusal ──
//! ```

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::plan_err;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::extremes;
use crate::metadata::Metadata;
use crate::model::Model;
use crate::name::ModelName;
use crate::numbers::to_usize;
use crate::onnx::Limits;
use crate::registration::{Registration, Source};
use crate::runtime::panic_text;

/// Memory of the child beside the file, bytes of address space.
const CHILD_BYTES: u64 = 7 << 29;
/// Memory of the child for each byte of the file: the file, its graph, and its weights in several sessions.
const CHILD_BYTES_EACH: u64 = 8;
/// Stack of the thread that tries the file. Queries run files on threads with larger stacks.
const CHILD_STACK: usize = 1 << 20;
/// Largest part of the child's standard error that is kept, bytes.
const KEPT_ERRORS: u64 = 64 << 10;

/// The process in which files are tried before they are registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TrialProcess {
    /// This process. A file that makes ONNX Runtime crash then ends it.
    #[default]
    This,
    /// A program that calls [`serve`] when it starts with these arguments.
    Child {
        /// Path of the program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

impl TrialProcess {
    /// The running program, started again with these arguments.
    ///
    /// # Errors
    /// An I/O error if the system does not give the path of the program.
    pub fn this_program(arguments: impl IntoIterator<Item = impl Into<String>>) -> io::Result<Self> {
        // on Linux, this path stays valid if an upgrade replaces the file of the program
        let program = match cfg!(target_os = "linux") {
            true => PathBuf::from("/proc/self/exe"),
            false => std::env::current_exe()?,
        };
        Ok(Self::Child { program, arguments: arguments.into_iter().map(Into::into).collect() })
    }

    /// The model of a file, after a run of everything that functions run.
    ///
    /// # Errors
    /// A planning error if the file is refused, or if it ends the child.
    pub fn register(&self, registration: Registration) -> Result<Model> {
        let Self::Child { program, arguments } = self else { return registration.run() };
        let Registration { name, version, limits, .. } = registration.clone();
        let mut command = Command::new(program);
        command.args(arguments);
        let described = try_in(command, registration)?;
        Model::load(&name, version, described, &limits)
    }
}

/// What the child is sent before the files.
#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    version: u64,
    options: Metadata,
    limits: Limits,
    is_pair: bool,
}

/// What the child answers. The file with its contract follows [`Answer::Accepted`].
#[derive(Serialize, Deserialize)]
enum Answer {
    Accepted,
    Planning(String),
    Execution(String),
    Internal(String),
    Other(String),
}

impl Answer {
    fn of(error: &DataFusionError) -> Self {
        let mut operations = Vec::new();
        let mut root = error;
        loop {
            match root {
                DataFusionError::Context(operation, inner) => {
                    operations.push(operation.clone());
                    root = inner;
                }
                DataFusionError::Shared(inner) => root = inner,
                _ => break,
            }
        }
        let of = |kind: fn(String) -> Self, text: &str| {
            kind(operations.iter().map(String::as_str).chain([text]).collect::<Vec<_>>().join(": "))
        };
        match root {
            DataFusionError::Plan(text) => of(Self::Planning, text),
            DataFusionError::Execution(text) => of(Self::Execution, text),
            DataFusionError::Internal(text) => of(Self::Internal, text),
            DataFusionError::External(error) => of(Self::Other, &error.to_string()),
            other => of(Self::Other, &other.strip_backtrace()),
        }
    }

    fn into_result(self) -> Result<()> {
        match self {
            Self::Accepted => Ok(()),
            Self::Planning(text) => Err(DataFusionError::Plan(text)),
            Self::Execution(text) => Err(DataFusionError::Execution(text)),
            Self::Internal(text) => Err(DataFusionError::Internal(text)),
            Self::Other(text) => Err(DataFusionError::External(text.into())),
        }
    }
}

/// Tries one file, which comes from standard input, and writes the answer to standard output. A program calls this for
/// [`TrialProcess::Child`], and then ends.
///
/// # Errors
/// An I/O error if the parent has gone.
pub fn serve() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let head: Head = receive_json(&mut input)?;
    let first = receive(&mut input)?;
    let source = match head.is_pair {
        true => Source::Pair { encoder: first, decoder: receive(&mut input)? },
        false => Source::File(first),
    };
    let name = ModelName::new(&head.name).map_err(io::Error::other)?;
    limit_memory(&source)?;
    let registration = Registration { name, version: head.version, source, options: head.options, limits: head.limits };
    let limit = registration.limits.registration;
    let (done, wait) = mpsc::channel();
    let work = move || {
        let registered = registration.run().map(|model| {
            extremes::run(&model);
            model.file().bytes()
        });
        drop(done.send(registered));
    };
    let thread = thread::Builder::new().stack_size(CHILD_STACK).spawn(work)?;
    // the parent ends this process after the same time, unless it has gone itself
    let result = match wait.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let text = thread.join().err().map(panic_text).unwrap_or_default();
            Err(DataFusionError::Internal(format!("the test run of the file failed: {text}")))
        }
    };
    let mut output = io::stdout().lock();
    match result {
        Ok(file) => {
            send_json(&mut output, &Answer::Accepted)?;
            send(&mut output, &file)
        }
        Err(error) => send_json(&mut output, &Answer::of(&error)),
    }?;
    output.flush()
}

/// Limits the memory of this process.
#[cfg(unix)]
fn limit_memory(source: &Source) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let size = match source {
        Source::File(file) => file.len(),
        Source::Pair { encoder, decoder } => encoder.len() + decoder.len(),
    };
    let wanted = CHILD_BYTES.saturating_add(CHILD_BYTES_EACH.saturating_mul(size as u64));
    let (_, most) = getrlimit(Resource::RLIMIT_AS)?;
    setrlimit(Resource::RLIMIT_AS, wanted.min(most), most)?;
    // a crash here is expected; no file of its memory is of use
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Into::into)
}

#[cfg(not(unix))]
fn limit_memory(_: &Source) -> io::Result<()> {
    Ok(())
}

/// The file with its contract.
fn try_in(mut command: Command, registration: Registration) -> Result<Bytes> {
    let limit = registration.limits.registration;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| {
        let program = command.get_program().display();
        DataFusionError::IoError(e).context(format!("could not start {program} to try the file"))
    })?;
    let (Some(mut input), Some(mut output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return plan_err!("could not reach the process that tries the file");
    };
    // each pipe has its thread: neither process waits for the other
    let sender = thread::spawn(move || send_all(&mut input, registration));
    let log = thread::spawn(move || {
        let mut text = Vec::new();
        let mut errors = errors;
        drop(errors.by_ref().take(KEPT_ERRORS).read_to_end(&mut text));
        drop(io::copy(&mut errors, &mut io::sink()));
        String::from_utf8_lossy(&text).into_owned()
    });
    let (answered, answer) = mpsc::channel();
    let receiver = thread::spawn(move || drop(answered.send(receive_answer(&mut output))));
    let answer = answer.recv_timeout(limit);
    // the answer is complete; a child that does not end must not stay
    drop(child.kill());
    let status = child.wait();
    drop((sender.join(), receiver.join()));
    let log = log.join().unwrap_or_default();
    if !log.is_empty() {
        log::debug!("the process that tried the file wrote: {log}");
    }
    match (answer, status) {
        (Ok(Ok(answer)), _) => answer,
        (Err(mpsc::RecvTimeoutError::Timeout), _) => plan_err!(
            "its test runs took longer than {} s and were stopped; if the model is that slow, SET \
             ae.registration_seconds to more",
            limit.as_secs_f64()
        ),
        (_, Ok(status)) => plan_err!("{}", ended(status, &log)),
        (_, Err(error)) => Err(DataFusionError::IoError(error)),
    }
}

/// Why a child ended without an answer.
fn ended(status: ExitStatus, log: &str) -> String {
    let is_out_of_memory = log.contains("memory allocation of") || log.contains("bad_alloc");
    let how = match (is_out_of_memory, signal(status)) {
        (true, _) => "it needed more memory than a test run may take".to_owned(),
        (false, Some(signal)) => format!("ONNX Runtime crashed ({signal})"),
        (false, None) => format!("the process ended ({status})"),
    };
    format!(
        "the file ended the process that tried it: {how}; the model is not registered; export it again, or check it \
         with python -c \"import onnx; onnx.checker.check_model('model.onnx', full_check=True)\""
    )
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<String> {
    use std::os::unix::process::ExitStatusExt;
    let signal = status.signal()?;
    Some(nix::sys::signal::Signal::try_from(signal).map_or_else(|_| signal.to_string(), |name| name.to_string()))
}

#[cfg(not(unix))]
fn signal(_: ExitStatus) -> Option<String> {
    None
}

fn send_all(to: &mut impl Write, registration: Registration) -> io::Result<()> {
    let Registration { name, version, source, options, limits } = registration;
    let (first, second) = match source {
        Source::File(file) => (file, None),
        Source::Pair { encoder, decoder } => (encoder, Some(decoder)),
    };
    let head = Head { name: name.as_str().to_owned(), version, options, limits, is_pair: second.is_some() };
    send_json(to, &head)?;
    send(to, &first)?;
    second.map_or(Ok(()), |second| send(to, &second))?;
    to.flush()
}

fn receive_answer(from: &mut impl Read) -> io::Result<Result<Bytes>> {
    match receive_json::<Answer>(from)?.into_result() {
        Ok(()) => receive(from).map(Ok),
        Err(refused) => Ok(Err(refused)),
    }
}

fn send_json(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    send(to, &serde_json::to_vec(value)?)
}

fn receive_json<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    serde_json::from_slice(&receive(from)?).map_err(io::Error::other)
}

/// Writes the length, 8 bytes, and then the bytes.
fn send(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

fn receive(from: &mut impl Read) -> io::Result<Bytes> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut bytes = Vec::new();
    // the memory grows with what arrives, whatever the length says
    let read = from.take(length).read_to_end(&mut bytes)?;
    match read == to_usize(length) {
        true => Ok(bytes.into()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
