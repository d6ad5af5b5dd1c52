//! The loss and the accuracy of a network on rows, without a step.

use datafusion::error::Result;
use rayon::prelude::*;

use crate::dataset::{Dataset, NO_LABEL};
use crate::fit::generator;
use crate::gradient::{Loss, Objective, Pass, Rows};
use crate::loss::hits;
use crate::network::{BLOCK_ROWS, Network};

/// The results of a network on rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evaluation {
    /// Mean loss of the rows, without dropout.
    pub(crate) loss: f64,
    /// Share of the rows whose largest logit is that of their label; 0 without labels.
    pub(crate) accuracy: f64,
}

/// Evaluates a network on rows in blocks of [`BLOCK_ROWS`]. Every call draws the same noise.
///
/// Returns none if there are no rows, or if labels are needed and no row has one.
///
/// # Errors
/// An execution error if the rows cannot be read back.
pub(crate) fn evaluate(
    network: &Network,
    objective: &Objective,
    dataset: &Dataset,
    seed: u64,
) -> Result<Option<Evaluation>> {
    let objective = Objective { dropout: 0.0, ..objective.clone() };
    let (mut loss, mut right, mut n, mut part) = (0.0, 0, 0_usize, 0_usize);
    dataset.visit(None, |rows, indices| {
        let labelled = labelled(&objective, rows, indices);
        let indices = labelled.as_deref().unwrap_or(indices);
        let results: Vec<(f64, usize)> = indices
            .par_chunks(BLOCK_ROWS)
            .enumerate()
            .map_init(Pass::default, |pass, (block, indices)| {
                let mut rng = generator(seed, &[3, part, block]);
                pass.evaluate(network, &objective, rows, indices, &mut rng);
                let right = match objective.loss {
                    Loss::CrossEntropy => hits(pass.output(), network.outputs(), pass.labels()),
                    Loss::Reconstruction { .. } => 0,
                };
                (pass.loss, right)
            })
            .collect();
        for (block_loss, block_right) in results {
            loss += block_loss;
            right += block_right;
        }
        n += indices.len();
        part += 1;
        Ok(true)
    })?;
    let rows = n as f64;
    Ok((n > 0).then(|| Evaluation { loss: loss / rows, accuracy: right as f64 / rows }))
}

/// The rows that have a label, if the loss needs labels; none stands for all rows.
pub(crate) fn labelled(objective: &Objective, rows: &Rows<'_>, indices: &[u32]) -> Option<Vec<u32>> {
    (objective.loss == Loss::CrossEntropy)
        .then(|| indices.iter().copied().filter(|index| rows.labels[*index as usize] != NO_LABEL).collect())
}
