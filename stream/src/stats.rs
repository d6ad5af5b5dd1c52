//! Statistics of a pipeline: counters for Prometheus, and a short history for its page.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use aefusion_udfs::infer::{Observer, Scored};
use aefusion_udfs::model::Model;
use datafusion::arrow::array::{RecordBatch, UInt32Array};
use datafusion::arrow::json::ArrayWriter;
use datafusion::error::Result;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;

use super::metrics::{Metrics, ModelLabels, PartitionLabels, PipelineLabels};

const NO_BROKER: &str = "no broker can be reached";
/// Length of the history, seconds.
const KEPT_SECONDS: usize = 600;
/// Number of anomalous records in the history, and how many of them each second may add.
const KEPT_ANOMALIES: usize = 50;
const ANOMALIES_PER_SECOND: usize = 3;
/// Contributions that are kept for each anomalous record.
const KEPT_CONTRIBUTIONS: usize = 5;
/// Bins of the histogram of errors for each power of ten, and the range of the powers.
const BINS_PER_DECADE: i32 = 8;
const FIRST_DECADE: i32 = -5;
const LAST_DECADE: i32 = 5;

/// Statistics of a running pipeline, updated while it runs. See [`Pipelines::stats`](crate::Pipelines::stats).
#[derive(Debug)]
pub struct Stats {
    pipeline: String,
    metrics: Arc<Metrics>,
    labels: PipelineLabels,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Why the pipeline is waiting.
    trouble: Option<String>,
    total: Totals,
    /// The totals at the end of the last second.
    last: Totals,
    /// The last seconds, oldest first.
    seconds: VecDeque<Second>,
    /// The assigned partitions.
    partitions: BTreeMap<i32, Partition>,
    models: BTreeMap<String, ModelStats>,
    anomalies: VecDeque<Anomaly>,
    /// Anomalous records that were added during this second.
    anomalies_this_second: usize,
}

/// Counts of one micro-batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// When the first record was read.
    pub(crate) since: Instant,
    pub(crate) records: usize,
    /// Malformed records that were skipped.
    pub(crate) skipped: usize,
    /// Malformed records for the dead-letter topic.
    pub(crate) dead_lettered: usize,
}

/// State of a pipeline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It has no partitions yet.
    #[default]
    Starting,
    /// It is reading, or waiting for new records.
    Running,
    /// It waits after a failure, and retries.
    Waiting,
    /// It has ended.
    Ended,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Totals {
    records_in: u64,
    records_out: u64,
    skipped: u64,
    dead_lettered: u64,
    batches: u64,
    anomalies: u64,
    restarts: u64,
}

/// One second of the history.
#[derive(Debug, Clone, Serialize)]
struct Second {
    /// Unix time, seconds.
    at: u64,
    records_in: u64,
    records_out: u64,
    anomalies: u64,
    lag: i64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Partition {
    end: i64,
    /// None until the first commit, or until the offset of the group is known.
    committed: Option<i64>,
    /// The offset after the last record, when the pipeline last reached the end. Only transaction markers follow it.
    read_to: Option<i64>,
}

/// Errors that one version of a model measured.
#[derive(Debug, Clone, Serialize)]
struct ModelStats {
    threshold: Option<f64>,
    anomalies: u64,
    /// Lower edges of the bins of the histogram.
    edges: Vec<f64>,
    /// Rows in each bin.
    counts: Vec<u64>,
}

#[derive(Debug, Clone, Serialize)]
struct Anomaly {
    at: u64,
    model: String,
    error: f64,
    record: Value,
    contributions: Vec<Value>,
}

/// The state of a pipeline at one moment, for a page or an API; serialize it to read it.
///
/// `docs/streaming-reference.md` describes the fields.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    name: String,
    state: State,
    trouble: Option<String>,
    total: Totals,
    lag: BTreeMap<i32, i64>,
    seconds: Vec<Second>,
    models: BTreeMap<String, ModelStats>,
    anomalies: Vec<Anomaly>,
}

impl Stats {
    pub(crate) fn new(pipeline: &str, metrics: Arc<Metrics>) -> Arc<Self> {
        let labels = PipelineLabels { pipeline: pipeline.to_owned() };
        Arc::new(Self { pipeline: pipeline.to_owned(), metrics, labels, inner: Mutex::default() })
    }

    /// The name of the pipeline.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Partitions were assigned, possibly none: then there are more instances than partitions.
    pub(crate) fn assigned(&self, partitions: impl IntoIterator<Item = i32>) {
        self.revoked();
        let mut inner = self.inner.lock();
        inner.partitions = partitions.into_iter().map(|partition| (partition, Partition::default())).collect();
        inner.state = State::Running;
        inner.trouble = None;
    }

    /// All partitions were revoked.
    pub(crate) fn revoked(&self) {
        for partition in std::mem::take(&mut self.inner.lock().partitions).into_keys() {
            self.metrics.lag.remove(&self.partition(partition));
        }
    }

