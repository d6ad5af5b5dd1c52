//! Dense networks, with all parameters in one vector.

use std::ops::Range;

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use crate::activation::Activation;
use crate::gemm::{Matrix, Write, multiply};
use aefusion_udfs::numbers::to_f32;

/// Rows that a network evaluates together.
pub(crate) const BLOCK_ROWS: usize = 512;

/// A dense layer: `activation(x · weight + bias)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) activation: Activation,
}

impl Layer {
    fn weights(&self) -> usize {
        self.inputs * self.outputs
    }

    fn parameters(&self) -> usize {
        self.weights() + self.outputs
    }
}

/// A sequence of layers. Each layer has as many inputs as the layer before has outputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    layers: Vec<Layer>,
    /// For each layer, its weight `[inputs, outputs]`, row-major, then its bias `[outputs]`.
    pub(crate) parameters: Vec<f32>,
}

impl Network {
    /// A network with zero biases and random weights. The weights are uniform, and their variance keeps the activations at
    /// one scale.
    ///
    /// # Source
    /// LeCun et al. (1998) for SELU, Glorot and Bengio (2010) otherwise. The larger weights of He et al. (2015) for
    /// rectifiers made denoising of digits 0.6 dB worse.
    pub(crate) fn random(layers: Vec<Layer>, rng: &mut Pcg64Mcg) -> Self {
        let mut parameters = Vec::with_capacity(layers.iter().map(Layer::parameters).sum());
        for layer in &layers {
            let (inputs, outputs) = (layer.inputs as f64, layer.outputs as f64);
            let variance = match layer.activation {
                Activation::Selu => 1.0 / inputs,
                _ => 2.0 / (inputs + outputs),
            };
            let limit = to_f32((3.0 * variance).sqrt());
            parameters.extend((0..layer.weights()).map(|_| rng.random_range(-limit..=limit)));
            parameters.resize(parameters.len() + layer.outputs, 0.0);
        }
        Self { layers, parameters }
    }

    /// A network with these parameters; none if widths or number of parameters do not match.
    pub(crate) fn of(layers: Vec<Layer>, parameters: Vec<f32>) -> Option<Self> {
        let fits = layers.windows(2).all(|pair| pair[0].outputs == pair[1].inputs);
        let wanted: usize = layers.iter().map(Layer::parameters).sum();
        (fits && wanted == parameters.len()).then_some(Self { layers, parameters })
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn inputs(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.inputs)
    }

    pub(crate) fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.outputs)
    }

    /// Where the parameters of some layers stand.
    pub(crate) fn range(&self, layers: Range<usize>) -> Range<usize> {
        let count = |layers: &[Layer]| layers.iter().map(Layer::parameters).sum::<usize>();
        let start = count(&self.layers[..layers.start]);
        start..start + count(&self.layers[layers])
    }

    /// The range of a layer's weight among the parameters; its bias follows.
    pub(crate) fn weight_range(&self, layer: usize) -> Range<usize> {
        let start = self.range(layer..layer + 1).start;
        start..start + self.layers[layer].weights()
    }

    fn bias_range(&self, layer: usize) -> Range<usize> {
        let start = self.weight_range(layer).end;
        start..start + self.layers[layer].outputs
    }

    /// `[inputs, outputs]`, row-major.
    pub(crate) fn weight(&self, layer: usize) -> &[f32] {
        &self.parameters[self.weight_range(layer)]
    }

    /// `[outputs]`
    pub(crate) fn bias(&self, layer: usize) -> &[f32] {
        &self.parameters[self.bias_range(layer)]
    }

    /// `[outputs]`
    pub(crate) fn bias_mut(&mut self, layer: usize) -> &mut [f32] {
        let range = self.bias_range(layer);
        &mut self.parameters[range]
    }

    /// This network, followed by another.
    pub(crate) fn then(&self, next: &Self) -> Self {
        let layers = [self.layers(), next.layers()].concat();
        Self { layers, parameters: [self.parameters.as_slice(), &next.parameters].concat() }
    }

    /// The layers before `at`, and the others.
    pub(crate) fn split(&self, at: usize) -> (Self, Self) {
        let middle = self.range(0..at).end;
        let part =
            |layers: &[Layer], parameters: &[f32]| Self { layers: layers.to_vec(), parameters: parameters.to_vec() };
        (part(&self.layers[..at], &self.parameters[..middle]), part(&self.layers[at..], &self.parameters[middle..]))
    }

    /// Computes one layer for `rows` rows.
    pub(crate) fn run_layer(&self, layer: usize, rows: usize, input: &[f32], output: &mut [f32]) {
        let Layer { inputs, outputs, activation } = self.layers[layer];
        let output = &mut output[..rows * outputs];
        for row in output.chunks_exact_mut(outputs) {
            row.copy_from_slice(self.bias(layer));
        }
        let weight = Matrix::new(self.weight(layer), inputs, outputs);
        multiply(Matrix::new(input, rows, inputs), weight, output, Write::Add);
        activation.apply(output);
    }

    /// Computes the network for rows: `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn run(&self, rows: usize, input: &[f32]) -> Vec<f32> {
        let mut values = input[..rows * self.inputs()].to_vec();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut next = vec![0.0; rows * layer.outputs];
            self.run_layer(index, rows, &values, &mut next);
            values = next;
        }
        values
    }
}
