//! What a pipeline shows of itself to others.

use std::net::SocketAddr;
use std::sync::Arc;

use aefusion_stream::{Metrics, Pipelines, Stats};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Json, Router};
use datafusion::error::{DataFusionError, Result};
use serde_json::json;
use tokio::net::TcpListener;


/// Type of the text of [`Metrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Shown {
    all: Vec<Arc<Stats>>,
    metrics: Arc<Metrics>,
}

/// Serves pages about pipelines.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// # Errors
    /// An error if the address cannot be had.
    pub(super) async fn bind(address: SocketAddr, pipelines: &Pipelines) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| DataFusionError::IoError(e).context(format!("--http {address}: could not listen there")))?;
        let at = listener.local_addr().map_err(DataFusionError::IoError)?;
        tracing::info!("page at http://{at}/, metrics at http://{at}/metrics");
        let router = Router::new()
            .route("/", get(|| async { Html(include_str!("page/index.html")) }))
            .route("/page.js", get(|| async { script(include_str!("page/page.js")) }))
            .route("/uplot.js", get(|| async { script(include_str!("page/uPlot.iife.min.js")) }))
            .route("/page.css", get(|| async { style(include_str!("page/page.css")) }))
            .route("/uplot.css", get(|| async { style(include_str!("page/uPlot.min.css")) }))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics_text))
            .route("/pipelines.json", get(snapshots))
            .with_state(Arc::new(Shown { all: pipelines.stats().to_vec(), metrics: Arc::clone(pipelines.metrics()) }));
        Ok(Self { listener, router })
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(self) {
        if let Err(error) = axum::serve(self.listener, self.router).await {
            tracing::error!("the page is no longer served: {error}");
        }
    }
}

fn script(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text)
}

fn style(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], text)
}

/// Whether every pipeline reads.
async fn ready(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let waiting: Vec<&str> =
        shown.all.iter().filter(|stats| !stats.is_ready()).map(|stats| stats.pipeline()).collect();
    match waiting.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not reading: {}\n", waiting.join(", "))),
    }
}

async fn metrics_text(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shown.metrics.text())
}

async fn snapshots(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    let pipelines: Vec<_> = shown.all.iter().map(|stats| stats.snapshot()).collect();
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "pipelines": pipelines }))
}
