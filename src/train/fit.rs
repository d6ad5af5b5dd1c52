//! The training loop: epochs of shuffled batches, each batch in shards whose gradients are added in a fixed order.

use std::fmt;

use aefusion_udfs::model::metadata::Epoch;
use aefusion_udfs::named::Named;
use datafusion::common::exec_err;
use datafusion::error::Result;
use multiversion::multiversion;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use super::gradient::{Loss, Objective, Pass, Rows};
use super::loss::{hits, sign};
use super::network::{BLOCK_ROWS, Network};
use super::optimizer::{Optimizer, OptimizerKind};
use super::samples::{NO_LABEL, Samples};
use crate::narrow::to_f32;

/// How the learning rate changes over the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schedule {
    /// It does not.
    Constant,
    /// Down to zero after `max_iterations` epochs, in a straight line.
    Linear,
    /// Down to zero after `max_iterations` epochs, along half a cosine.
    Cosine,
}

impl Named for Schedule {
    const NAMES: &'static [(&'static str, Self)] =
        &[("constant", Self::Constant), ("linear", Self::Linear), ("cosine", Self::Cosine)];
}

impl Schedule {
    fn factor(self, epoch: usize, epochs: usize) -> f64 {
        let done = epoch as f64 / epochs.max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

/// How a network is fitted.
#[derive(Debug, Clone)]
pub(super) struct FitOptions {
    pub(super) batch_size: usize,
    pub(super) learn_rate: f64,
    pub(super) schedule: Schedule,
    pub(super) optimizer: OptimizerKind,
    /// Added to the loss: this times the sum of the absolute weights.
    pub(super) l1_reg: f64,
    /// Added to the loss: this times the sum of the squared weights.
    pub(super) l2_reg: f64,
    /// Most epochs.
    pub(super) max_iterations: usize,
    pub(super) early_stop: bool,
    /// An epoch counts as progress if it lowers the held-out loss by more than this share.
    pub(super) min_rel_progress: f64,
    /// Epochs without progress after which training ends.
    pub(super) patience: usize,
    pub(super) seed: u64,
}

/// Who watches a training.
pub trait Watch: fmt::Debug + Send + Sync {
    /// A training is to begin; whether an interrupt should end it with its best epoch, or without a result.
    fn interrupts_keep(&self, keep: bool);

    /// A part of the training begins, of at most so many epochs over so many rows.
    fn begin(&self, stage: &str, epochs: usize, rows: usize);

    /// Some rows of an epoch are done.
    fn rows(&self, rows: usize);

    /// An epoch is done; without rows held out there is only the first loss.
    fn epoch(&self, epoch: usize, loss: f64, held_out_loss: Option<f64>);

    /// The training is done: what came out, by name.
    fn finished(&self, summary: &[(&'static str, serde_json::Value)]);

    /// Whether to go on.
    fn wish(&self) -> Wish;
}

/// What is to happen next in a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It goes on.
    GoOn,
    /// It ends with the best epoch so far.
    Finish,
    /// It ends without a result.
    GiveUp,
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn interrupts_keep(&self, _: bool) {}

    fn begin(&self, _: &str, _: usize, _: usize) {}

    fn rows(&self, _: usize) {}

    fn epoch(&self, _: usize, _: f64, _: Option<f64>) {}

    fn finished(&self, _: &[(&'static str, serde_json::Value)]) {}

    fn wish(&self) -> Wish {
        Wish::GoOn
    }
}

/// What a network is fitted to, how, and who watches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounds<'a> {
    pub(super) samples: &'a Samples,
    /// Rows that stopping is decided on.
    pub(super) held_out: &'a Samples,
    pub(super) options: &'a FitOptions,
    pub(super) watch: &'a dyn Watch,
}

impl Rounds<'_> {
    /// That the training goes on, between its parts.
    ///
    /// # Errors
    /// An execution error if it was given up.
    pub(super) fn check(&self) -> Result<()> {
        match self.watch.wish() {
            Wish::GiveUp => exec_err!("the training was given up; nothing is published"),
            Wish::GoOn | Wish::Finish => Ok(()),
        }
    }
}

/// A generator for one use, so that no use changes what another draws.
pub(super) fn generator(seed: u64, uses: &[usize]) -> Pcg64Mcg {
    let mut state = seed;
    for value in uses {
        // one round of SplitMix64
        state = state.wrapping_add(*value as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
        state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        state ^= state >> 31;
    }
    Pcg64Mcg::seed_from_u64(state)
}

/// Fits `network`, which ends as it was after its best epoch.
///
/// The result depends on the rows, their order, the options and the seed, not on the number of threads: a batch is cut
/// into shards by its size alone.
///
/// # Errors
/// An execution error if the loss is no longer a number, or if it is given up.
pub(super) fn fit(
    network: &mut Network,
    objective: &Objective,
    Rounds { samples, held_out, options, watch }: Rounds<'_>,
    stage: &str,
) -> Result<Vec<Epoch>> {
    watch.begin(stage, options.max_iterations, samples.len());
    let range = network.range(objective.trained.clone());
    let mut fitting = Fitting::new(objective, options, network, watch);
    let mut history: Vec<Epoch> = Vec::new();
    let mut best = (f64::INFINITY, network.parameters[range.clone()].to_vec(), None);
    let mut reference = f64::INFINITY;
    let mut waited = 0;
    for epoch in 0..options.max_iterations {
        let learn_rate = options.learn_rate * options.schedule.factor(epoch, options.max_iterations);
        let loss = fitting.epoch(network, samples, epoch, learn_rate)?;
        if watch.wish() == Wish::GiveUp {
            return exec_err!("the training was given up in epoch {}; nothing is published", epoch + 1);
        }
        let held_out_loss = evaluate(network, objective, held_out, options.seed)?.map(|held_out| held_out.loss);
        let decisive = held_out_loss.unwrap_or(loss);
        if !decisive.is_finite() || !loss.is_finite() {
            return exec_err!(
                "the loss is {loss} after epoch {} of stage '{stage}': training diverges; give a smaller learn_rate than {}",
                epoch + 1,
                options.learn_rate
            );
        }
        watch.epoch(epoch + 1, loss, held_out_loss);
        history.push(Epoch {
            stage: stage.to_owned(),
            epoch: epoch as u64 + 1,
            loss,
            held_out_loss,
            learn_rate,
            is_best: false,
        });
        if decisive < best.0 {
            best.0 = decisive;
            best.1.copy_from_slice(&network.parameters[range.clone()]);
            best.2 = Some(epoch);
        }
        if decisive < reference * (1.0 - options.min_rel_progress) {
            (reference, waited) = (decisive, 0);
        } else {
            waited += 1;
        }
        if watch.wish() == Wish::Finish || options.early_stop && waited >= options.patience {
            break;
        }
    }
    network.parameters[range].copy_from_slice(&best.1);
    if let Some(epoch) = best.2 {
        history[epoch].is_best = true;
    }
    Ok(history)
}

/// A training under way.
pub(super) struct Fitting<'a> {
    objective: &'a Objective,
    options: &'a FitOptions,
    optimizer: Optimizer,
    passes: Vec<Pass>,
    gradients: Vec<f32>,
    watch: &'a dyn Watch,
}

impl<'a> Fitting<'a> {
    pub(super) fn new(
        objective: &'a Objective,
        options: &'a FitOptions,
        network: &Network,
        watch: &'a dyn Watch,
    ) -> Self {
        let n = network.range(objective.trained.clone()).len();
        let optimizer = Optimizer::new(options.optimizer, n);
        Self { objective, options, optimizer, passes: Vec::new(), gradients: vec![0.0; n], watch }
    }

    /// Of the last batch.
    #[cfg(test)]
    pub(super) fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// The mean loss of an epoch.
    fn epoch(&mut self, network: &mut Network, samples: &Samples, epoch: usize, learn_rate: f64) -> Result<f64> {
        let mut shuffle = generator(self.options.seed, &[1, epoch]);
        let (mut sum, mut n, mut batches) = (0.0, 0_usize, 0_usize);
        samples.visit(Some(&mut shuffle), |rows, indices| {
            let labelled = labelled(self.objective, rows, indices);
            for batch in labelled.as_deref().unwrap_or(indices).chunks(self.options.batch_size) {
                sum += self.batch(network, rows, batch, [epoch, batches], learn_rate);
                n += batch.len();
                batches += 1;
                self.watch.rows(batch.len());
                if self.watch.wish() == Wish::GiveUp {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if n == 0 {
            return exec_err!("none of the rows to train on has a label; give more rows with labels");
        }
        Ok(sum / n as f64)
    }

    /// One step; the sum of the losses of its rows.
    pub(super) fn batch(
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
        add_up(passes, &mut self.gradients);
        self.regularise(network, learn_rate);
        let range = network.range(self.objective.trained.clone());
        self.optimizer.step(learn_rate, &mut network.parameters[range], &self.gradients);
        self.bound_decoder(network);
        passes_loss(&self.passes[..shards])
    }

    /// Adds the gradients of the penalties on the weights.
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

    /// With a penalty on the code, keeps each unit's weights in the decoder at most as long as a row of the scaled space
    /// usually is: else a small code and large weights would evade it.
    fn bound_decoder(&self, network: &mut Network) {
        let Some(code) = self.objective.code.filter(|_| self.objective.l1_reg_activation > 0.0) else { return };
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

/// Number of parts of a batch: so many that each is worth a thread, by the size of the batch and the network alone.
fn shards(rows: usize, parameters: usize) -> usize {
    const WORTH: usize = 2_000_000;
    const LEAST_ROWS: usize = 128;
    const MOST: usize = 16;
    (rows.saturating_mul(parameters) / WORTH).min(rows / LEAST_ROWS).clamp(1, MOST)
}

/// The sum of the gradients of all passes, in their order.
fn add_up(passes: &[Pass], sums: &mut [f32]) {
    const CHUNK: usize = 1 << 15;
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

fn passes_loss(passes: &[Pass]) -> f64 {
    passes.iter().map(|pass| pass.loss).sum()
}

/// The rows that have a label, where one is needed; none: all.
fn labelled(objective: &Objective, rows: &Rows<'_>, indices: &[u32]) -> Option<Vec<u32>> {
    (objective.loss == Loss::CrossEntropy)
        .then(|| indices.iter().copied().filter(|index| rows.labels[*index as usize] != NO_LABEL).collect())
}

/// What a network comes to on rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Evaluation {
    /// Mean over the rows, without dropout.
    pub(super) loss: f64,
    /// Share of rows whose largest logit is that of their label.
    pub(super) accuracy: f64,
}

/// Measures a network on rows, if there are any (with labels, where those are needed); noise is the same each time.
///
/// # Errors
/// An execution error if the rows cannot be read back.
pub(super) fn evaluate(
    network: &Network,
    objective: &Objective,
    samples: &Samples,
    seed: u64,
) -> Result<Option<Evaluation>> {
    let objective = Objective { dropout: 0.0, ..objective.clone() };
    let (mut loss, mut right, mut n, mut part) = (0.0, 0, 0_usize, 0_usize);
    samples.visit(None, |rows, indices| {
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
