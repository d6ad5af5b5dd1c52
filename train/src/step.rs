//! The steps of an epoch. Each batch is cut into shards, and their gradients are added in a fixed order.

use std::time::{Duration, Instant};

use datafusion::common::exec_err;
use datafusion::error::Result;
use multiversion::multiversion;
use rayon::prelude::*;

use crate::dataset::Dataset;
use crate::evaluate::labelled;
use crate::fit::{FitOptions, generator};
use crate::gradient::{Loss, Objective, Pass, Rows};
use crate::loss::sign;
use crate::network::Network;
use crate::optimizer::{Optimizer, OptimizerKind};
use crate::watch::{Control, Watch};
use aefusion_udfs::numbers::to_f32;

/// Parameters whose gradients one task adds up.
const CHUNK: usize = 1 << 15;

/// The state of an optimisation: the optimizer, and buffers that are reused from step to step.
pub(crate) struct Fitting<'a> {
    objective: &'a Objective,
    options: &'a FitOptions,
    optimizer: Optimizer,
    passes: Vec<Pass>,
    gradients: Vec<f32>,
    watch: &'a dyn Watch,
}

impl<'a> Fitting<'a> {
    pub(crate) fn new(
        objective: &'a Objective,
        options: &'a FitOptions,
        network: &Network,
        watch: &'a dyn Watch,
    ) -> Self {
        let n = network.range(objective.trained.clone()).len();
        let optimizer = Optimizer::new(options.optimizer, n);
        Self { objective, options, optimizer, passes: Vec::new(), gradients: vec![0.0; n], watch }
    }

