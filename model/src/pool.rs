//! Sessions of a graph, shared by the queries and partitions that run it.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion_common::error::Result;
use datafusion_common::internal_err;
use parking_lot::Mutex;

use crate::matrix::Block;
use crate::output::Numbers;
use crate::runtime::{Part, Purpose, Session};

/// Largest number of idle workers.
const MAX_IDLE: usize = 64;

/// A session and the memory of its blocks. Batches reuse the memory: to allocate and clear a megabyte for each costs as
/// much as a small network.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) session: Session,
    /// One block for each input of the graph.
    pub(crate) blocks: Vec<Block>,
    /// Memory for the outputs of the graph that are not kept, by index.
    pub(crate) scratch: HashMap<usize, Numbers>,
}

/// A graph and its idle workers. A partition acquires a worker, runs its blocks, and returns it.
#[derive(Debug)]
pub(crate) struct Pool {
    part: Part,
    idle: Mutex<Vec<Worker>>,
}

impl Pool {
    /// A pool for a part of a graph.
    pub(crate) fn new(part: Part) -> Self {
        Self { part, idle: Mutex::default() }
    }

    /// An idle worker, or a new one. It returns to the pool when it is dropped.
    ///
    /// # Errors
    /// An error if ONNX Runtime cannot load the graph.
    pub(crate) fn acquire(pool: &Arc<Self>) -> Result<PooledWorker> {
        let idle = pool.idle.lock().pop();
        let worker = match idle {
            Some(worker) => worker,
            None => {
                let session = pool.part.load(Purpose::Score)?;
                Worker { session, blocks: Vec::new(), scratch: HashMap::new() }
            }
        };
        Ok(PooledWorker { pool: Arc::clone(pool), worker: Some(worker) })
    }
}

/// A worker that returns to its pool when this is dropped.
#[derive(Debug)]
pub(crate) struct PooledWorker {
    pool: Arc<Pool>,
    /// None only in `drop`.
    worker: Option<Worker>,
}

impl PooledWorker {
    /// The worker.
    ///
    /// # Errors
    /// An internal error if the worker has returned to its pool.
    pub(crate) fn worker(&mut self) -> Result<&mut Worker> {
        match &mut self.worker {
            Some(worker) => Ok(worker),
            None => internal_err!("a session was used after it returned to its pool"),
        }
    }

    /// Memory of its blocks, bytes.
    pub(crate) fn bytes(&self) -> usize {
        let Some(worker) = &self.worker else { return 0 };
        worker.blocks.iter().map(Block::bytes).sum::<usize>()
            + worker.scratch.values().map(Numbers::bytes).sum::<usize>()
    }

    /// Memory of its session, bytes, with the weights. The sessions of a pool share one copy of these.
    pub(crate) fn session_bytes(&self) -> usize {
        self.pool.part.bytes()
    }
}

impl Drop for PooledWorker {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let mut idle = self.pool.idle.lock();
            if idle.len() < MAX_IDLE {
                idle.push(worker);
            }
        }
    }
}
