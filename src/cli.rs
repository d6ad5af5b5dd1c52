//! The command line: one file a subcommand.

mod doctor;
mod log;
mod output;
mod progress;
mod repl;
mod report;
#[cfg(feature = "kafka")]
mod run;
mod sql;
mod training;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use datafusion::error::{DataFusionError, Result};

use aefusion_udfs::message;
use crate::session::{Session, SessionOptions};
use aefusion_train::Watch;

/// Exit code of a query that was interrupted by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Autoencoders in SQL.
#[derive(Debug, Parser)]
#[command(name = "aefusion", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run SQL: a shell, or the statements that are given
    Sql(sql::SqlArgs),
    /// Run the pipelines of a file over Kafka topics, until they are told to stop
    #[cfg(feature = "kafka")]
    Run(run::RunArgs),
    /// Write a page about a model: how it learnt, and what it makes of some rows
    Report(report::ReportArgs),
    /// Tell which ONNX Runtime, devices, model store and settings are in use
    Doctor(doctor::DoctorArgs),
}

/// What all subcommands that open a session take.
#[derive(Debug, Args)]
struct SessionArgs {
    /// Model store: a directory or a URL (s3://, gs://, az://, https://, memory:///)
    #[arg(long, value_name = "DIR|URL", env = "AEFUSION_MODELS", default_value_os_t = aefusion_udfs::model::store::default_location())]
    models: PathBuf,

    /// Memory that sorts, joins and aggregates may use before they spill to disk, for example 256MB
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,

    /// Read local Parquet files, and do not map them into memory: slower; a file that another program cuts short
    /// meanwhile is an error, and not the end of this program
    #[arg(long, env = "AEFUSION_READ_FILES", value_parser = clap::builder::FalseyValueParser::new())]
    read_files: bool,
}

impl SessionArgs {
    fn open(&self, watch: Arc<dyn Watch>) -> Result<Session> {
        let memory_limit = self.memory_limit.map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX));
        Session::open(&SessionOptions {
            models: self.models.to_string_lossy().into_owned(),
            memory_limit,
            map_files: !self.read_files,
            watch,
        })
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    Interrupted,
}

impl Cli {
    /// Runs the command and tells the exit code: 0, 1 after an error, 130 after Ctrl-C.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Sql(args) => logged("error", || args.run()),
            #[cfg(feature = "kafka")]
            Command::Run(args) => args.run(),
            Command::Report(args) => logged("error", || args.run()),
            Command::Doctor(args) => logged("error", || args.run()),
        };
        match outcome {
            Ok(Outcome::Done) => ExitCode::SUCCESS,
            Ok(Outcome::Failed) => ExitCode::FAILURE,
            Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
            // `aefusion … | head` is not an error
            Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
            Err(e) => {
                report(&e);
                ExitCode::FAILURE
            }
        }
    }
}

/// Runs with a log on standard error, of what `RUST_LOG` asks for.
fn logged(default: &str, run: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    log::Format::Text.start(default, log::Stderr::default());
    run()
}

fn is_broken_pipe(error: &DataFusionError) -> bool {
    let is_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    match error.find_root() {
        DataFusionError::IoError(e) => is_pipe(e),
        DataFusionError::ArrowError(e, _) => {
            matches!(e.as_ref(), datafusion::arrow::error::ArrowError::IoError(_, e) if is_pipe(e))
        }
        _ => false,
    }
}

/// Prints an error to standard error; there is nothing to do if that fails too.
fn report(error: &DataFusionError) {
    drop(writeln!(io::stderr(), "{}", message(error)));
}
