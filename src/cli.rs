//! The command line: one file per subcommand.

mod doctor;
mod interrupt;
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

use crate::session::{Session, SessionOptions};
use aefusion_train::Watch;
use aefusion_udfs::message;
use aefusion_udfs::model::child::{self, TrialProcess};

pub use training::summary_lines;

/// Name of the subcommand with which the program starts itself.
const TRY_MODEL: &str = "try-model";

/// Exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Train and run autoencoders with SQL
#[derive(Debug, Parser)]
#[command(name = "aefusion", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run SQL statements, or start a shell
    Sql(sql::SqlArgs),
    /// Run the pipelines of a file over Kafka topics until you stop them
    #[cfg(feature = "kafka")]
    Run(run::RunArgs),
    /// Write an HTML page about a model: its training, its errors and its worst rows
    Report(report::ReportArgs),
    /// Check the setup: ONNX Runtime, devices, model store and settings
    Doctor(doctor::DoctorArgs),
    /// Try a model file that comes from standard input
    #[command(name = TRY_MODEL, hide = true)]
    TryModel,
}

/// Options of every subcommand that opens a session.
#[derive(Debug, Args)]
struct SessionArgs {
    /// Model store: a directory or URL (s3://, gs://, az://, https://, memory:///)
    #[arg(long, value_name = "DIR|URL", env = "AEFUSION_MODELS", default_value_os_t = aefusion_udfs::store::default_location())]
    models: PathBuf,

    /// Memory for sorts, joins and aggregates before they spill to disk, for example 256MB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,

    /// Read local Parquet files instead of mapping them into memory. This is slower, but a file that another program
    /// truncates is an error, and does not end this program
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
            trials: TrialProcess::this_program([TRY_MODEL])?,
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
    /// Runs the command. Returns the exit code: 0, 1 after an error, 130 after Ctrl-C.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Sql(args) => logged("error", || args.run()),
            #[cfg(feature = "kafka")]
            Command::Run(args) => args.run(),
            Command::Report(args) => logged("error", || args.run()),
            Command::Doctor(args) => logged("error", || args.run()),
            Command::TryModel => child::serve().map(|()| Outcome::Done).map_err(DataFusionError::IoError),
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

/// Runs with a log on standard error. `RUST_LOG` sets its level.
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

/// Prints an error to standard error. Ignores an error of the printing itself.
fn report(error: &DataFusionError) {
    drop(writeln!(io::stderr(), "{}", message(error)));
}
