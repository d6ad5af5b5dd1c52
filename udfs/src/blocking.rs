//! Waiting for asynchronous work where DataFusion's interfaces are synchronous (planning a function call).

use std::future::Future;
use std::sync::{OnceLock, mpsc};

use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use tokio::runtime::{Builder, Runtime};

/// Runs `future` on a thread of ours and waits for it.
///
/// Works inside and outside of any runtime, which `Handle::block_on` does not. One runtime serves the whole process, so
/// that an HTTP client's connections outlive the call.
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
        // nobody waits any more only if the waiting thread died
        drop(send.send(future.await));
    }));
    match receive.recv() {
        Ok(result) => result,
        Err(_) => internal_err!("the task that reads the model store ended without a result"),
    }
}
