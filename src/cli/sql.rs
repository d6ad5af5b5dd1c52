//! `aefusion sql`: a shell, or the statements that are given.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use aefusion_udfs::sql::{Statement, execute, parse};
use clap::Args;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::execute_stream;
use futures::StreamExt;

use super::output::{Format, Writer};
use super::progress::Progress;
use super::training::TrainingProgress;
use super::{Outcome, SessionArgs, report};
use crate::session::Session;

/// Rows that a table on a terminal shows unless it is told otherwise.
const MAX_ROWS: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    session: SessionArgs,

    /// Run these statements and end; may be given several times
    #[arg(short, long, value_name = "SQL")]
    command: Vec<String>,

    /// Run the statements of this file and end; may be given several times, files run before commands
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,

    /// How rows are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// Rows of a table that are printed; 0 is all. Other formats always print all
    #[arg(long, value_name = "N", default_value_t = MAX_ROWS)]
    max_rows: usize,

    /// Print neither a progress bar nor the number of rows and the time
    #[arg(short, long)]
    quiet: bool,

    /// Print the time that each statement took to standard error, on a terminal or not
    #[arg(long)]
    timing: bool,
}

impl SqlArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let training = Arc::new(TrainingProgress::new(self.quiet));
        let session = self.session.open(Arc::clone(&training) as _)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let shell = Shell {
            session,
            training,
            format: self.format,
            max_rows: self.max_rows,
            quiet: self.quiet,
            timing: self.timing,
        };
        if self.command.is_empty() && self.file.is_empty() {
            if io::stdin().is_terminal() {
                return super::repl::run(&shell, &runtime);
            }
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

/// Runs statements and prints their rows.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) session: Session,
    training: Arc<TrainingProgress>,
    format: Format,
    max_rows: usize,
    quiet: bool,
    timing: bool,
}

impl Shell {
    /// Runs statements one after the other, up to the first that fails.
    pub(super) async fn script(&self, sql: &str) -> Result<Outcome> {
        for statement in parse(self.session.context(), sql)? {
            let ended = self.interruptible(statement).await;
            let gave_up_training = self.training.end();
            match ended {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Interrupted) => {
                    let of_training =
                        ": nothing is published; with on_interrupt = 'keep' the best epoch so far would be";
                    let more = if gave_up_training { of_training } else { "" };
                    drop(writeln!(io::stderr(), "interrupted{more}"));
                    return Ok(Outcome::Interrupted);
                }
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

    /// Runs a statement, which is dropped by an interrupt: that stops everything that it had started. A training that is
    /// to keep its best epoch ends with it instead, and is dropped by the next one.
    async fn interruptible(&self, statement: Statement) -> Result<Outcome> {
        let mut running = std::pin::pin!(self.statement(statement));
        loop {
            tokio::select! {
                biased;
                signal = tokio::signal::ctrl_c() => {
                    signal.map_err(DataFusionError::IoError)?;
                    if !self.training.interrupt() {
                        return Ok(Outcome::Interrupted);
                    }
                }
                ended = &mut running => return ended.map(|()| Outcome::Done),
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
