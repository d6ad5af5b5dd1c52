//! The wish that a pipeline ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Asked for once, seen by all clones.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps, and wakes early when it is asked to.
    pub(crate) fn sleep(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(20);
        let start = Instant::now();
        while !self.is_requested() && start.elapsed() < time {
            std::thread::sleep(STEP.min(time));
        }
    }
}
