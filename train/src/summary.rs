//! The results of a training by name, as `DESCRIBE MODEL` and the command line show them.

use std::sync::atomic::Ordering;

use aefusion_udfs::model::calibration::Calibration;
use datafusion::error::Result;
use serde_json::{Value, json};

use crate::evaluate::{Confusion, evaluate};
use crate::export::Networks;
use crate::finish::Finished;
use crate::gradient::{Loss, Objective};
use crate::network::Network;
use crate::pca::Axes;

/// With more columns, principal axes would take longer than the training.
const MOST_PCA_COLUMNS: usize = 512;

/// Number of rows from which the principal axes are computed.
const PCA_ROWS: usize = 100_000;

/// The results of a training by name.
pub(crate) type Summary = Vec<(&'static str, Value)>;

/// The results of a training, in the order in which they are shown.
///
/// Errors and accuracy are those of the held-out rows; of the training rows if no row was held out.
///
/// # Errors
/// An execution error if rows cannot be read back, or if the training was aborted.
pub(crate) fn summary(finished: &Finished<'_>, calibration: Option<&Calibration>) -> Result<Summary> {
    let Finished { recipe, design, parts, trained, .. } = finished;
    let Networks { encoder, decoder, head } = &trained.networks;
    let (context, seed) = (&recipe.context, recipe.config.fit.seed);
    let (measured, error, scores) = match parts.held_out.len() {
        0 => (&parts.train, "training_error", TRAINING_SCORES),
        _ => (&parts.held_out, "held_out_error", HELD_OUT_SCORES),
    };
    let mut summary = vec![
        ("shape", json!(shape(&trained.networks))),
        ("rows", json!(parts.train.len())),
        ("held_out_rows", json!(parts.held_out.len())),
        ("calibration_rows", json!(calibration.map_or(0, |calibration| calibration.rows))),
        ("epochs", json!(trained.history.len())),
    ];
    if let Some(best) = trained.history.iter().rfind(|epoch| epoch.is_best) {
        summary.push(("loss", json!(best.loss)));
    }
    let network = encoder.then(decoder);
    let plain = |network: &Network, loss| Objective::plain(loss, 0..network.layers().len());
    let squared = Loss::Reconstruction { of: 0, absolute: false };
    if let Some(evaluation) = evaluate(&network, &plain(&network, squared), measured, seed, context.watch)? {
        summary.push((error, json!(evaluation.loss)));
    }
    // axes of rows with filled gaps are not the best ones
    let has_axes = design.width <= MOST_PCA_COLUMNS && !parts.train.has_missing();
    let axes = match has_axes {
        true => Axes::of(&parts.train, encoder.outputs().min(design.width), PCA_ROWS, context)?,
        false => Axes::mean_alone(&parts.train, context)?,
    };
    let floors = axes.floors(measured, context)?;
    summary.push(("mean_only_error", json!(floors.mean_only)));
    // as many axes as columns lose nothing, and say nothing
    if (1..design.width).contains(&axes.axes.len()) {
        summary.push(("pca_error", json!(floors.pca)));
    }
    if let Some(head) = head {
        let classifier = encoder.then(head);
        let objective = plain(&classifier, Loss::CrossEntropy);
        if let Some(evaluation) = evaluate(&classifier, &objective, measured, seed, context.watch)? {
            let labels = finished.classes.as_ref().map_or(&[][..], |classes| classes.labels.as_slice());
            summary.extend(scores_of(&evaluation.confusion, labels, scores));
        }
    }
    if let Some(calibration) = calibration {
        let contamination = recipe.config.contamination;
        summary.push(("smallest_p_value", json!(calibration.smallest_p_value())));
        if finished.rule.may_have_trained && finished.calibration.is_none() {
            summary.push(("calibration_may_have_trained", json!(true)));
        }
        if let Some(threshold) = calibration.threshold(contamination) {
            summary.push(("threshold", json!(threshold)));
        }
        if let Some(wanted) = calibration.rows_wanted(contamination) {
            summary.push(("calibration_rows_wanted", json!(wanted)));
        }
    }
    if context.is_interrupted.load(Ordering::Relaxed) {
        summary.push(("interrupted", json!(true)));
    }
    Ok(summary)
}

/// The names of accuracy, macro-F1, recalls and confusion.
const HELD_OUT_SCORES: [&str; 4] = ["held_out_accuracy", "held_out_macro_f1", "held_out_recall", "held_out_confusion"];
const TRAINING_SCORES: [&str; 4] = ["training_accuracy", "training_macro_f1", "training_recall", "training_confusion"];

/// The scores of a classifier. With many classes, they are too long for all recalls or for the confusion.
fn scores_of(
    confusion: &Confusion,
    labels: &[String],
    [accuracy, macro_f1, recall, pairs]: [&'static str; 4],
) -> Vec<(&'static str, Value)> {
    const MOST_RECALLS: usize = 100;
    const MOST_PAIRS: usize = 20;
    let n = labels.len();
    let mut scores = vec![(accuracy, json!(confusion.accuracy())), (macro_f1, json!(confusion.macro_f1(n)))];
    if n <= MOST_RECALLS {
        // pairs, which keep the order of the classes
        let of_class = |(class, label): (usize, &String)| json!([label, confusion.recall(class)]);
        scores.push((recall, labels.iter().enumerate().map(of_class).collect()));
    }
    if n <= MOST_PAIRS {
        let row = |label: usize| -> Vec<usize> { (0..n).map(|class| confusion.rows(label, class)).collect() };
        scores.push((pairs, json!((0..n).map(row).collect::<Vec<_>>())));
    }
    scores
}

/// The widths of all layers, such as `36-24-6-24-36`.
fn shape(networks: &Networks) -> String {
    let widths =
        |network: &Network| -> Vec<String> { network.layers().iter().map(|layer| layer.outputs.to_string()).collect() };
    let mut all = vec![networks.encoder.inputs().to_string()];
    all.extend(widths(&networks.encoder));
    all.extend(widths(&networks.decoder));
    match &networks.head {
        None => all.join("-"),
        Some(head) => format!("{}, head {}", all.join("-"), widths(head).join("-")),
    }
}
