//! The HTTP server of `aefusion run`: status page, metrics and health.

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

struct Pages {
    all: Vec<Arc<Stats>>,
    metrics: Arc<Metrics>,
}

/// Serves the status of pipelines.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// Starts to listen.
    ///
    /// # Errors
    /// An I/O error if the address cannot be bound.
    pub(super) async fn bind(address: SocketAddr, pipelines: &Pipelines) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|e| {
            DataFusionError::IoError(e).context(format!("--http {address}: could not listen at this address"))
        })?;
        let at = listener.local_addr().map_err(DataFusionError::IoError)?;
        tracing::info!("status page at http://{at}/, metrics at http://{at}/metrics");
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
            .with_state(Arc::new(Pages { all: pipelines.stats().to_vec(), metrics: Arc::clone(pipelines.metrics()) }));
        Ok(Self { listener, router })
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(self) {
        if let Err(error) = axum::serve(self.listener, self.router).await {
            tracing::error!("the status page has stopped: {error}");
        }
    }
}

fn script(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text)
}

fn style(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], text)
}

/// Whether every pipeline is reading.
async fn ready(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let waiting: Vec<&str> = pages.all.iter().filter(|stats| !stats.is_ready()).map(|stats| stats.pipeline()).collect();
    match waiting.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not reading: {}\n", waiting.join(", "))),
    }
}

async fn metrics_text(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], pages.metrics.text())
}

async fn snapshots(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let pipelines: Vec<_> = pages.all.iter().map(|stats| stats.snapshot()).collect();
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "pipelines": pipelines }))
}
