//! `aefusion run`: the pipelines of a file.

mod http;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aefusion_stream::{Pipelines, RunOptions, Stats, Stop, check_name};
use aefusion_train::Unwatched;
use clap::Args;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log::{Format, Stderr};
use super::{Outcome, SessionArgs};
use crate::session::Session;
use http::Server;

/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "warn,aefusion=info";

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The file: statements that make tables, models and settings, and an INSERT INTO … SELECT … for each pipeline
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    session: SessionArgs,

    /// Serve a page, metrics (/metrics) and health (/healthz, /readyz) at this address, for example 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,

    /// Which instance of the pipelines this is; several share the partitions of a topic. A second one of the same name
    /// takes the place of the first
    #[arg(long, value_name = "NAME", default_value = "main", env = "AEFUSION_INSTANCE")]
    instance: String,

    /// End when the topics are read up to their ends, and everything is committed
    #[arg(long)]
    until_end: bool,

    /// How the log looks
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,

    /// Log errors only, and draw no line about what is going on
    #[arg(short, long)]
    quiet: bool,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let status = match io::stderr().is_terminal() && !self.quiet && self.log == Format::Text {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        // a template without placeholders that could be wrong
        status.set_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.log.start(if self.quiet { "error" } else { LOGGED }, Stderr(status.clone()));
        check_name("--instance", &self.instance)?;
        let script = std::fs::read_to_string(&self.file)
            .map_err(|e| DataFusionError::IoError(e).context(format!("could not read {}", self.file.display())))?;
        let session = self.session.open(Arc::new(Unwatched))?;
        let runtime = tokio::runtime::Runtime::new()?;
        let ended = runtime.block_on(self.pipelines(&session, &script, &status));
        status.finish_and_clear();
        match ended {
            Ok(()) => Ok(Outcome::Done),
            // one that reads the log reads the end in it, too
            Err(error) if self.log == Format::Json => {
                tracing::error!("{}", aefusion_udfs::message(&error));
                Ok(Outcome::Failed)
            }
            Err(error) => Err(error),
        }
    }

    async fn pipelines(&self, session: &Session, script: &str, status: &ProgressBar) -> Result<()> {
        let pipelines = Pipelines::plan(session.context(), script, &stem(&self.file)).await?;
        let server = match self.http {
            Some(address) => Some(Server::bind(address, &pipelines).await?),
            None => None,
        };
        let _served = server.map(|server| SpawnedTask::spawn(server.serve()));
        let _signalled = SpawnedTask::spawn(on_signal(pipelines.stop()));
        let _shown = SpawnedTask::spawn(show(pipelines.stats().to_vec(), status.clone()));
        pipelines.run(&RunOptions { instance: self.instance.clone(), until_end: self.until_end }).await
    }
}

/// The name of a file without folder and extension, as far as a pipeline's name may hold it.
fn stem(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Asks for the end at the first signal; the second one ends the program at once, which loses nothing either.
async fn on_signal(stop: Stop) {
    for is_first in [true, false] {
        if terminated().await.is_err() {
            return;
        }
        if !is_first {
            std::process::exit(130);
        }
        tracing::info!("stopping: what was read is finished and committed");
        stop.ask();
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

/// Shows the statistics every second.
async fn show(all: Vec<Arc<Stats>>, status: ProgressBar) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let lines: Vec<String> = all.iter().map(|stats| stats.line()).collect();
        status.set_message(lines.join("  ·  "));
    }
}
