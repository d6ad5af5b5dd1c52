//! A request to end pipelines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends the pipelines of a script. All clones share one request.
#[derive(Debug, Clone, Default)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// Requests the end: the pipelines finish and commit what they have read, and then end. Returns immediately.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the end was requested.
    pub fn is_stopping(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps, and wakes early when the end is requested.
    pub(crate) fn sleep(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(20);
        let start = Instant::now();
        while !self.is_stopping() && start.elapsed() < time {
            std::thread::sleep(STEP.min(time));
        }
    }
}
