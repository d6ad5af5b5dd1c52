//! Ctrl-C: the first one stops the statement, the second one ends the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use tokio::runtime;
use tokio::sync::Notify;

use super::INTERRUPTED;

/// No statement runs: Ctrl-C ends the process.
const IDLE: u8 = 0;
/// A statement runs: Ctrl-C asks it to stop.
const RUNNING: u8 = 1;
/// The statement was asked to stop: Ctrl-C ends the process.
const ASKED: u8 = 2;
/// The statement finishes after it was asked to stop: Ctrl-C ends the process.
const FINISHING: u8 = 3;

/// Handles Ctrl-C.
///
/// A separate thread handles the signal. A second Ctrl-C therefore works while all other threads are busy.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    state: AtomicU8,
    asked: Notify,
}

impl Interrupts {
    /// Starts to handle Ctrl-C.
    ///
    /// # Errors
    /// An I/O error if the handler or its thread cannot be created.
    pub(super) fn handle() -> io::Result<Arc<Self>> {
        let interrupts = Arc::new(Self::default());
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = runtime.block_on(async { signals() })?;
        let seen = Arc::clone(&interrupts);
        thread::Builder::new().name("interrupts".to_owned()).spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    seen.signal();
                }
            });
        })?;
        Ok(interrupts)
    }

    fn signal(&self) {
        match self.state.compare_exchange(RUNNING, ASKED, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => self.asked.notify_one(),
            Err(_) => end_process(),
        }
    }

    /// A statement starts.
    pub(super) fn begin(&self) {
        self.state.store(RUNNING, Ordering::Relaxed);
    }

    /// The statement goes on after it was asked to stop. The next Ctrl-C asks it again, or ends the process.
    pub(super) fn go_on(&self, asks_again: bool) {
        self.state.store(if asks_again { RUNNING } else { FINISHING }, Ordering::Relaxed);
    }

    /// Waits until the statement is asked to stop.
    pub(super) async fn asked(&self) {
        loop {
            self.asked.notified().await;
            // a statement that ended at the moment of the signal may have left its notification behind
            if self.state.load(Ordering::Relaxed) == ASKED {
                return;
            }
        }
    }

    /// The statement has ended. Returns whether it was asked to stop and did not go on.
    pub(super) fn end(&self) -> bool {
        self.state.swap(IDLE, Ordering::Relaxed) == ASKED
    }
}

/// Ends the process at once, with the exit code of an interrupt.
///
/// Destructors of libraries do not run: their threads may still use what those destroy.
pub(super) fn end_process() -> ! {
    #[cfg(unix)]
    // SAFETY: `_exit` has no preconditions.
    unsafe {
        libc::_exit(INTERRUPTED.into())
    }
    #[cfg(not(unix))]
    std::process::exit(INTERRUPTED.into())
}

#[cfg(unix)]
fn signals() -> io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn signals() -> io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_signal_asks_the_statement_that_runs() {
        let interrupts = Interrupts::default();
        interrupts.begin();
        assert_eq!(interrupts.asked().now_or_never(), None);
        interrupts.signal();
        assert_eq!(interrupts.asked().now_or_never(), Some(()));
        assert!(interrupts.end());
        interrupts.begin();
        assert!(!interrupts.end());
    }

    #[test]
    fn a_signal_at_the_end_of_a_statement_does_not_stop_the_next() {
        let interrupts = Interrupts::default();
        interrupts.begin();
        interrupts.signal();
        assert!(interrupts.end());
        interrupts.begin();
        assert_eq!(interrupts.asked().now_or_never(), None);
    }
}