    /// The end of a partition is known, and the offset of the group at its assignment.
    pub(crate) fn set_end(&self, partition: i32, end: i64, committed: i64) {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.partitions.get_mut(&partition) {
            if known.end != 0 && end > known.end {
                known.read_to = None;
            }
            known.end = known.end.max(end);
            known.committed.get_or_insert(committed);
            self.metrics.lag.get_or_create(&self.partition(partition)).set(known.lag());
        }
    }

    /// A partition was read to its end, up to this offset; none if it had nothing to read.
    pub(crate) fn at_end(&self, partition: i32, offset: Option<i64>) {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.partitions.get_mut(&partition) {
            known.read_to = Some(offset.unwrap_or(i64::MIN));
            self.metrics.lag.get_or_create(&self.partition(partition)).set(known.lag());
        }
    }

    /// Records were committed up to these offsets.
    pub(crate) fn committed(&self, ends: impl IntoIterator<Item = (i32, i64)>, records_out: usize) {
        let mut inner = self.inner.lock();
        for (partition, end) in ends {
            if let Some(known) = inner.partitions.get_mut(&partition) {
                known.committed = Some(end);
                known.end = known.end.max(end);
                self.metrics.lag.get_or_create(&self.partition(partition)).set(known.lag());
            }
        }
        inner.total.records_out += records_out as u64;
        self.metrics.records_out.get_or_create(&self.labels).inc_by(records_out as u64);
    }

    /// A micro-batch was written.
    pub(crate) fn batch(&self, counts: &Counts) {
        let mut inner = self.inner.lock();
        let total = &mut inner.total;
        total.batches += 1;
        for (n, total, metric) in [
            (counts.records, &mut total.records_in, &self.metrics.records_in),
            (counts.skipped, &mut total.skipped, &self.metrics.skipped),
            (counts.dead_lettered, &mut total.dead_lettered, &self.metrics.dead_lettered),
        ] {
            // a metric appears once it has a value
            if n > 0 {
                *total += n as u64;
                metric.get_or_create(&self.labels).inc_by(n as u64);
            }
        }
        let records = u32::try_from(counts.records).unwrap_or(u32::MAX);
        self.metrics.batch_rows.get_or_create(&self.labels).observe(f64::from(records));
        self.metrics.batch_seconds.get_or_create(&self.labels).observe(counts.since.elapsed().as_secs_f64());
    }

    /// Whether librdkafka has a connection to any broker.
    pub(crate) fn set_reachable(&self, is_reachable: bool) {
        let mut inner = self.inner.lock();
        match (inner.state, is_reachable) {
            (State::Running, false) => {
                inner.state = State::Waiting;
                inner.trouble = Some(NO_BROKER.to_owned());
            }
            (State::Waiting, true) if inner.trouble.as_deref() == Some(NO_BROKER) => {
                inner.state = State::Running;
                inner.trouble = None;
            }
            _ => {}
        }
    }

    /// The pipeline failed, and waits for its retry.
    pub(crate) fn waiting(&self, trouble: String) {
        let mut inner = self.inner.lock();
        inner.state = State::Waiting;
        inner.trouble = Some(trouble);
        inner.total.restarts += 1;
        self.metrics.restarts.get_or_create(&self.labels).inc();
    }

    /// The pipeline has ended.
    pub(crate) fn ended(&self) {
        self.inner.lock().state = State::Ended;
    }

    /// Whether the pipeline has received its partitions and can reach a broker.
    pub fn is_ready(&self) -> bool {
        self.inner.lock().state == State::Running
    }

    /// Adds a second to the history.
    pub(crate) fn tick(&self) {
        let mut inner = self.inner.lock();
        let (total, last) = (inner.total, inner.last);
        let second = Second {
            at: now(),
            records_in: total.records_in - last.records_in,
            records_out: total.records_out - last.records_out,
            anomalies: total.anomalies - last.anomalies,
            lag: inner.partitions.values().map(Partition::lag).sum(),
        };
        inner.last = total;
        inner.anomalies_this_second = 0;
        if inner.seconds.len() == KEPT_SECONDS {
            inner.seconds.pop_front();
        }
        inner.seconds.push_back(second);
    }

    /// A summary in one line, for a terminal or a log.
    pub fn line(&self) -> String {
        let inner = self.inner.lock();
        let per_second = inner.seconds.back().map_or(0, |second| second.records_in);
        let lag: i64 = inner.partitions.values().map(Partition::lag).sum();
        let mut line = format!(
            "{}: {} records, {per_second}/s, lag {lag}, {} written",
            self.pipeline, inner.total.records_in, inner.total.records_out
        );
        for (what, n) in [
            ("anomalous", inner.total.anomalies),
            ("skipped", inner.total.skipped),
            ("dead-lettered", inner.total.dead_lettered),
        ] {
            if n > 0 {
                line.push_str(&format!(", {n} {what}"));
            }
        }
        match (&inner.state, &inner.trouble) {
            (State::Waiting, Some(trouble)) => line.push_str(&format!(" — waiting: {trouble}")),
            (State::Starting, _) => line.push_str(" — starting"),
            _ => {}
        }
        line
    }

