//! Encoder and decoder at once, by the reconstruction error of the rows.

use datafusion::error::Result;

use super::super::export::Networks;
use super::super::fit::fit;
use super::{Recipe, Trained};

/// Goes on from the networks given, which may be new.
pub(in super::super) fn train(recipe: &Recipe<'_>, networks: Networks) -> Result<Trained> {
    let mut network = networks.encoder.then(&networks.decoder);
    let encoder_layers = networks.encoder.layers().len();
    let objective = recipe.reconstruct(&network, 0, Some(encoder_layers - 1));
    let history = fit(&mut network, &objective, recipe.rounds, "together")?;
    let (encoder, decoder) = network.split(encoder_layers);
    Ok(Trained { networks: Networks { encoder, decoder, ..networks }, history })
}
