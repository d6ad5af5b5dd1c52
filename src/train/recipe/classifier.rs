//! A classifier on the code: a head of logits, trained by labels; with the encoder as it is, or together with it.

use datafusion::error::Result;

use super::super::activation::Activation;
use super::super::config::{ClassifierOptions, FineTune};
use super::super::export::Networks;
use super::super::fit::{fit, generator};
use super::super::gradient::{Loss, Objective};
use super::super::network::{Layer, Network};
use super::{Recipe, Trained, layerwise};

/// Trains a head of so many classes on the networks given.
///
/// With [`FineTune::Head`], encoder and decoder come out bit for bit as they were. With [`FineTune::All`], the encoder
/// changes, and then the decoder is trained on for the new code. A head there is stays, if the training goes on from it.
pub(in super::super) fn train(
    recipe: &Recipe<'_>,
    options: &ClassifierOptions,
    networks: Networks,
    classes: usize,
) -> Result<Trained> {
    let mut rng = generator(recipe.config.fit.seed, &[6]);
    let Networks { encoder, decoder, head } = networks;
    let first = encoder.layers().len();
    let head = match head.filter(|_| recipe.config.warm_start) {
        Some(head) => head,
        None => Network::random(head_layers(recipe, options, encoder.outputs(), classes), &mut rng),
    };
    let mut network = encoder.then(&head);
    let trained = match options.fine_tune {
        FineTune::Head => first..network.layers().len(),
        FineTune::All => 0..network.layers().len(),
    };
    let objective = Objective {
        dropout: recipe.config.dropout,
        code: Some(first - 1),
        l1_reg_activation: recipe.config.l1_reg_activation,
        ..Objective::plain(Loss::CrossEntropy, trained)
    };
    let mut history = fit(&mut network, &objective, recipe.rounds, "head")?;
    let (encoder, head) = network.split(first);
    let decoder = match options.fine_tune {
        FineTune::Head => decoder,
        FineTune::All => {
            let (decoder, decoding) = layerwise::decoder(recipe, &encoder, &decoder)?;
            history.extend(decoding);
            decoder
        }
    };
    Ok(Trained { networks: Networks { encoder, decoder, head: Some(head) }, history })
}

fn head_layers(recipe: &Recipe<'_>, options: &ClassifierOptions, code: usize, classes: usize) -> Vec<Layer> {
    let mut inputs = code;
    let mut layers = Vec::new();
    for outputs in options.head_units.iter().copied() {
        layers.push(Layer { inputs, outputs, activation: recipe.config.activation });
        inputs = outputs;
    }
    layers.push(Layer { inputs, outputs: classes, activation: Activation::Linear });
    layers
}
