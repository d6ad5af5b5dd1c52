//! `aefusion sql`: runs SQL statements, or starts a shell.

use std::any::Any;
use std::io::{self, IsTerminal, Read, Write};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aefusion_udfs::sql::{Statement, execute, parse};
use clap::Args;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::execute_stream;
use futures::{FutureExt, StreamExt};
use tokio::runtime::Runtime;

use super::interrupt::Interrupts;
use super::output::{Format, Writer};
use super::progress::Progress;
use super::training::TrainingProgress;
use super::{Outcome, SessionArgs, report};
use crate::session::Session;

/// Default of `--max-rows`.
const MAX_ROWS: usize = 1000;

/// Time that interrupted work has to stop and to remove its temporary files before the process ends.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    session: SessionArgs,

    /// Run these statements and exit; can be repeated
    #[arg(short, long, value_name = "SQL")]
    command: Vec<String>,

    /// Run the statements of this file and exit; can be repeated. Files run before commands
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,

    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Maximum number of rows in a printed table; 0 prints all. Other formats always print all
    #[arg(long, value_name = "N", default_value_t = MAX_ROWS)]
    max_rows: usize,

    /// Do not print a progress bar, the number of rows or the time
    #[arg(short, long)]
    quiet: bool,

    /// Print the time of each statement to standard error, even if it is not a terminal
    #[arg(long)]
    timing: bool,
}

impl SqlArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let training = Arc::new(TrainingProgress::new(self.quiet));
        let session = self.session.open(Arc::clone(&training) as _)?;
        let runtime = Runtime::new()?;
        let is_interactive = self.command.is_empty() && self.file.is_empty() && io::stdin().is_terminal();
        let shell = Shell {
            session,
            training,
            interrupts: Interrupts::handle()?,
            is_interactive,
            format: self.format,
            max_rows: self.max_rows,
            quiet: self.quiet,
            timing: self.timing,
        };
        let outcome = self.statements(&shell, &runtime);
        drop(shell);
        // not a plain drop, which would wait for a training that does not stop
        runtime.shutdown_timeout(GRACE);
        outcome
    }

    fn statements(&self, shell: &Shell, runtime: &Runtime) -> Result<Outcome> {
        if shell.is_interactive {
            return super::repl::run(shell, runtime);
        }
        if self.command.is_empty() && self.file.is_empty() {
            let mut script = String::new();
            io::stdin().read_to_string(&mut script)?;
            return runtime.block_on(shell.script(&script));
        }
        for file in &self.file {
            let script = std::fs::read_to_string(file)
                .map_err(|e| DataFusionError::IoError(e).context(format!("could not read {}", file.display())))?;
            match runtime.block_on(shell.script(&script))? {
                Outcome::Done => {}
                ended => return Ok(ended),
            }
        }
        for command in &self.command {
            match runtime.block_on(shell.script(command))? {
                Outcome::Done => {}
                ended => return Ok(ended),
            }
        }
        Ok(Outcome::Done)
    }
}

/// The error of a statement that panicked. The shell goes on: the statement owned all that it changed.
fn panicked(panic: Box<dyn Any + Send>) -> Result<()> {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    internal_err!("the statement panicked: {}", text.unwrap_or("no message"))
}

/// Runs statements and prints their rows.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) session: Session,
    training: Arc<TrainingProgress>,
    interrupts: Arc<Interrupts>,
    /// Whether a person types the statements.
    is_interactive: bool,
    format: Format,
    max_rows: usize,
    quiet: bool,
    timing: bool,
}

impl Shell {
    /// Runs statements one after another, up to the first that fails.
    pub(super) async fn script(&self, sql: &str) -> Result<Outcome> {
        for statement in parse(self.session.context(), sql)? {
            let ended = self.interruptible(statement).await;
            let is_asked_to_stop = self.interrupts.end();
            let was_training = self.training.end();
            match ended {
                // Ctrl-C as a statement ends: the next one does not start
                Ok(Outcome::Done | Outcome::Interrupted) if is_asked_to_stop => {
                    let hint =
                        ": nothing is published; to publish the best epoch so far, train with on_interrupt = 'keep'";
                    drop(writeln!(io::stderr(), "interrupted{}", if was_training { hint } else { "" }));
                    return Ok(Outcome::Interrupted);
                }
                Ok(Outcome::Done) => {}
                Ok(ended) => return Ok(ended),
                Err(e) if super::is_broken_pipe(&e) => return Err(e),
                Err(e) => {
                    report(&e);
                    return Ok(Outcome::Failed);
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Runs a statement until it ends or is interrupted.
    ///
    /// An interrupt drops the statement, which stops everything that the statement has started. With
    /// `on_interrupt = 'keep'`, the first interrupt ends the training with its best epoch instead. The second one drops it,
    /// or ends the program if that was given the statements.
    async fn interruptible(&self, statement: Statement) -> Result<Outcome> {
        self.interrupts.begin();
        let mut running = std::pin::pin!(AssertUnwindSafe(self.statement(statement)).catch_unwind());
        loop {
            tokio::select! {
                biased;
                () = self.interrupts.asked() => {
                    if !self.training.interrupt() {
                        return Ok(Outcome::Interrupted);
                    }
                    self.interrupts.go_on(self.is_interactive);
                }
                ended = &mut running => return ended.unwrap_or_else(panicked).map(|()| Outcome::Done),
            }
        }
    }

    async fn statement(&self, statement: Statement) -> Result<()> {
        let start = Instant::now();
        let context = self.session.context();
        let rows = execute(context, statement).await?;
        let task = Arc::new(rows.task_ctx());
        let plan = rows.create_physical_plan().await?;
        let schema = plan.schema();
        let progress = Progress::start(&plan, !self.quiet && io::stderr().is_terminal());
        let stream = execute_stream(plan, task)?;
        let printed = self.print(schema, stream, &progress).await;
        drop(progress);
        let rows = printed?;
        if self.timing || !self.quiet && io::stderr().is_terminal() {
            let plural = if rows == 1 { "" } else { "s" };
            writeln!(io::stderr(), "{rows} row{plural}, {:.3} s", start.elapsed().as_secs_f64())?;
        }
        Ok(())
    }

    async fn print(
        &self,
        schema: SchemaRef,
        mut rows: SendableRecordBatchStream,
        progress: &Progress,
    ) -> Result<usize> {
        let mut writer = Writer::new(self.format, schema, self.max_rows);
        while let Some(batch) = progress.watch(rows.next()).await {
            let batch = batch?;
            progress.suspend(|| writer.write(&batch))?;
        }
        progress.suspend(|| writer.finish())
    }
}
