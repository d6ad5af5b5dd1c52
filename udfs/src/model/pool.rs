//! Sessions of one graph, shared by the queries and partitions that run it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::internal_err;
use datafusion::error::Result;
use parking_lot::Mutex;

use super::onnx::encode;
use super::onnx::proto::ModelProto;
use super::runtime::{Purpose, Session, Weights};
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
    /// What all sessions of this pool read their weights from.
    weights: Weights,
    idle: Mutex<Vec<Worker>>,
}

impl Pool {
    /// # Errors
    /// An error if ONNX Runtime is not there.
    pub(crate) fn new(part: &ModelProto) -> Result<Self> {
        Ok(Self { graph: encode(part), weights: Weights::of(part)?, idle: Mutex::default() })
    }

    /// An idle worker, or a new one; it is kept for the next when it is dropped.
    ///
    /// # Errors
    /// An error if ONNX Runtime cannot load the graph.
    pub(crate) fn lend(pool: &Arc<Self>) -> Result<Lent> {
        let idle = pool.idle.lock().pop();
        let worker = match idle {
            Some(worker) => worker,
            None => {
                let session = Session::load(&pool.graph, Purpose::Score, Some(&pool.weights))?;
                Worker { session, blocks: Vec::new(), scratch: HashMap::new() }
            }
        };
        Ok(Lent { pool: Arc::clone(pool), worker: Some(worker) })
    }
}

/// A worker on loan: it goes back to its pool when this is dropped.
#[derive(Debug)]
pub(crate) struct Lent {
    pool: Arc<Pool>,
    /// Taken only by `drop`.
    worker: Option<Worker>,
}

impl Lent {
    /// # Errors
    /// Never: a worker is taken only when it is given back.
    pub(crate) fn worker(&mut self) -> Result<&mut Worker> {
        match &mut self.worker {
            Some(worker) => Ok(worker),
            None => internal_err!("a session was used after it was given back"),
        }
    }

    /// Memory of its blocks.
    pub(crate) fn bytes(&self) -> usize {
        let Some(worker) = &self.worker else { return 0 };
        worker.blocks.iter().map(Block::bytes).sum::<usize>()
            + worker.scratch.values().map(Numbers::bytes).sum::<usize>()
    }

    /// Memory of its session, with the weights, of which all sessions of a pool have one copy.
    pub(crate) fn session_bytes(&self) -> usize {
        self.pool.graph.len()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let mut idle = self.pool.idle.lock();
            if idle.len() < KEPT {
                idle.push(worker);
            }
        }
    }
}
