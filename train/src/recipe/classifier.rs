//! A classifier on the code: labels train a head of logits, alone or together with the encoder.

use datafusion::error::Result;

use super::{Recipe, Trained, layerwise};
use crate::activation::Activation;
use crate::config::{ClassifierOptions, FineTune};
use crate::export::Networks;
use crate::fit::{fit, generator};
use crate::gradient::{Loss, Objective};
use crate::network::{Layer, Network};

/// Trains a head on the code of `networks`, with one logit for each class of so many training rows.
///
/// With [`FineTune::Head`], encoder and decoder do not change by a bit. With [`FineTune::All`], the encoder changes, and
/// the decoder is then trained for the new code. A warm start continues with the existing head.
pub(crate) fn train(
    recipe: &Recipe<'_>,
    options: &ClassifierOptions,
    networks: Networks,
    of_class: &[usize],
) -> Result<Trained> {
    let mut rng = generator(recipe.config.fit.seed, &[6]);
    let Networks { encoder, decoder, head } = networks;
    let first = encoder.layers().len();
    let head = match head.filter(|_| recipe.config.warm_start) {
        Some(head) => head,
        None => Network::random(head_layers(recipe, options, encoder.outputs(), of_class.len()), &mut rng),
    };
    let mut network = encoder.then(&head);
    let trained = match options.fine_tune {
        FineTune::Head => first..network.layers().len(),
        FineTune::All => 0..network.layers().len(),
    };
    // no penalty on the code: it belongs to the reconstruction
    let objective = Objective {
        dropout: recipe.config.dropout,
        code: Some(first - 1),
        class_weights: options.class_weight.of_rows(of_class),
        ..Objective::plain(Loss::CrossEntropy, trained)
    };
    let mut history = fit(&mut network, &objective, recipe.context, "head")?;
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

pub(super) fn head_layers(recipe: &Recipe<'_>, options: &ClassifierOptions, code: usize, classes: usize) -> Vec<Layer> {
    let mut inputs = code;
    let mut layers = Vec::new();
    for outputs in options.head_units.iter().copied() {
        layers.push(Layer { inputs, outputs, activation: recipe.config.activation });
        inputs = outputs;
    }
    layers.push(Layer { inputs, outputs: classes, activation: Activation::Linear });
    layers
}
