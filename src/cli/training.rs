//! The progress of a training, as a bar on a terminal or as lines elsewhere, and its summary.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanFloatCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::Value;

use aefusion_train::{Control, Watch};
use aefusion_udfs::model::calibration::rows_below;

/// Time between two lines without a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Prints the progress to standard error.
#[derive(Debug)]
pub(super) struct TrainingProgress {
    is_quiet: bool,
    bar: ProgressBar,
    state: Mutex<State>,
    keeps_best: AtomicBool,
    is_to_finish: AtomicBool,
}

#[derive(Debug)]
struct State {
    stage: String,
    epochs: usize,
    /// Rows of the stage that are done.
    done: usize,
    started: Instant,
    printed: Option<Instant>,
    /// The last epoch, if it was not printed.
    unprinted: Option<String>,
}

impl TrainingProgress {
    pub(super) fn new(is_quiet: bool) -> Self {
        let state =
            State { stage: String::new(), epochs: 0, done: 0, started: Instant::now(), printed: None, unprinted: None };
        Self {
            is_quiet,
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            state: Mutex::new(state),
            keeps_best: AtomicBool::new(false),
            is_to_finish: AtomicBool::new(false),
        }
    }

    /// Handles an interrupt. Returns whether the training will end with its best epoch, so the statement must go on.
    pub(super) fn interrupt(&self) -> bool {
        self.keeps_best.load(Ordering::Relaxed) && !self.is_to_finish.swap(true, Ordering::Relaxed)
    }

    /// Removes the bar after a statement. Returns whether a training was running and did not finish.
    pub(super) fn end(&self) -> bool {
        self.keeps_best.store(false, Ordering::Relaxed);
        self.is_to_finish.store(false, Ordering::Relaxed);
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
        !std::mem::take(&mut self.state.lock().stage).is_empty()
    }

    fn is_terminal() -> bool {
        io::stderr().is_terminal()
    }

    fn print(&self, line: &str) {
        if !self.is_quiet {
            // ignore errors of writing to standard error
            drop(writeln!(io::stderr(), "{line}"));
        }
    }
}

impl Watch for TrainingProgress {
    fn keep_on_interrupt(&self, keep: bool) {
        self.keeps_best.store(keep, Ordering::Relaxed);
    }

    fn begin(&self, stage: &str, epochs: usize, rows: usize) {
        let mut state = self.state.lock();
        if let Some(line) = state.unprinted.take() {
            self.print(&line);
        }
        let started = Instant::now();
        *state = State { stage: stage.to_owned(), epochs, done: 0, started, printed: None, unprinted: None };
        if self.is_quiet || !Self::is_terminal() {
            return;
        }
        self.bar.reset();
        self.bar.set_message("");
        self.bar.set_length(epochs as u64 * rows as u64);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:16} {wide_msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_prefix(stage.to_owned());
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
    }

    fn rows(&self, rows: usize) {
        let mut state = self.state.lock();
        state.done += rows;
        if !self.bar.is_hidden() {
            self.bar.set_position(state.done as u64);
        }
    }

    fn epoch(&self, epoch: usize, loss: f64, held_out_loss: Option<f64>) {
        let mut state = self.state.lock();
        let seconds = state.started.elapsed().as_secs_f64();
        let rate = HumanFloatCount((state.done as f64 / seconds.max(1e-9)).round());
        let held_out = held_out_loss.map(|loss| format!(", held-out {loss:.5}")).unwrap_or_default();
        let text = format!("epoch {epoch} of {}, loss {loss:.5}{held_out}, {rate} rows/s", state.epochs);
        if !self.bar.is_hidden() {
            let left = seconds / epoch as f64 * state.epochs.saturating_sub(epoch) as f64;
            let left = indicatif::HumanDuration(Duration::from_secs_f64(left));
            self.bar.set_message(format!("{text}, at most {left} left"));
            return;
        }
        let line = format!("{}: {text}", state.stage);
        if state.printed.is_none_or(|printed| printed.elapsed() > BETWEEN_LINES) {
            state.printed = Some(Instant::now());
            state.unprinted = None;
            self.print(&line);
        } else {
            state.unprinted = Some(line);
        }
    }

