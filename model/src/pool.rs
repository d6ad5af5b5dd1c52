//! Sessions of a graph, shared by the queries and partitions that run it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion_common::error::Result;
use datafusion_common::internal_err;
use parking_lot::Mutex;

use crate::matrix::Block;
use crate::output::Numbers;
use crate::runtime::{Part, Purpose, Session};

/// Largest number of idle workers.
const MAX_IDLE: usize = 64;

/// Memory of the idle workers of a model, bytes.
const MAX_IDLE_BYTES: usize = 64 << 20;

/// Activations of a row above which a graph is wide, bytes.
const WIDE_ROW: usize = 16 << 10;

/// A session and the memory of its blocks. Batches reuse the memory: to allocate and clear a megabyte for each costs as
/// much as a small network.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) session: Session,
    /// One block for each input of the graph.
    pub(crate) blocks: Vec<Block>,
    /// Memory for the outputs of the graph that are not kept, by index.
    pub(crate) scratch: HashMap<usize, Numbers>,
    /// Rows of the largest block that ran. The session keeps the memory of its activations.
    pub(crate) rows: usize,
}

impl Worker {
    fn bytes(&self, row_bytes: usize) -> usize {
        self.blocks.iter().map(Block::bytes).sum::<usize>()
            + self.scratch.values().map(Numbers::bytes).sum::<usize>()
            + self.rows.saturating_mul(row_bytes)
    }
}

/// A graph and its idle workers. A partition acquires a worker, runs its blocks, and returns it.
#[derive(Debug)]
pub(crate) struct Pool {
    part: Part,
    /// Memory of the activations of one row, bytes.
    row_bytes: usize,
    idle: Mutex<Vec<Worker>>,
    /// Memory of the idle workers of all pools of the model, bytes.
    idle_bytes: Arc<AtomicUsize>,
}

impl Pool {
    /// A pool for a part of a graph.
    pub(crate) fn new(part: Part, row_bytes: usize, idle_bytes: Arc<AtomicUsize>) -> Self {
        Self { part: part.wide(row_bytes > WIDE_ROW), row_bytes, idle: Mutex::default(), idle_bytes }
    }

    /// Memory of the activations of one row, bytes.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// An idle worker, or a new one. It returns to the pool when it is dropped.
    ///
    /// # Errors
    /// An error if ONNX Runtime cannot load the graph.
    pub(crate) fn acquire(pool: &Arc<Self>) -> Result<PooledWorker> {
        let idle = pool.idle.lock().pop();
        let worker = match idle {
            Some(worker) => {
                pool.idle_bytes.fetch_sub(worker.bytes(pool.row_bytes), Ordering::Relaxed);
                worker
            }
            None => {
                let session = pool.part.load(Purpose::Score)?;
                Worker { session, blocks: Vec::new(), scratch: HashMap::new(), rows: 0 }
            }
        };
        Ok(PooledWorker { pool: Arc::clone(pool), worker: Some(worker) })
    }
}

/// A worker that returns to its pool when this is dropped.
#[derive(Debug)]
pub struct PooledWorker {
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
}

impl Drop for PooledWorker {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let bytes = worker.bytes(self.pool.row_bytes);
            let mut idle = self.pool.idle.lock();
            let has_room = self.pool.idle_bytes.load(Ordering::Relaxed).saturating_add(bytes) <= MAX_IDLE_BYTES;
            if idle.len() < MAX_IDLE && has_room {
                self.pool.idle_bytes.fetch_add(bytes, Ordering::Relaxed);
                idle.push(worker);
            }
        }
    }
}
