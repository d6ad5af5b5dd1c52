//! The log, on standard error.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use indicatif::ProgressBar;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Text for people
    Text,
    /// One JSON object per line, for programs
    Json,
}

impl Format {
    /// Starts the log. `RUST_LOG` overrides the level `default`.
    pub(super) fn start(self, default: &str, to: Stderr) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let log =
            tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal()).with_writer(to);
        // in tests, a log may have been started already
        drop(match self {
            Self::Text => log.try_init(),
            Self::Json => log.json().try_init(),
        });
    }
}

/// Standard error with a status line, which stays below the log.
#[derive(Debug, Clone)]
pub(super) struct Stderr(pub(super) ProgressBar);

impl Default for Stderr {
    fn default() -> Self {
        Self(ProgressBar::hidden())
    }
}

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