    /// The current state and the history.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.inner.lock();
        Snapshot {
            name: self.pipeline.clone(),
            state: inner.state,
            trouble: inner.trouble.clone(),
            total: inner.total,
            lag: inner.partitions.iter().map(|(partition, known)| (*partition, known.lag())).collect(),
            seconds: inner.seconds.iter().cloned().collect(),
            models: inner.models.clone(),
            anomalies: inner.anomalies.iter().rev().cloned().collect(),
        }
    }

    fn partition(&self, partition: i32) -> PartitionLabels {
        PartitionLabels { pipeline: self.pipeline.clone(), partition }
    }
}

impl Partition {
    fn lag(&self) -> i64 {
        match (self.committed, self.read_to) {
            (None, _) => 0,
            (Some(committed), Some(read_to)) if committed >= read_to => 0,
            (Some(committed), _) => (self.end - committed).max(0),
        }
    }
}

impl Observer for Stats {
    fn scored(&self, scored: &Scored<'_>) {
        let labels = ModelLabels { pipeline: self.pipeline.clone(), model: scored.model.to_string() };
        self.metrics.onnx_seconds.get_or_create(&labels).inc_by(scored.runtime.as_secs_f64());
        let Some((errors, valid)) = scored.errors() else { return };
        let is_valid = |row: usize| valid.is_none_or(|valid| valid.is_valid(row));
        let mut inner = self.inner.lock();
        let model_stats = inner.models.entry(labels.model.clone()).or_insert_with(|| ModelStats::new(scored.model));
        let histogram = self.metrics.errors.get_or_create(&labels);
        let mut anomalous = Vec::new();
        for (row, error) in errors.iter().enumerate().filter(|(row, _)| is_valid(*row)) {
            model_stats.count(*error);
            histogram.observe(*error);
            if model_stats.threshold.is_some_and(|threshold| *error >= threshold) {
                anomalous.push(row);
            }
        }
        drop(histogram);
        model_stats.anomalies += anomalous.len() as u64;
        inner.total.anomalies += anomalous.len() as u64;
        self.metrics.anomalies.get_or_create(&labels).inc_by(anomalous.len() as u64);
        let room = ANOMALIES_PER_SECOND.saturating_sub(inner.anomalies_this_second);
        anomalous.truncate(room);
        inner.anomalies_this_second += anomalous.len();
        drop(inner);
        if anomalous.is_empty() {
            return;
        }
        match explained(scored, &anomalous, errors) {
            Ok(explained) => {
                let mut inner = self.inner.lock();
                inner.anomalies.extend(explained);
                let too_many = inner.anomalies.len().saturating_sub(KEPT_ANOMALIES);
                inner.anomalies.drain(..too_many);
            }
            Err(error) => tracing::debug!("could not explain an anomaly: {}", aefusion_udfs::message(&error)),
        }
    }
}

impl ModelStats {
    fn new(model: &Model) -> Self {
        let share = model.contract().contamination;
        let calibration = model.metadata().calibration.as_ref();
        let threshold = share.zip(calibration).and_then(|(share, calibration)| calibration.threshold(share));
        let edge = |bin: i32| 10_f64.powf(f64::from(bin) / f64::from(BINS_PER_DECADE));
        let edges: Vec<f64> = (FIRST_DECADE * BINS_PER_DECADE..LAST_DECADE * BINS_PER_DECADE).map(edge).collect();
        Self { threshold, anomalies: 0, counts: vec![0; edges.len()], edges }
    }

    /// Adds an error to its bin. Errors below the first bin count in the first bin.
    fn count(&mut self, error: f64) {
        let bin = self.edges.partition_point(|edge| *edge <= error).saturating_sub(1);
        if let Some(count) = self.counts.get_mut(bin) {
            *count += 1;
        }
    }
}

/// Anomalous rows with their contributions.
fn explained(scored: &Scored<'_>, rows: &[usize], errors: &[f64]) -> Result<Vec<Anomaly>> {
    let indices = UInt32Array::from_iter_values(rows.iter().filter_map(|row| u32::try_from(*row).ok()));
    let records = json(&datafusion::arrow::compute::take_record_batch(scored.rows, &indices)?)?;
    let contributions = RecordBatch::try_from_iter([("of", scored.contributions(&indices)?)])?;
    let contributions = json(&contributions)?;
    let anomalies = rows.iter().zip(records).zip(contributions).map(|((row, record), contributions)| {
        let of_row = contributions.get("of").and_then(Value::as_array).cloned().unwrap_or_default();
        Anomaly {
            at: now(),
            model: scored.model.to_string(),
            error: errors[*row],
            record,
            contributions: of_row.into_iter().take(KEPT_CONTRIBUTIONS).collect(),
        }
    });
    Ok(anomalies.collect())
}

fn json(rows: &RecordBatch) -> Result<Vec<Value>> {
    let mut writer = ArrayWriter::new(Vec::new());
    writer.write(rows)?;
    writer.finish()?;
    let rows = serde_json::from_slice(&writer.into_inner());
    rows.map_err(|e| datafusion::error::DataFusionError::External(Box::new(e)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
