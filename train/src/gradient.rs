//! One pass forward and backward over some rows: their loss, and the gradient of every trained parameter.

use std::ops::Range;

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::gemm::{Matrix, Write, multiply};
use crate::loss::{cross_entropy, reconstruction, sign};
use crate::network::Network;
use crate::noise::{Extremes, Noise};
use aefusion_udfs::numbers::to_f32;

/// The loss to minimise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The difference between the output and the input of layer `of`, mean over values and rows.
    Reconstruction {
        /// 0 for the rows themselves; otherwise the outputs of the layers before are reconstructed.
        of: usize,
        /// Whether the difference is absolute instead of squared.
        absolute: bool,
    },
    /// The cross-entropy between the output, as logits, and the labels.
    CrossEntropy,
}

/// A loss, its noise, dropout and penalty, and the layers to train.
#[derive(Debug, Clone)]
pub(crate) struct Objective {
    pub(crate) loss: Loss,
    /// Layers whose parameters change.
    pub(crate) trained: Range<usize>,
    /// Noise on the values to reconstruct, before the next layer reads them.
    pub(crate) noise: Option<Noise>,
    /// Share of units that are dropped, in each trained layer except the last one and the code.
    pub(crate) dropout: f32,
    /// The layer whose output is the code.
    pub(crate) code: Option<usize>,
    /// Factor of the penalty on the mean absolute code.
    pub(crate) l1_reg_activation: f32,
    /// The weight of each class in [`Loss::CrossEntropy`]; empty if all are 1.
    pub(crate) class_weights: Vec<f32>,
}

/// Rows in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `[rows, width]`, row-major, in the scaled space; NaN where a value is missing.
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
    /// The value that the network reads instead of a missing one, for each column.
    pub(crate) fill: &'a [f32],
    /// The smallest and the largest value of each column.
    pub(crate) extremes: &'a Extremes,
    /// One class a row; empty without labels.
    pub(crate) labels: &'a [u32],
}

/// Buffers and results of a pass; reused from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The input of each layer, then the output of the last.
    activations: Vec<Vec<f32>>,
    /// The values to reconstruct, without noise.
    target: Vec<f32>,
    /// With dropout, for each layer the factors of its units, and its output before dropout.
    dropped: Vec<(Vec<f32>, Vec<f32>)>,
    gradient: Vec<f32>,
    spare: Vec<f32>,
    labels: Vec<u32>,
    /// The gradients of the trained layers' parameters, in their order.
    pub(crate) gradients: Vec<f32>,
    /// The sum over the rows, with the penalty on the code.
    pub(crate) loss: f64,
}

impl Pass {
    /// Computes loss and gradients of the rows `indices`, which are part of a batch of `batch` rows.
    pub(crate) fn run(
        &mut self,
        network: &Network,
        objective: &Objective,
        rows: &Rows<'_>,
        indices: &[u32],
        batch: usize,
        rng: &mut Pcg64Mcg,
    ) {
        let n = indices.len();
        self.gather(network, rows, indices);
        self.forward(network, objective, rows.extremes, n, rng);
        self.measure(network, objective, n, batch);
        self.backward(network, objective, n, batch);
    }

    /// Computes the loss of the rows `indices`.
    pub(crate) fn evaluate(
        &mut self,
        network: &Network,
        objective: &Objective,
        rows: &Rows<'_>,
        indices: &[u32],
        rng: &mut Pcg64Mcg,
    ) {
        self.gather(network, rows, indices);
        self.forward(network, objective, rows.extremes, indices.len(), rng);
        self.measure(network, objective, indices.len(), indices.len());
    }

    /// The output of the last layer.
    pub(crate) fn output(&self) -> &[f32] {
        self.activations.last().map_or(&[], Vec::as_slice)
    }

    /// The labels of the rows.
    pub(crate) fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn gather(&mut self, network: &Network, rows: &Rows<'_>, indices: &[u32]) {
        let width = rows.width;
        self.target.clear();
        for index in indices {
            let start = *index as usize * width;
            self.target.extend_from_slice(&rows.values[start..start + width]);
        }
        self.labels.clear();
        if !rows.labels.is_empty() {
            self.labels.extend(indices.iter().map(|index| rows.labels[*index as usize]));
        }
        self.activations.resize_with(network.layers().len() + 1, Vec::new);
        self.dropped.resize_with(network.layers().len(), Default::default);
        let first = &mut self.activations[0];
        first.clone_from(&self.target);
        fill_missing(first, rows.fill);
    }

    fn forward(&mut self, network: &Network, objective: &Objective, extremes: &Extremes, n: usize, rng: &mut Pcg64Mcg) {
        for (index, layer) in network.layers().iter().enumerate() {
            let (given, next) = self.activations.split_at_mut(index + 1);
            let (given, next) = (&mut given[index], &mut next[0]);
            if objective.loss.is_of(index) {
                if index > 0 {
                    self.target.clone_from(given);
                }
                if let Some(noise) = objective.noise {
                    // the extremes of a hidden layer are known for these rows only
                    let own = (index > 0).then(|| Extremes::of(given, layer.inputs));
                    noise.add(given, own.as_ref().unwrap_or(extremes), rng);
                }
            }
            next.resize(n * layer.outputs, 0.0);
            network.run_layer(index, n, given, next);
            if objective.drops(index, network) {
                let (factors, before) = &mut self.dropped[index];
                before.clone_from(next);
                drop_units(next, factors, objective.dropout, rng);
            }
        }
    }

