//! Sessions of one graph, shared by the queries and partitions that run it.

use std::collections::HashMap;

use bytes::Bytes;
use datafusion::error::Result;
use parking_lot::Mutex;

use super::runtime::{Purpose, Session};
use crate::matrix::Block;
use crate::score::Numbers;

/// Workers kept for later, at most.
const KEPT: usize = 64;

/// A session, and the memory that its blocks are put together in: reused from batch to batch, because taking and
/// clearing a megabyte for each costs as much as a small network.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) session: Session,
    /// One for each input of the graph.
    pub(crate) blocks: Vec<Block>,
    /// One for each output of the graph that is not kept.
    pub(crate) scratch: HashMap<usize, Numbers>,
}

/// A graph and its idle workers. A partition takes one, runs its blocks, and gives it back.
#[derive(Debug)]
pub(crate) struct Pool {
    graph: Bytes,
    idle: Mutex<Vec<Worker>>,
}

impl Pool {
    pub(crate) fn new(graph: Bytes) -> Self {
        Self { graph, idle: Mutex::new(Vec::new()) }
    }

    /// Runs `work` with an idle worker, or with a new one, which is kept for the next.
    ///
    /// # Errors
    /// An error if ONNX Runtime cannot load the graph, or what `work` gives.
    pub(crate) fn with_worker<T>(&self, work: impl FnOnce(&mut Worker) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().pop();
        let mut worker = match idle {
            Some(worker) => worker,
            None => Worker {
                session: Session::load(&self.graph, Purpose::Score)?,
                blocks: Vec::new(),
                scratch: HashMap::new(),
            },
        };
        let result = work(&mut worker);
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            idle.push(worker);
        }
        result
    }
}
