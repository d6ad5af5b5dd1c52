//! The linear autoencoder, computed from the principal axes of the rows instead of trained.

use aefusion_udfs::model::metadata::{Epoch, ErrorMetric};
use datafusion::common::internal_err;
use datafusion::error::Result;

use super::{Recipe, Trained, together};
use crate::activation::Activation;
use crate::config::Config;
use crate::evaluate::evaluate;
use crate::export::Networks;
use crate::network::{Layer, Network};
use crate::pca::Axes;
use aefusion_udfs::numbers::to_f32;

/// With more columns, principal axes would take longer than steps.
const MOST_COLUMNS: usize = 1024;

/// Whether all layers are linear, and the loss is the squared error without noise, dropout or penalties.
pub(crate) fn fits(config: &Config, columns: usize) -> bool {
    columns <= MOST_COLUMNS
        && config.activation == Activation::Linear
        && config.code_activation.is_none_or(|code| code == Activation::Linear)
        && config.error_metric != ErrorMetric::Mae
        && config.noise.is_none()
        && config.dropout <= 0.0
        && config.fit.l1_reg.max(config.fit.l2_reg) <= 0.0
        && config.l1_reg_activation <= 0.0
}

/// Computes the network. The code holds the coordinates along the principal axes, as many as the narrowest layer has
/// units.
///
/// With missing values, this network is not the best one: the axes are of rows with filled gaps, and the error leaves the
/// gaps out. Steps then improve the network.
///
/// # Source
/// Baldi and Hornik, Neural Networks 2 (1989).
pub(crate) fn train(recipe: &Recipe<'_>) -> Result<Trained> {
    let context = &recipe.context;
    context.watch.begin("linear", 1, context.train.len());
    let narrowest = recipe.hidden_units.iter().copied().min().unwrap_or(1);
    let axes = Axes::of(context.train, narrowest.min(context.train.width()), usize::MAX, context)?;
    context.check()?;
    let networks = Networks {
        encoder: stack(recipe.encoder_layers(), &axes, true)?,
        decoder: stack(recipe.decoder_layers(), &axes, false)?,
        head: None,
    };
    if context.train.has_missing() {
        return together::train(recipe, networks);
    }
    let network = networks.encoder.then(&networks.decoder);
    let objective = recipe.reconstruct(&network, 0, None);
    let seed = recipe.config.fit.seed;
    let loss_of = |dataset| -> Result<Option<f64>> {
        Ok(evaluate(&network, &objective, dataset, seed, context.watch)?.map(|evaluation| evaluation.loss))
    };
    let loss = loss_of(context.train)?.unwrap_or_default();
    let held_out_loss = loss_of(context.held_out)?;
    context.watch.epoch(1, loss, held_out_loss);
    let epoch = Epoch {
        stage: "linear".to_owned(),
        epoch: 1,
        loss,
        held_out_loss,
        learn_rate: recipe.config.fit.learn_rate,
        is_best: true,
    };
    Ok(Trained { networks, history: vec![epoch] })
}

/// Layers that carry the coordinates along the axes. The first layer of an encoder computes them, the last layer of a
/// decoder turns them back, the others pass them on.
fn stack(layers: Vec<Layer>, axes: &Axes, is_encoder: bool) -> Result<Network> {
    let last = layers.len() - 1;
    let mut parameters = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let mut weight = vec![0.0; layer.inputs * layer.outputs];
        let mut bias = vec![0.0; layer.outputs];
        match (is_encoder, i) {
            (true, 0) => {
                for (k, axis) in axes.axes.iter().enumerate() {
                    axis.iter().enumerate().for_each(|(j, value)| weight[j * layer.outputs + k] = to_f32(*value));
                    bias[k] = to_f32(-axis.iter().zip(&axes.mean).map(|(a, m)| a * m).sum::<f64>());
                }
            }
            (false, i) if i == last => {
                for (k, axis) in axes.axes.iter().enumerate() {
                    axis.iter().enumerate().for_each(|(j, value)| weight[k * layer.outputs + j] = to_f32(*value));
                }
                bias.iter_mut().zip(&axes.mean).for_each(|(bias, mean)| *bias = to_f32(*mean));
            }
            _ => (0..axes.axes.len()).for_each(|k| weight[k * layer.outputs + k] = 1.0),
        }
        parameters.extend(weight);
        parameters.extend(bias);
    }
    match Network::of(layers, parameters) {
        Some(network) => Ok(network),
        None => internal_err!("the layers of a linear network do not fit together"),
    }
}