    /// The loss, and its gradient with respect to the output.
    fn measure(&mut self, network: &Network, objective: &Objective, n: usize, batch: usize) {
        let Some(output) = self.activations.last() else { return };
        let scale = to_f32(1.0 / batch as f64);
        let width = network.outputs();
        match objective.loss {
            Loss::Reconstruction { of, absolute } => {
                self.gradient.resize(n * width, 0.0);
                self.loss = reconstruction(&self.target, output, width, absolute, scale, &mut self.gradient);
                // only a value of a row can be missing: NaN in a hidden layer is an error
                if of > 0 && self.target.iter().any(|value| value.is_nan()) {
                    self.loss = f64::NAN;
                }
            }
            Loss::CrossEntropy => {
                self.gradient.clone_from(output);
                self.loss = cross_entropy(&mut self.gradient, width, &self.labels, &objective.class_weights, scale);
            }
        }
        if let (Some(code), true) = (objective.code, objective.l1_reg_activation > 0.0) {
            let units = network.layers()[code].outputs;
            let sum: f64 = self.activations[code + 1].iter().map(|value| f64::from(value.abs())).sum();
            self.loss += f64::from(objective.l1_reg_activation) * sum / units as f64;
        }
    }

    fn backward(&mut self, network: &Network, objective: &Objective, n: usize, batch: usize) {
        let trained = network.range(objective.trained.clone());
        self.gradients.resize(trained.len(), 0.0);
        for (index, layer) in network.layers().iter().enumerate().skip(objective.trained.start).rev() {
            let output = &self.activations[index + 1];
            if objective.code == Some(index) && objective.l1_reg_activation > 0.0 {
                let each = objective.l1_reg_activation * to_f32(1.0 / (batch * layer.outputs) as f64);
                for (gradient, value) in self.gradient.iter_mut().zip(output) {
                    *gradient += each * sign(*value);
                }
            }
            if objective.drops(index, network) {
                let (factors, before) = &self.dropped[index];
                self.gradient.iter_mut().zip(factors).for_each(|(gradient, factor)| *gradient *= factor);
                layer.activation.backward(before, &mut self.gradient);
            } else {
                layer.activation.backward(output, &mut self.gradient);
            }
            let gradient = Matrix::new(&self.gradient, n, layer.outputs);
            if objective.trained.contains(&index) {
                let start = network.range(index..index + 1).start - trained.start;
                let (weight, others) = self.gradients[start..].split_at_mut(layer.inputs * layer.outputs);
                let input = Matrix::new(&self.activations[index], n, layer.inputs);
                multiply(input.transposed(), gradient, weight, Write::Replace);
                sum_columns(&self.gradient, &mut others[..layer.outputs]);
            }
            if index > objective.trained.start {
                self.spare.resize(n * layer.inputs, 0.0);
                let weight = Matrix::new(network.weight(index), layer.inputs, layer.outputs);
                multiply(gradient, weight.transposed(), &mut self.spare, Write::Replace);
                std::mem::swap(&mut self.gradient, &mut self.spare);
            }
        }
    }
}

impl Loss {
    fn is_of(self, layer: usize) -> bool {
        matches!(self, Self::Reconstruction { of, .. } if of == layer)
    }
}

impl Objective {
    /// A loss without noise, dropout or penalty.
    pub(crate) fn plain(loss: Loss, trained: Range<usize>) -> Self {
        Self { loss, trained, noise: None, dropout: 0.0, code: None, l1_reg_activation: 0.0, class_weights: Vec::new() }
    }

    fn drops(&self, layer: usize, network: &Network) -> bool {
        self.dropout > 0.0
            && self.trained.contains(&layer)
            && layer + 1 < network.layers().len()
            && self.code != Some(layer)
    }
}

/// Replaces missing values (NaN) with `fill`, one value for each column.
pub(crate) fn fill_missing(values: &mut [f32], fill: &[f32]) {
    for row in values.chunks_exact_mut(fill.len().max(1)) {
        for (value, fill) in row.iter_mut().zip(fill) {
            *value = if value.is_nan() { *fill } else { *value };
        }
    }
}

/// Drops units at random, and scales the others up to keep the expected sum.
///
/// # Source
/// Inverted dropout, as `torch.nn.Dropout`.
fn drop_units(values: &mut [f32], factors: &mut Vec<f32>, share: f32, rng: &mut Pcg64Mcg) {
    let kept = 1.0 / (1.0 - share);
    factors.clear();
    factors.extend(values.iter().map(|_| if rng.random::<f32>() < share { 0.0 } else { kept }));
    values.iter_mut().zip(factors.iter()).for_each(|(value, factor)| *value *= factor);
}

fn sum_columns(rows: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}
