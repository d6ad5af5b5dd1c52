//! The memory that a run takes, before it runs.

use datafusion_common::error::Result;

use super::{Request, sources, tensors};
use crate::contract::TensorSpec;
use crate::matrix::Rows;
use crate::model::{Model, Start};

/// Memory of the outputs of one batch, with what is made of them, bytes. More rows become several batches.
const OUTPUT_BYTES: usize = 32 << 20;

/// The memory of a run over rows.
///
/// Sub-graphs, such as the body of a loop, and the working memory of kernels do not count.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Of all rows: casts, outputs that are kept, and results.
    rows: usize,
    /// Of one row of a block: activations, inputs, and outputs that are not kept.
    block_row: usize,
}

impl Memory {
    /// The memory of a run that [`super::score`] would do.
    ///
    /// # Errors
    /// A planning error if the model lacks an output.
    pub fn of(model: &Model, start: Start, rows: &Rows, request: &Request) -> Result<Self> {
        let contract = model.contract();
        let (tensors, _) = tensors(contract, request)?;
        let inputs = sources(contract, start)?;
        let (mut first, mut casts) = (0, 0_usize);
        for input in &inputs {
            casts = casts.saturating_add(rows.cast_bytes(input, first));
            first += input.width();
        }
        let kept = kept_bytes(model, request)?;
        let block = inputs.iter().chain(&tensors).map(|tensor| bytes(tensor)).sum::<usize>();
        Ok(Self {
            rows: casts.saturating_add(rows.len().saturating_mul(kept)),
            block_row: block.saturating_add(model.pool(start, &tensors)?.row_bytes()),
        })
    }

    /// Of blocks of this number of rows, bytes.
    pub fn bytes(&self, block_rows: usize) -> usize {
        self.rows.saturating_add(self.block_row.saturating_mul(block_rows))
    }
}

/// Largest number of rows whose outputs are kept together. A block or more, and 16 rows or more.
///
/// # Errors
/// A planning error if the model lacks an output.
pub fn batch_rows(model: &Model, start: Start, request: &Request, block_rows: usize) -> Result<usize> {
    let inputs: usize = sources(model.contract(), start)?.into_iter().map(bytes).sum();
    let rows = OUTPUT_BYTES / kept_bytes(model, request)?.saturating_add(inputs).max(1);
    Ok((rows / block_rows).max(1).saturating_mul(block_rows))
}

/// Memory of what is kept of one row: outputs, as matrices and as results, and parts of the error.
fn kept_bytes(model: &Model, request: &Request) -> Result<usize> {
    /// A feature of `ae_contributions`: its part, its place, and an entry of the list.
    const PART: usize = 80;
    let contract = model.contract();
    let roles = request.roles.iter().map(|role| Ok(2 * bytes(contract.require(*role)?)));
    let parts = if request.parts { PART * contract.features.len() } else { 0 };
    Ok(roles.sum::<Result<usize>>()?.saturating_add(parts).saturating_add(size_of::<f64>()))
}

/// Memory of a row of a tensor, bytes. Outputs of other types than `Float64` become `Float32`.
fn bytes(tensor: &TensorSpec) -> usize {
    tensor.width().saturating_mul(tensor.element.bytes().max(size_of::<f32>()))
}
