//! The progress bar of a long query: rows read, rows per second.

use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::stats::Precision;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use indicatif::{HumanFloatCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Faster queries show no bar.
const DELAY: Duration = Duration::from_millis(700);
const INTERVAL: Duration = Duration::from_millis(100);

/// Shows the progress of a plan.
#[derive(Debug)]
pub(super) struct Progress {
    sources: Vec<Arc<dyn ExecutionPlan>>,
    bar: ProgressBar,
    is_shown: bool,
}

impl Progress {
    /// Starts to count the rows of the plan's sources.
    pub(super) fn start(plan: &Arc<dyn ExecutionPlan>, is_shown: bool) -> Self {
        let mut sources = Vec::new();
        collect_sources(plan, &mut sources);
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = match total(&sources) {
            Some(total) => {
                bar.set_length(total);
                "{bar:30} {human_pos} of {human_len} rows, {rate}, {eta} left"
            }
            None => "{spinner} {human_pos} rows, {rate}, {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
                // ignore errors of drawing the bar
                write!(out, "{} rows/s", HumanFloatCount(state.per_sec().round())).unwrap_or_default();
            }));
        }
        Self { sources, bar, is_shown }
    }

    /// Waits for the next batch, and draws the bar in the meantime.
    pub(super) async fn watch<T>(&self, next: impl Future<Output = T>) -> T {
        if !self.is_shown {
            return next.await;
        }
        tokio::pin!(next);
        loop {
            match tokio::time::timeout(INTERVAL, &mut next).await {
                Ok(batch) => return batch,
                Err(_) => self.draw(),
            }
        }
    }

    fn draw(&self) {
        if self.bar.elapsed() > DELAY && self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let rows = |source: &Arc<dyn ExecutionPlan>| source.metrics().and_then(|metrics| metrics.output_rows());
        let rows: usize = self.sources.iter().filter_map(rows).sum();
        self.bar.set_position(rows as u64);
    }

    /// Hides the bar while `print` runs.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match self.is_shown {
            true => self.bar.suspend(print),
            false => print(),
        }
    }
}

impl Drop for Progress {
    /// Removes the bar, even after an interrupt.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn collect_sources(plan: &Arc<dyn ExecutionPlan>, sources: &mut Vec<Arc<dyn ExecutionPlan>>) {
    let children = plan.children();
    if children.is_empty() {
        sources.push(Arc::clone(plan));
    }
    children.into_iter().for_each(|child| collect_sources(child, sources));
}

/// Number of rows of all sources, if it is known.
fn total(sources: &[Arc<dyn ExecutionPlan>]) -> Option<u64> {
    let context = StatisticsContext::new();
    let rows =
        |source: &Arc<dyn ExecutionPlan>| match context.compute(source.as_ref(), &StatisticsArgs::new()).ok()?.num_rows
        {
            Precision::Exact(rows) | Precision::Inexact(rows) => Some(rows as u64),
            Precision::Absent => None,
        };
    sources.iter().map(rows).sum()
}
