//! Optimizers.

use multiversion::multiversion;
use rayon::prelude::*;
use strum::{EnumString, IntoStaticStr, VariantNames};

use aefusion_udfs::numbers::to_f32;

/// Parameters that one task updates.
pub(crate) const CHUNK: usize = 1 << 15;

/// Optimizers. Constants match PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub(crate) enum OptimizerKind {
    /// Kingma and Ba (2015).
    Adam,
    /// Adam, and `l2_reg` shrinks the weights directly (Loshchilov and Hutter, 2019).
    AdamW,
    /// Stochastic gradient descent without momentum.
    Sgd,
    /// Gradient descent, divided by the root of the running mean of the squared gradient.
    RmsProp,
}

/// An optimizer, with its running means of the gradients.
#[derive(Debug)]
pub(crate) struct Optimizer {
    kind: OptimizerKind,
    means: Vec<f32>,
    squares: Vec<f32>,
    steps: i32,
}

impl Optimizer {
    /// An optimizer of `parameters` parameters.
    pub(crate) fn new(kind: OptimizerKind, parameters: usize) -> Self {
        let memory = |is_used: bool| if is_used { vec![0.0; parameters] } else { Vec::new() };
        let is_adam = matches!(kind, OptimizerKind::Adam | OptimizerKind::AdamW);
        Self { kind, means: memory(is_adam), squares: memory(kind != OptimizerKind::Sgd), steps: 0 }
    }

    /// Makes one step. Large networks use all threads, with the same result.
    pub(crate) fn step(&mut self, learn_rate: f64, parameters: &mut [f32], gradients: &[f32]) {
        self.steps = self.steps.saturating_add(1);
        let chunks = parameters.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK));
        match self.kind {
            OptimizerKind::Adam | OptimizerKind::AdamW => {
                let rate = to_f32(learn_rate / (1.0 - 0.9_f64.powi(self.steps)));
                let correction = to_f32(1.0 / (1.0 - 0.999_f64.powi(self.steps)));
                let memory = self.means.par_chunks_mut(CHUNK).zip(self.squares.par_chunks_mut(CHUNK));
                chunks.zip(memory).for_each(|((parameters, gradients), (means, squares))| {
                    adam(rate, correction, parameters, gradients, means, squares);
                });
            }
            OptimizerKind::Sgd => {
                let rate = to_f32(learn_rate);
                chunks.for_each(|(parameters, gradients)| {
                    parameters.iter_mut().zip(gradients).for_each(|(p, g)| *p -= rate * g);
                });
            }
            OptimizerKind::RmsProp => {
                let rate = to_f32(learn_rate);
                chunks.zip(self.squares.par_chunks_mut(CHUNK)).for_each(|((parameters, gradients), squares)| {
                    rmsprop(rate, parameters, gradients, squares);
                });
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn adam(rate: f32, correction: f32, parameters: &mut [f32], gradients: &[f32], means: &mut [f32], squares: &mut [f32]) {
    for (((p, g), m), s) in parameters.iter_mut().zip(gradients).zip(means).zip(squares) {
        *m = 0.9 * *m + 0.1 * g;
        *s = 0.999 * *s + 0.001 * g * g;
        *p -= rate * *m / ((*s * correction).sqrt() + 1e-8);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn rmsprop(rate: f32, parameters: &mut [f32], gradients: &[f32], squares: &mut [f32]) {
    for ((p, g), s) in parameters.iter_mut().zip(gradients).zip(squares) {
        *s = 0.99 * *s + 0.01 * g * g;
        *p -= rate * g / (s.sqrt() + 1e-8);
    }
}