    fn finished(&self, summary: &[(&'static str, Value)]) {
        let mut state = self.state.lock();
        self.bar.finish_and_clear();
        if let Some(line) = state.unprinted.take() {
            self.print(&line);
        }
        state.stage.clear();
        let summary = summary.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        summary_lines(&summary).iter().for_each(|line| self.print(line));
    }

    fn control(&self) -> Control {
        if self.is_to_finish.load(Ordering::Relaxed) { Control::Finish } else { Control::Continue }
    }
}

/// The summary of a training as sentences, with a warning if the model has learned nothing.
pub fn summary_lines(summary: &BTreeMap<String, Value>) -> Vec<String> {
    let value = |name: &str| summary.get(name);
    let number = |name: &str| value(name).and_then(Value::as_f64);
    let count = |name: &str| HumanCount(value(name).and_then(Value::as_u64).unwrap_or_default()).to_string();
    let shape = value("shape").and_then(Value::as_str).unwrap_or_default();
    let mut lines = vec![format!("network {shape}, {} rows, {} epochs", count("rows"), count("epochs"))];
    let held_out = number("held_out_error").map(|error| (error, format!("{} held-out", count("held_out_rows"))));
    let trained_on = number("training_error").map(|error| (error, format!("the {} training", count("rows"))));
    if let Some((error, which)) = held_out.or(trained_on) {
        let mean = number("mean_only_error").map(|mean| format!("column means {mean:.5}"));
        let pca = number("pca_error").map(|pca| format!("PCA with as many components as the code {pca:.5}"));
        let baselines: Vec<String> = [mean, pca].into_iter().flatten().collect();
        let compared = if baselines.is_empty() { String::new() } else { format!(" ({})", baselines.join(", ")) };
        lines.push(format!("mean squared error of {which} rows: {error:.5}{compared}"));
        if number("mean_only_error").is_some_and(|mean| error >= 0.99 * mean) {
            lines.push(
                "warning: the model is no better than the mean of each column, so it has learned nothing. Train on more rows, or \
                 try more epochs (max_iterations), a wider code (hidden_units) or another learn_rate."
                    .to_owned(),
            );
        }
    }
    lines.extend(scores(summary, "held_out", "held-out"));
    lines.extend(scores(summary, "training", "training"));
    lines.push(match (number("threshold"), number("calibration_rows")) {
        (Some(threshold), _) => format!(
            "calibrated on {} other rows: an error of {threshold:.5} or more is an anomaly",
            count("calibration_rows")
        ),
        (None, Some(rows)) if rows > 0.0 => {
            format!("calibrated on {} other rows: no row counts as an anomaly", count("calibration_rows"))
        }
        _ => "not calibrated: no rows were left for calibration, so there are no p-values".to_owned(),
    });
    lines.extend(number("smallest_p_value").map(smallest_p_value));
    if value("calibration_may_have_trained").is_some() {
        lines.push(
            "warning: an earlier version trained the existing model, and did not record its calibration rows. Rows that it \
             was trained on may calibrate, and p-values are then too small. Train once without warm_start."
                .to_owned(),
        );
    }
    if let Some(wanted) = number("calibration_rows_wanted") {
        lines.push(format!(
            "warning: the contamination needs at least {wanted} calibration rows, but there are {}. Until then, no row counts \
             as an anomaly. Train on more rows, or raise calibration_share or contamination.",
            count("calibration_rows")
        ));
    }
    if value("interrupted").is_some() {
        lines.push("interrupted: the model is the best epoch so far".to_owned());
    }
    lines
}

/// Accuracy, macro-F1, recalls and confusion of a classifier on the rows of a part, whose names begin with `prefix`.
fn scores(summary: &BTreeMap<String, Value>, prefix: &str, part: &str) -> Vec<String> {
    /// Classes that have a line each.
    const MOST_LINES: usize = 20;
    let value = |name: &str| summary.get(&format!("{prefix}_{name}"));
    let Some(accuracy) = value("accuracy").and_then(Value::as_f64) else { return Vec::new() };
    let f1 = value("macro_f1").and_then(Value::as_f64).map(|f1| format!(", macro-F1 {f1:.4}")).unwrap_or_default();
    let mut lines = vec![format!("accuracy on the {part} rows: {accuracy:.4}{f1}")];
    let list = |name: &str| value(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (recalls, confusion) = (list("recall"), list("confusion"));
    let label = |class: usize| recalls[class][0].as_str().unwrap_or_default();
    if recalls.len() > MOST_LINES || recalls.len() != confusion.len() {
        return lines;
    }
    for (class, (recall, row)) in recalls.iter().zip(confusion).enumerate() {
        let counts: Vec<u64> = row.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let Some(recall) = recall[1].as_f64() else {
            lines.push(format!("  {}: none of these rows", label(class)));
            continue;
        };
        let others = counts.iter().enumerate().filter(|(other, count)| *other != class && **count > 0);
        let others: Vec<String> = others.map(|(other, count)| format!("{count} as {}", label(other))).collect();
        let wrong = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        lines.push(format!("  {}: recall {recall:.4} of {} rows{wrong}", label(class), counts.iter().sum::<u64>()));
    }
    lines
}

/// The smallest possible p-value as a sentence. If it is too large for rare alerts, the sentence says how many rows they need.
fn smallest_p_value(smallest: f64) -> String {
    const RARE: f64 = 0.001;
    match rows_below(RARE) {
        Some(wanted) if smallest >= RARE => format!(
            "the smallest possible p-value is {smallest:.5}; p < {RARE} needs {} calibration rows",
            HumanCount(wanted)
        ),
        _ => format!("the smallest possible p-value is {smallest:.2e}"),
    }
}
