//! Sessions of one graph, shared by the queries and partitions that run it.

use bytes::Bytes;
use datafusion::error::Result;
use parking_lot::Mutex;

use super::runtime::{Purpose, Session};

/// Sessions kept for later, at most.
const KEPT: usize = 64;

/// A graph and its idle sessions. A partition takes one, runs its blocks, and gives it back.
#[derive(Debug)]
pub(crate) struct Pool {
    graph: Bytes,
    idle: Mutex<Vec<Session>>,
}

impl Pool {
    pub(crate) fn new(graph: Bytes) -> Self {
        Self { graph, idle: Mutex::new(Vec::new()) }
    }

    /// Runs `work` with an idle session, or with a new one; the session is kept for the next.
    ///
    /// # Errors
    /// An error if ONNX Runtime cannot load the graph, or what `work` gives.
    pub(crate) fn with_session<T>(&self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().pop();
        let mut session = match idle {
            Some(session) => session,
            None => Session::load(&self.graph, Purpose::Score)?,
        };
        let result = work(&mut session);
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(session);
        }
        result
    }
}
