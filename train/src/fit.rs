//! The training loop: epochs of shuffled batches, the learning rate of each, early stopping, the best epoch.

use std::sync::atomic::{AtomicBool, Ordering};

use aefusion_udfs::model::metadata::Epoch;
use datafusion::common::exec_err;
use datafusion::error::Result;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::dataset::Dataset;
use crate::evaluate::evaluate;
use crate::gradient::Objective;
use crate::key::mix;
use crate::network::Network;
use crate::optimizer::OptimizerKind;
use crate::step::Fitting;
use crate::watch::{Control, Watch, check};

/// How the learning rate changes over the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub(crate) enum Schedule {
    /// The learning rate does not change.
    Constant,
    /// A straight line down to zero after `max_iterations` epochs.
    Linear,
    /// Half a cosine down to zero after `max_iterations` epochs.
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate in an epoch, counted from 0.
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
pub(crate) struct FitOptions {
    /// Rows of a batch.
    pub(crate) batch_size: usize,
    pub(crate) learn_rate: f64,
    pub(crate) schedule: Schedule,
    pub(crate) optimizer: OptimizerKind,
    /// Factor of the penalty on the sum of the absolute weights.
    pub(crate) l1_reg: f64,
    /// Factor of the penalty on the sum of the squared weights.
    pub(crate) l2_reg: f64,
    /// Largest number of epochs.
    pub(crate) max_iterations: usize,
    pub(crate) early_stop: bool,
    /// An epoch is progress if it lowers the held-out loss by more than this share of it.
    pub(crate) min_rel_progress: f64,
    /// Number of epochs without progress after which training ends.
    pub(crate) patience: usize,
    pub(crate) seed: u64,
}

/// The data, the options and the watch of a fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FitContext<'a> {
    /// Rows to train on.
    pub(crate) train: &'a Dataset,
    /// Rows that decide when to stop; may be empty.
    pub(crate) held_out: &'a Dataset,
    pub(crate) options: &'a FitOptions,
    pub(crate) watch: &'a dyn Watch,
    /// Whether a stage has ended early, because the watch asked for it.
    pub(crate) is_interrupted: &'a AtomicBool,
}

impl FitContext<'_> {
    /// Checks, between two parts of a training, that it was not aborted.
    ///
    /// # Errors
    /// An execution error if it was aborted.
    pub(crate) fn check(&self) -> Result<()> {
        check(self.watch)
    }
}

/// A random generator for one use, keyed by `uses`: no use changes the numbers of another.
pub(crate) fn generator(seed: u64, uses: &[usize]) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(uses.iter().fold(seed, |state, value| mix(state, *value as u64)))
}

/// Counts epochs without progress.
///
/// # Source
/// The rule of PyTorch's `ReduceLROnPlateau` with `threshold_mode='rel'`, which waits for one epoch more than `patience`.
#[derive(Debug)]
pub(crate) struct EarlyStopping {
    min_rel_progress: f64,
    patience: usize,
    /// The loss of the last epoch that was progress.
    reference: f64,
    /// Epochs since then.
    waited: usize,
}

impl EarlyStopping {
    pub(crate) fn new(min_rel_progress: f64, patience: usize) -> Self {
        Self { min_rel_progress, patience, reference: f64::INFINITY, waited: 0 }
    }

    /// Adds the loss of an epoch; whether patience has ended.
    pub(crate) fn has_ended(&mut self, loss: f64) -> bool {
        if loss < self.reference * (1.0 - self.min_rel_progress) {
            (self.reference, self.waited) = (loss, 0);
        } else {
            self.waited += 1;
        }
        self.waited >= self.patience
    }
}

/// Fits `network`. Its parameters end as they were after the best epoch.
///
/// The result depends on the rows, their order, the options and the seed. It does not depend on the number of threads,
/// because the size of a batch alone decides how it is cut into shards.
///
/// # Errors
/// An execution error if the loss is not finite, or if the training is aborted.
pub(crate) fn fit(
    network: &mut Network,
    objective: &Objective,
    FitContext { train, held_out, options, watch, is_interrupted }: FitContext<'_>,
    stage: &str,
) -> Result<Vec<Epoch>> {
    watch.begin(stage, options.max_iterations, train.len());
    let range = network.range(objective.trained.clone());
    let mut fitting = Fitting::new(objective, options, network, watch);
    let mut history: Vec<Epoch> = Vec::new();
    let mut best = (f64::INFINITY, network.parameters[range.clone()].to_vec(), None);
    let mut stopping = EarlyStopping::new(options.min_rel_progress, options.patience);
    for epoch in 0..options.max_iterations {
        let learn_rate = options.learn_rate * options.schedule.factor(epoch, options.max_iterations);
        let loss = fitting.epoch(network, train, epoch, learn_rate, best.2.is_some())?;
        check(watch)?;
        // none if a better end than that of this epoch is known
        let Some(loss) = loss else {
            is_interrupted.store(true, Ordering::Relaxed);
            break;
        };
        let held_out_loss = evaluate(network, objective, held_out, options.seed, watch)?.map(|held_out| held_out.loss);
        let decisive = held_out_loss.unwrap_or(loss);
        for (part, loss) in [("training", Some(loss)), ("held-out", held_out_loss)] {
            if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
                return exec_err!(
                    "the loss of the {part} rows is {loss} after epoch {} of stage '{stage}': training diverged; set \
                     learn_rate below {}",
                    epoch + 1,
                    options.learn_rate
                );
            }
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
        let has_ended = stopping.has_ended(decisive);
        if options.early_stop && has_ended {
            break;
        }
        if watch.control() == Control::Finish {
            is_interrupted.fetch_or(epoch + 1 < options.max_iterations, Ordering::Relaxed);
            break;
        }
    }
    network.parameters[range].copy_from_slice(&best.1);
    if let Some(epoch) = best.2 {
        history[epoch].is_best = true;
    }
    Ok(history)
}
