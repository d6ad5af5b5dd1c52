//! Who watches a training: progress goes out, requests to stop come in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::exec_err;
use datafusion::error::Result;

/// Watches a training: it receives the progress, and decides after each batch whether the training continues.
///
/// Every method has a default that does nothing. The trainer calls the methods from its own thread.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A training is about to start. With `keep`, an interrupt should end it with its best epoch
    /// (`on_interrupt = 'keep'`); otherwise an interrupt should discard it.
    fn keep_on_interrupt(&self, _keep: bool) {}

    /// A stage starts, with at most `epochs` epochs over `rows` rows.
    fn begin(&self, _stage: &str, _epochs: usize, _rows: usize) {}

    /// A batch of `rows` rows of the current epoch is done.
    fn rows(&self, _rows: usize) {}

    /// Epoch number `epoch` (from 1) is done, with its training loss and, if rows are held out, their loss.
    fn epoch(&self, _epoch: usize, _loss: f64, _held_out_loss: Option<f64>) {}

    /// The training is done, and its model is published; `summary` holds its results by name, as `DESCRIBE MODEL` shows them.
    fn finished(&self, _summary: &[(&'static str, serde_json::Value)]) {}

    /// Whether the training continues.
    fn control(&self) -> Control {
        Control::Continue
    }
}

/// What a training does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Continue.
    Continue,
    /// End at once, and publish the best epoch so far. A stage without an epoch ends after a fraction of a second.
    Finish,
    /// End at once, and publish nothing.
    Abort,
}

/// Checks, between two parts of a training, that it was not aborted.
///
/// # Errors
/// An execution error if it was aborted.
pub(crate) fn check(watch: &dyn Watch) -> Result<()> {
    match watch.control() {
        Control::Abort => exec_err!("the training was aborted; no model was published"),
        Control::Continue | Control::Finish => Ok(()),
    }
}

/// A [`Watch`] that ignores the progress and never stops a training.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watch for Unwatched {}

/// Stops the training of a [`StoppableWatch`] when the statement is dropped.
pub(crate) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A watch that also aborts the training when its [`StopOnDrop`] is dropped.
#[derive(Debug)]
pub(crate) struct StoppableWatch {
    watch: Arc<dyn Watch>,
    is_dropped: Arc<AtomicBool>,
}

impl StoppableWatch {
    pub(crate) fn new(watch: Arc<dyn Watch>) -> (Self, StopOnDrop) {
        let is_dropped = Arc::new(AtomicBool::new(false));
        (Self { watch, is_dropped: Arc::clone(&is_dropped) }, StopOnDrop(is_dropped))
    }
}

impl Watch for StoppableWatch {
    fn keep_on_interrupt(&self, keep: bool) {
        self.watch.keep_on_interrupt(keep);
    }

    fn begin(&self, stage: &str, epochs: usize, rows: usize) {
        self.watch.begin(stage, epochs, rows);
    }

    fn rows(&self, rows: usize) {
        self.watch.rows(rows);
    }

    fn epoch(&self, epoch: usize, loss: f64, held_out_loss: Option<f64>) {
        self.watch.epoch(epoch, loss, held_out_loss);
    }

    fn finished(&self, summary: &[(&'static str, serde_json::Value)]) {
        self.watch.finished(summary);
    }

    fn control(&self) -> Control {
        if self.is_dropped.load(Ordering::Relaxed) { Control::Abort } else { self.watch.control() }
    }
}
