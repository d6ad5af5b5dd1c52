//! Metrics of pipelines, for Prometheus.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PipelineLabels {
    pub(crate) pipeline: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PartitionLabels {
    pub(crate) pipeline: String,
    pub(crate) partition: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ModelLabels {
    pub(crate) pipeline: String,
    /// Name and version, for example `fraud@3`.
    pub(crate) model: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Metrics of all pipelines of a script, see [`Pipelines::metrics`](crate::Pipelines::metrics).
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) records_in: Family<PipelineLabels, Counter>,
    pub(crate) records_out: Family<PipelineLabels, Counter>,
    pub(crate) skipped: Family<PipelineLabels, Counter>,
    pub(crate) dead_lettered: Family<PipelineLabels, Counter>,
    pub(crate) restarts: Family<PipelineLabels, Counter>,
    pub(crate) lag: Family<PartitionLabels, Gauge>,
    pub(crate) batch_rows: Histograms<PipelineLabels>,
    pub(crate) batch_seconds: Histograms<PipelineLabels>,
    pub(crate) onnx_seconds: Family<ModelLabels, Counter<f64, AtomicU64>>,
    pub(crate) errors: Histograms<ModelLabels>,
    pub(crate) anomalies: Family<ModelLabels, Counter>,
}

impl Metrics {
    /// Content type of [`text`](Metrics::text) for an HTTP response.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("aefusion"),
            records_in: Family::default(),
            records_out: Family::default(),
            skipped: Family::default(),
            dead_lettered: Family::default(),
            restarts: Family::default(),
            lag: Family::default(),
            batch_rows: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 4.0, 10))),
            batch_seconds: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14))),
            onnx_seconds: Family::default(),
            errors: Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 10_f64.sqrt(), 17))),
            anomalies: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "records_in",
            "Records that the query has processed and the sink has written",
            self.records_in.clone(),
        );
        registry.register("records_out", "Rows committed to the sink", self.records_out.clone());
        registry.register("records_skipped", "Malformed records that were skipped", self.skipped.clone());
        let text = "Malformed records that went to the dead-letter topic";
        registry.register("records_dead_lettered", text, self.dead_lettered.clone());
        let text = "Restarts from the last commit";
        registry.register("restarts", text, self.restarts.clone());
        registry.register("lag_records", "Records of a partition that are not committed yet", self.lag.clone());
        registry.register("batch_rows", "Records of a micro-batch", self.batch_rows.clone());
        let text = "Time from the first record of a micro-batch to its writing";
        registry.register_with_unit("batch", text, Unit::Seconds, self.batch_seconds.clone());
        let text = "Time in ONNX Runtime, summed over all threads";
        registry.register_with_unit("onnx_runtime", text, Unit::Seconds, self.onnx_seconds.clone());
        registry.register("error", "Reconstruction errors", self.errors.clone());
        let text = "Rows with an error at or above the threshold of the model";
        registry.register("anomalies", text, self.anomalies.clone());
    }

    /// All metrics in the text format of OpenMetrics. A metric appears once it has a value.
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            // writing to a string cannot fail
            Ok(()) | Err(_) => text,
        }
    }
}
