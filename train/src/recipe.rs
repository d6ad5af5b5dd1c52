//! The kinds of training, one recipe each, and the code that they share.

pub(crate) mod classifier;
pub(crate) mod layerwise;
pub(crate) mod linear;
pub(crate) mod together;

use aefusion_udfs::model::Limits;
use aefusion_udfs::model::metadata::{Epoch, ErrorMetric};
use datafusion::common::plan_err;
use datafusion::error::Result;

use crate::activation::Activation;
use crate::config::{Config, Order};
use crate::defaults::Purpose;
use crate::export::Networks;
use crate::fit::{FitContext, generator};
use crate::gradient::{Loss, Objective};
use crate::network::{Layer, Network};

/// The input of a recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe<'a> {
    pub(crate) config: &'a Config,
    /// An odd number of widths; the middle one is the code.
    pub(crate) hidden_units: &'a [usize],
    pub(crate) context: FitContext<'a>,
}

/// The result of a recipe.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) networks: Networks,
    pub(crate) history: Vec<Epoch>,
}

impl Recipe<'_> {
    /// Trains an autoencoder from random weights.
    ///
    /// # Errors
    /// An execution error if the training diverges or is aborted.
    pub(crate) fn autoencoder(&self) -> Result<Trained> {
        match self.config.order {
            _ if linear::fits(self.config, self.context.train.width()) => linear::train(self),
            Order::Together => together::train(self, self.random_networks()),
            Order::Layerwise => layerwise::train(self),
            Order::LayerwiseFinetune => layerwise::train(self)?.followed_by(|networks| together::train(self, networks)),
        }
    }

    fn code_activation(&self) -> Activation {
        self.config.code_activation.unwrap_or(self.config.activation)
    }

    /// The layers from the scaled space to the code.
    fn encoder_layers(&self) -> Vec<Layer> {
        let middle = self.hidden_units.len() / 2;
        let mut inputs = self.context.train.width();
        let layer = |(i, outputs): (usize, &usize)| {
            let activation = if i == middle { self.code_activation() } else { self.config.activation };
            Layer { inputs: std::mem::replace(&mut inputs, *outputs), outputs: *outputs, activation }
        };
        self.hidden_units[..=middle].iter().enumerate().map(layer).collect()
    }

    /// The layers from the code back to the scaled space.
    fn decoder_layers(&self) -> Vec<Layer> {
        let width = self.context.train.width();
        let from_code = &self.hidden_units[self.hidden_units.len() / 2..];
        let outputs = from_code[1..].iter().copied().chain([width]);
        let last = from_code.len() - 1;
        let layer = |(i, (inputs, outputs)): (usize, (&usize, usize))| {
            let activation = if i == last { Activation::Linear } else { self.config.activation };
            Layer { inputs: *inputs, outputs, activation }
        };
        from_code.iter().zip(outputs).enumerate().map(layer).collect()
    }

    /// Encoder and decoder with random weights.
    fn random_networks(&self) -> Networks {
        let mut rng = generator(self.config.fit.seed, &[4]);
        let mut encoder = Network::random(self.encoder_layers(), &mut rng);
        self.zero_constant_columns(&mut encoder);
        self.start_code_off(&mut encoder, self.hidden_units.len() / 2);
        Networks { encoder, decoder: Network::random(self.decoder_layers(), &mut rng), head: None }
    }

    /// Sets the weights of constant columns to zero. Such weights are never trained, and the first row with another value
    /// would disturb all other columns. An example is the column of texts that are not among the levels.
    fn zero_constant_columns(&self, network: &mut Network) {
        let weights = network.weight_range(0);
        let width = network.layers()[0].outputs;
        for column in self.context.train.extremes().constant() {
            network.parameters[weights.start + column * width..][..width].fill(0.0);
        }
    }

    /// Starts the units of a sparse sigmoid code near 0. From the middle of the sigmoid, the penalty would take most epochs
    /// to get them there.
    fn start_code_off(&self, network: &mut Network, code: usize) {
        /// A sigmoid is 0.018 there.
        const OFF: f32 = -4.0;
        if self.config.purpose == Purpose::Sparse && network.layers()[code].activation == Activation::Sigmoid {
            network.bias_mut(code).fill(OFF);
        }
    }

    /// Checks the size of the file before hours are spent on the training. `classes` is 0 without a classifier.
    ///
    /// # Errors
    /// A planning error if the weights of encoder, decoder and head alone are too large.
    pub(crate) fn check_size(&self, limits: &Limits, classes: usize) -> Result<()> {
        let weights = |layer: &Layer| (layer.inputs as u64 + 1).saturating_mul(layer.outputs as u64);
        let bytes = |layers: &[Layer]| {
            let weights = layers.iter().map(weights).fold(0_u64, u64::saturating_add);
            weights.saturating_mul(size_of::<f32>() as u64)
        };
        let autoencoder = bytes(&self.encoder_layers()).saturating_add(bytes(&self.decoder_layers()));
        let code = self.hidden_units[self.hidden_units.len() / 2];
        let head = match &self.config.classifier {
            Some(options) => bytes(&classifier::head_layers(self, options, code, classes)),
            None => 0,
        };
        if autoencoder.saturating_add(head) > limits.bytes {
            let (smaller, of_the_head) = match head {
                0 => ("hidden_units", String::new()),
                _ if head > autoencoder => ("head_units", format!(", {head} of them the head")),
                _ => ("hidden_units or head_units", format!(", {head} of them the head")),
            };
            return plan_err!(
                "the network would take {} bytes{of_the_head}, at most {} are allowed (ae.max_model_bytes); set smaller \
                 {smaller}",
                autoencoder.saturating_add(head),
                limits.bytes
            );
        }
        Ok(())
    }

    /// The objective to reconstruct the input of layer `of` with the layers from `of` to the last of `network`.
    fn reconstruct(&self, network: &Network, of: usize, code: Option<usize>) -> Objective {
        Objective {
            loss: Loss::Reconstruction { of, absolute: self.config.error_metric == ErrorMetric::Mae },
            trained: of..network.layers().len(),
            noise: self.config.noise,
            dropout: self.config.dropout,
            code,
            l1_reg_activation: self.config.l1_reg_activation,
            class_weights: Vec::new(),
        }
    }
}

impl Trained {
    /// Runs another recipe on the networks, and joins the histories.
    pub(crate) fn followed_by(self, next: impl FnOnce(Networks) -> Result<Self>) -> Result<Self> {
        let mut trained = next(self.networks)?;
        trained.history.splice(0..0, self.history);
        Ok(trained)
    }
}
