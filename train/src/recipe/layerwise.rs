//! Trains one layer of the encoder after the other, then the decoder.
//!
//! Each layer is trained as an autoencoder with one decoder layer. Its rows are the outputs of the layers before it, which
//! no longer change. The decoder layers are then dropped, and one decoder is trained on the code.

use aefusion_udfs::model::metadata::Epoch;
use datafusion::error::Result;

use super::{Recipe, Trained};
use crate::activation::Activation;
use crate::export::Networks;
use crate::fit::{fit, generator};
use crate::gradient::Objective;
use crate::network::{Layer, Network};

/// Trains the layers of the encoder one by one, then the decoder.
///
/// # Source
/// Bengio et al., NIPS (2006).
pub(crate) fn train(recipe: &Recipe<'_>) -> Result<Trained> {
    let mut rng = generator(recipe.config.fit.seed, &[4]);
    let mut encoder = Network::random(Vec::new(), &mut rng);
    let mut history = Vec::new();
    let layers = recipe.encoder_layers();
    let code = layers.len() - 1;
    for (i, layer) in layers.into_iter().enumerate() {
        let back = Layer { inputs: layer.outputs, outputs: layer.inputs, activation: Activation::Linear };
        let mut network = encoder.then(&Network::random(vec![layer, back], &mut rng));
        if i == 0 {
            recipe.zero_constant_columns(&mut network);
        }
        if i == code {
            recipe.start_code_off(&mut network, i);
        }
        let objective = recipe.reconstruct(&network, i, (i == code).then_some(i));
        history.extend(fit(&mut network, &objective, recipe.context, &format!("layer {}", i + 1))?);
        encoder = network.split(i + 1).0;
    }
    let untrained = Network::random(recipe.decoder_layers(), &mut generator(recipe.config.fit.seed, &[5]));
    let (decoder, decoding) = decoder(recipe, &encoder, &untrained)?;
    history.extend(decoding);
    Ok(Trained { networks: Networks { encoder, decoder, head: None }, history })
}

/// Trains a decoder for an encoder that does not change.
pub(crate) fn decoder(recipe: &Recipe<'_>, encoder: &Network, decoder: &Network) -> Result<(Network, Vec<Epoch>)> {
    let first = encoder.layers().len();
    let mut network = encoder.then(decoder);
    let objective = Objective {
        trained: first..network.layers().len(),
        l1_reg_activation: 0.0,
        ..recipe.reconstruct(&network, 0, Some(first - 1))
    };
    let history = fit(&mut network, &objective, recipe.context, "decoder")?;
    Ok((network.split(first).1, history))
}
