//! Waits for asynchronous work in synchronous interfaces of DataFusion, such as the planning of a function call.

use std::future::Future;
use std::sync::{OnceLock, mpsc};

use datafusion::common::internal_err;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use tokio::runtime::{Builder, Runtime};

/// Runs `future` on a thread of this module and waits for it.
///
/// Unlike `Handle::block_on`, this works inside and outside of a runtime. One runtime serves the process: the
/// connections of an HTTP client then outlive the call.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(1).thread_name("aefusion-store").enable_all().build()
    });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return Err(DataFusionError::IoError(std::io::Error::new(e.kind(), e.to_string()))),
    };
    let (send, receive) = mpsc::channel();
    drop(runtime.spawn(async move {
        // sending fails only if the waiting thread ended
        drop(send.send(future.await));
    }));
    match receive.recv() {
        Ok(result) => result,
        Err(_) => internal_err!("the task that reads the model store ended without a result"),
    }
}

/// Runs work that takes long, such as a test run of a model, outside of the threads of the asynchronous runtime.
pub(crate) async fn offload<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match SpawnedTask::spawn_blocking(work).join().await {
        Ok(result) => result,
        Err(error) => Err(DataFusionError::ExecutionJoin(Box::new(error))),
    }
}
