//! Trains encoder and decoder jointly on the reconstruction error of the rows.

use datafusion::error::Result;

use super::{Recipe, Trained};
use crate::export::Networks;
use crate::fit::fit;

/// Trains all layers of `networks`, which may be random or trained.
pub(crate) fn train(recipe: &Recipe<'_>, networks: Networks) -> Result<Trained> {
    let mut network = networks.encoder.then(&networks.decoder);
    let encoder_layers = networks.encoder.layers().len();
    let objective = recipe.reconstruct(&network, 0, Some(encoder_layers - 1));
    let history = fit(&mut network, &objective, recipe.context, "together")?;
    let (encoder, decoder) = network.split(encoder_layers);
    Ok(Trained { networks: Networks { encoder, decoder, ..networks }, history })
}
