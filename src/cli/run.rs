//! `aefusion run`: runs the pipelines of a file.

mod http;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aefusion_stream::{Pipelines, RunOptions, Stats, StopHandle};
use aefusion_train::Unwatched;
use clap::Args;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::interrupt::end_process;
use super::log::{Format, Stderr};
use super::{Outcome, SessionArgs};
use crate::session::Session;
use http::Server;

/// Default of `RUST_LOG`.
const LOGGED: &str = "warn,aefusion=info";

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// File with SQL statements for tables, models and settings, and an INSERT INTO … SELECT … for each pipeline
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    session: SessionArgs,

    /// Serve a status page, metrics (/metrics) and health (/healthz, /readyz) at this address, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// Name of this instance of the pipelines. Instances share the partitions of a topic; a new instance replaces a
    /// running one with the same name
    #[arg(long, value_name = "NAME", default_value = "main", env = "AEFUSION_INSTANCE")]
    instance: String,

    /// Exit when the topics are read to their ends and everything is committed
    #[arg(long)]
    until_end: bool,

    /// Format of the log
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,

    /// Log only errors, and do not show the status line
    #[arg(short, long)]
    quiet: bool,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let status = match io::stderr().is_terminal() && !self.quiet && self.log == Format::Text {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        // the template is valid, so the default is not used
        status.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.log.start(if self.quiet { "error" } else { LOGGED }, Stderr(status.clone()));
        let options = RunOptions { instance: self.instance.clone(), until_end: self.until_end };
        options.check()?;
        let script = std::fs::read_to_string(&self.file)
            .map_err(|e| DataFusionError::IoError(e).context(format!("could not read {}", self.file.display())))?;
        let session = self.session.open(Arc::new(Unwatched))?;
        let runtime = tokio::runtime::Runtime::new()?;
        let ended = runtime.block_on(self.pipelines(&session, &script, &options, &status));
        status.finish_and_clear();
        match ended {
            Ok(()) => Ok(Outcome::Done),
            // a program that reads the log gets the error there
            Err(error) if self.log == Format::Json => {
                tracing::error!("{}", aefusion_udfs::message(&error));
                Ok(Outcome::Failed)
            }
            Err(error) => Err(error),
        }
    }

    async fn pipelines(
        &self,
        session: &Session,
        script: &str,
        options: &RunOptions,
        status: &ProgressBar,
    ) -> Result<()> {
        let pipelines = Pipelines::plan(session.context(), script, &stem(&self.file)).await?;
        let server = match self.http {
            Some(address) => Some(Server::bind(address, &pipelines).await?),
            None => None,
        };
        let _served = server.map(|server| SpawnedTask::spawn(server.serve()));
        let _signalled = SpawnedTask::spawn(on_signal(pipelines.stop_handle()));
        let _shown = SpawnedTask::spawn(show(pipelines.stats().to_vec(), status.clone()));
        pipelines.run(options).await
    }
}

/// The name of a file without folder and extension. Characters that a pipeline's name cannot have become `_`.
fn stem(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Stops the pipelines at the first signal. The second signal ends the process at once; no committed work is lost.
async fn on_signal(stop: StopHandle) {
    for is_first in [true, false] {
        if terminated().await.is_err() {
            return;
        }
        if !is_first {
            end_process();
        }
        tracing::info!("stopping: the records that were read are being processed and committed");
        stop.stop();
    }
}

#[cfg(unix)]
async fn terminated() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn terminated() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Updates the status line every second.
async fn show(all: Vec<Arc<Stats>>, status: ProgressBar) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let lines: Vec<String> = all.iter().map(|stats| stats.line()).collect();
        status.set_message(lines.join("  ·  "));
    }
}
