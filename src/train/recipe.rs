//! The kinds of training, each a recipe of its own, and what they share.

pub(super) mod classifier;
pub(super) mod layerwise;
pub(super) mod linear;
pub(super) mod together;

use aefusion_udfs::model::Limits;
use aefusion_udfs::model::metadata::{Epoch, ErrorMetric};
use datafusion::common::plan_err;
use datafusion::error::Result;

use super::activation::Activation;
use super::aim::Aim;
use super::config::{Config, Order};
use super::export::Networks;
use super::fit::{Rounds, generator};
use super::gradient::{Loss, Objective};
use super::network::{Layer, Network};

/// What a recipe is carried out on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe<'a> {
    pub(super) config: &'a Config,
    /// Odd in number, the code in the middle.
    pub(super) hidden_units: &'a [usize],
    pub(super) rounds: Rounds<'a>,
}

/// What it gives.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) networks: Networks,
    pub(super) history: Vec<Epoch>,
}

impl Recipe<'_> {
    /// An autoencoder, from nothing.
    ///
    /// # Errors
    /// An execution error if a training diverges or is given up.
    pub(super) fn autoencoder(&self) -> Result<Trained> {
        match self.config.order {
            _ if linear::fits(self.config, self.rounds.samples.width()) => linear::train(self),
            Order::Together => together::train(self, self.first_networks()),
            Order::Layerwise => layerwise::train(self),
            Order::LayerwiseFinetune => layerwise::train(self)?.followed_by(|networks| together::train(self, networks)),
        }
    }

    fn code_activation(&self) -> Activation {
        self.config.code_activation.unwrap_or(self.config.activation)
    }

    /// Layers from the scaled space to the code.
    fn encoder_layers(&self) -> Vec<Layer> {
        let middle = self.hidden_units.len() / 2;
        let mut inputs = self.rounds.samples.width();
        let layer = |(i, outputs): (usize, &usize)| {
            let activation = if i == middle { self.code_activation() } else { self.config.activation };
            Layer { inputs: std::mem::replace(&mut inputs, *outputs), outputs: *outputs, activation }
        };
        self.hidden_units[..=middle].iter().enumerate().map(layer).collect()
    }

    /// Layers from the code back to the scaled space.
    fn decoder_layers(&self) -> Vec<Layer> {
        let width = self.rounds.samples.width();
        let rest = &self.hidden_units[self.hidden_units.len() / 2..];
        let outputs = rest[1..].iter().copied().chain([width]);
        let last = rest.len() - 1;
        let layer = |(i, (inputs, outputs)): (usize, (&usize, usize))| {
            let activation = if i == last { Activation::Linear } else { self.config.activation };
            Layer { inputs: *inputs, outputs, activation }
        };
        rest.iter().zip(outputs).enumerate().map(layer).collect()
    }

    /// Encoder and decoder with random weights.
    fn first_networks(&self) -> Networks {
        let mut rng = generator(self.config.fit.seed, &[4]);
        let mut encoder = Network::random(self.encoder_layers(), &mut rng);
        self.forget_constants(&mut encoder);
        self.turn_off(&mut encoder, self.hidden_units.len() / 2);
        Networks { encoder, decoder: Network::random(self.decoder_layers(), &mut rng), head: None }
    }

    /// Takes the random weights of columns away that never change, like that of texts not seen: they would never be
    /// trained, and the first row with another value would disturb all other columns.
    fn forget_constants(&self, network: &mut Network) {
        let weights = network.weight_range(0);
        let width = network.layers()[0].outputs;
        for column in self.rounds.samples.extremes().constant() {
            network.parameters[weights.start + column * width..][..width].fill(0.0);
        }
    }

    /// Of a code that is to be sparse, has the units begin off, where they can: from the middle of a sigmoid a penalty
    /// takes most epochs to get them there.
    fn turn_off(&self, network: &mut Network, code: usize) {
        /// Where a sigmoid gives 0.018.
        const OFF: f32 = -4.0;
        if self.config.aim == Aim::Sparse && network.layers()[code].activation == Activation::Sigmoid {
            network.bias_mut(code).fill(OFF);
        }
    }

    /// That the file will not be refused for its size, before hours are spent on it.
    ///
    /// # Errors
    /// A planning error if the weights alone are too large.
    pub(super) fn check_size(&self, limits: &Limits) -> Result<()> {
        let weights = |layer: &Layer| (layer.inputs as u64 + 1) * layer.outputs as u64;
        let bytes = size_of::<f32>() as u64
            * self.encoder_layers().iter().chain(&self.decoder_layers()).map(weights).sum::<u64>();
        if bytes > limits.bytes {
            return plan_err!(
                "the network would take {bytes} bytes, and a model at most {} (ae.max_model_bytes); give smaller hidden_units",
                limits.bytes
            );
        }
        Ok(())
    }

    /// To reconstruct what layer `of` is given, by the layers from there to the last of `network`.
    fn reconstruct(&self, network: &Network, of: usize, code: Option<usize>) -> Objective {
        Objective {
            loss: Loss::Reconstruction { of, absolute: self.config.error_metric == ErrorMetric::Mae },
            trained: of..network.layers().len(),
            noise: self.config.noise,
            dropout: self.config.dropout,
            code,
            l1_reg_activation: self.config.l1_reg_activation,
        }
    }
}

impl Trained {
    /// What another recipe makes of the networks, with the history of both.
    pub(super) fn followed_by(self, next: impl FnOnce(Networks) -> Result<Self>) -> Result<Self> {
        let mut trained = next(self.networks)?;
        trained.history.splice(0..0, self.history);
        Ok(trained)
    }
}