    /// The gradients of the last batch.
    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Runs one epoch over shuffled rows, and returns its mean loss.
    ///
    /// The epoch ends early if the training is aborted, or is asked to finish. An earlier epoch is then the result if
    /// `has_best`: this one returns none. Otherwise this epoch is the result, and has a fraction of a second.
    ///
    /// # Errors
    /// An execution error if labels are needed and no row has one, or if the rows cannot be read back.
    pub(crate) fn epoch(
        &mut self,
        network: &mut Network,
        dataset: &Dataset,
        epoch: usize,
        learn_rate: f64,
        has_best: bool,
    ) -> Result<Option<f64>> {
        const AT_LEAST: Duration = Duration::from_millis(200);
        let (started, mut is_early) = (Instant::now(), false);
        let mut shuffle = generator(self.options.seed, &[1, epoch]);
        let (mut sum, mut n, mut batches) = (0.0, 0_usize, 0_usize);
        dataset.visit(Some(&mut shuffle), |rows, indices| {
            let labelled = labelled(self.objective, rows, indices);
            for batch in labelled.as_deref().unwrap_or(indices).chunks(self.options.batch_size) {
                sum += self.batch(network, rows, batch, [epoch, batches], learn_rate);
                n += batch.len();
                batches += 1;
                self.watch.rows(batch.len());
                is_early = match self.watch.control() {
                    Control::Abort => true,
                    Control::Finish => has_best || started.elapsed() > AT_LEAST,
                    Control::Continue => false,
                };
                if is_early {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if n == 0 {
            return exec_err!("no training row has a label; add rows with labels");
        }
        Ok((!is_early || !has_best).then_some(sum / n as f64))
    }

    /// Makes one step on a batch, and returns the sum of the losses of its rows.
    pub(crate) fn batch(
        &mut self,
        network: &mut Network,
        rows: &Rows<'_>,
        batch: &[u32],
        [epoch, number]: [usize; 2],
        learn_rate: f64,
    ) -> f64 {
        let shard_rows = batch.len().div_ceil(shards(batch.len(), network.parameters.len()));
        let shards = batch.len().div_ceil(shard_rows);
        self.passes.resize_with(self.passes.len().max(shards), Pass::default);
        let passes = &mut self.passes[..shards];
        let (objective, seed) = (self.objective, self.options.seed);
        let run = |(shard, (pass, indices)): (usize, (&mut Pass, &[u32]))| {
            let mut rng = generator(seed, &[2, epoch, number, shard]);
            pass.run(network, objective, rows, indices, batch.len(), &mut rng);
        };
        match shards {
            1 => run((0, (&mut passes[0], batch))),
            _ => passes.par_iter_mut().zip(batch.par_chunks(shard_rows)).enumerate().for_each(run),
        }
        add_gradients(passes, &mut self.gradients);
        self.regularise(network, learn_rate);
        let range = network.range(self.objective.trained.clone());
        self.optimizer.step(learn_rate, &mut network.parameters[range], &self.gradients);
        self.bound_decoder(network);
        self.passes[..shards].iter().map(|pass| pass.loss).sum()
    }

    /// Adds the gradients of the penalties on the weights; AdamW shrinks the weights directly. Biases have no penalty.
    fn regularise(&mut self, network: &mut Network, learn_rate: f64) {
        let (l1, l2) = (to_f32(self.options.l1_reg), to_f32(self.options.l2_reg));
        if l1 <= 0.0 && l2 <= 0.0 {
            return;
        }
        let start = network.range(self.objective.trained.clone()).start;
        for layer in self.objective.trained.clone() {
            let range = network.weight_range(layer);
            let gradients = &mut self.gradients[range.start - start..range.end - start];
            let weights = &mut network.parameters[range];
            for (gradient, weight) in gradients.iter_mut().zip(weights.iter_mut()) {
                *gradient += l1 * sign(*weight);
                match self.options.optimizer {
                    OptimizerKind::AdamW => *weight *= to_f32(1.0 - learn_rate * self.options.l2_reg),
                    _ => *gradient += 2.0 * l2 * *weight,
                }
            }
        }
    }

    /// With a penalty on the code, bounds the decoder weights of each code unit by the normal length of a row in the
    /// scaled space. Without this bound, a small code and large weights would evade the penalty.
    fn bound_decoder(&self, network: &mut Network) {
        let Objective { loss, trained, code, l1_reg_activation, .. } = self.objective;
        // the layer after the code of a classifier is its head
        let is_decoder = |code: &usize| matches!(loss, Loss::Reconstruction { .. }) && trained.contains(code);
        let Some(code) = code.filter(|_| *l1_reg_activation > 0.0).filter(is_decoder) else { return };
        let Some(decoder) = network.layers().get(code + 1).copied() else { return };
        let range = network.weight_range(code + 1);
        let longest = to_f32((decoder.outputs as f64).sqrt());
        for weights in network.parameters[range].chunks_exact_mut(decoder.outputs) {
            let length = weights.iter().map(|weight| weight * weight).sum::<f32>().sqrt();
            if length > longest {
                weights.iter_mut().for_each(|weight| *weight *= longest / length);
            }
        }
    }
}

/// The number of shards of a batch. It depends on the batch and the network alone, never on the number of threads. Each
/// shard is large enough to be worth a thread.
fn shards(rows: usize, parameters: usize) -> usize {
    const WORTH: usize = 2_000_000;
    const LEAST_ROWS: usize = 128;
    const MOST: usize = 16;
    (rows.saturating_mul(parameters) / WORTH).min(rows / LEAST_ROWS).clamp(1, MOST)
}

/// Sums the gradients of all passes, in their order.
fn add_gradients(passes: &[Pass], sums: &mut [f32]) {
    let add = |(index, sums): (usize, &mut [f32])| {
        let start = index * CHUNK;
        for (number, pass) in passes.iter().enumerate() {
            let gradients = &pass.gradients[start..start + sums.len()];
            match number {
                0 => sums.copy_from_slice(gradients),
                _ => add(sums, gradients),
            }
        }
    };
    match sums.len() <= CHUNK {
        true => add((0, sums)),
        false => sums.par_chunks_mut(CHUNK).enumerate().for_each(add),
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::BLOCK_ROWS;

    /// `tests/it.rs` trains this network with 1, 2, 5 and 16 threads. Its result proves something only if every part of
    /// a training that runs in parallel has several tasks.
    #[test]
    fn the_training_with_many_threads_has_many_tasks() {
        let widths = [20, 256, 64, 256, 20];
        let parameters: usize = widths.windows(2).map(|pair| (pair[0] + 1) * pair[1]).sum();
        assert_eq!(shards(2048, parameters), 16);
        assert!(parameters > CHUNK.max(crate::optimizer::CHUNK), "{parameters} parameters");
        let held_out_rows = 600;
        assert!(held_out_rows > BLOCK_ROWS);
    }

    #[test]
    fn shards_are_large_enough_and_at_most_sixteen() {
        assert_eq!(shards(32, 1_000_000), 1, "too few rows");
        assert_eq!(shards(2048, 900), 1, "too little work");
        assert_eq!(shards(256, 15_625), 2);
        assert_eq!(shards(1 << 20, 1 << 20), 16);
    }
}
