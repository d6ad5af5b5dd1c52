//! One layer after the other: each layer of the encoder is trained as an autoencoder of its own, with a decoder of one
//! layer, on what the layers before it give, which stay as they are. Those decoders are dropped; at the end one decoder
//! for the whole is trained on the code.

use datafusion::error::Result;

use super::super::activation::Activation;
use super::super::export::Networks;
use super::super::fit::{fit, generator};
use super::super::gradient::Objective;
use super::super::network::{Layer, Network};
use super::{Recipe, Trained};

/// Trains layer by layer, then the decoder.
///
/// # Source
/// Bengio et al., NIPS (2006).
pub(super) fn train(recipe: &Recipe<'_>) -> Result<Trained> {
    let mut rng = generator(recipe.config.fit.seed, &[4]);
    let mut encoder = Network::random(Vec::new(), &mut rng);
    let mut history = Vec::new();
    let layers = recipe.encoder_layers();
    let code = layers.len() - 1;
    for (i, layer) in layers.into_iter().enumerate() {
        let back = Layer { inputs: layer.outputs, outputs: layer.inputs, activation: Activation::Linear };
        let mut network = encoder.then(&Network::random(vec![layer, back], &mut rng));
        if i == 0 {
            recipe.forget_constants(&mut network);
        }
        if i == code {
            recipe.turn_off(&mut network, i);
        }
        let objective = recipe.reconstruct(&network, i, (i == code).then_some(i));
        history.extend(fit(&mut network, &objective, recipe.rounds, &format!("layer {}", i + 1))?);
        encoder = network.split(i + 1).0;
    }
    let untrained = Network::random(recipe.decoder_layers(), &mut generator(recipe.config.fit.seed, &[5]));
    let (decoder, decoding) = decoder(recipe, &encoder, &untrained)?;
    history.extend(decoding);
    Ok(Trained { networks: Networks { encoder, decoder, head: None }, history })
}

/// Trains a decoder for an encoder that stays as it is.
pub(super) fn decoder(
    recipe: &Recipe<'_>,
    encoder: &Network,
    decoder: &Network,
) -> Result<(Network, Vec<aefusion_udfs::model::metadata::Epoch>)> {
    let first = encoder.layers().len();
    let mut network = encoder.then(decoder);
    let objective = Objective {
        trained: first..network.layers().len(),
        l1_reg_activation: 0.0,
        ..recipe.reconstruct(&network, 0, Some(first - 1))
    };
    let history = fit(&mut network, &objective, recipe.rounds, "decoder")?;
    Ok((network.split(first).1, history))
}
