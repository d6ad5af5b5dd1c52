//! The loss and the accuracy of a network on rows, without a step.

use std::collections::BTreeMap;

use datafusion::error::Result;
use rayon::prelude::*;

use crate::dataset::{Dataset, NO_LABEL};
use crate::fit::generator;
use crate::gradient::{Loss, Objective, Pass, Rows};
use crate::loss::predicted;
use crate::network::{BLOCK_ROWS, Network};
use crate::watch::{Control, Watch, check};

/// The results of a network on rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evaluation {
    /// Mean loss of the rows, without dropout.
    pub(crate) loss: f64,
    /// The predictions of a classifier; empty without labels.
    pub(crate) confusion: Confusion,
}

/// The labels and the predictions of rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Confusion {
    /// The number of rows for each pair of a label and a prediction; no prediction if the logits are not numbers.
    pairs: BTreeMap<(usize, Option<usize>), usize>,
}

impl Confusion {
    fn of(logits: &[f32], classes: usize, labels: &[u32]) -> Self {
        let mut confusion = Self::default();
        for (row, label) in logits.chunks_exact(classes).zip(labels) {
            *confusion.pairs.entry((*label as usize, predicted(row))).or_default() += 1;
        }
        confusion
    }

    fn add(&mut self, other: Self) {
        for (pair, rows) in other.pairs {
            *self.pairs.entry(pair).or_default() += rows;
        }
    }

    fn sum(&self, is_counted: impl Fn(usize, Option<usize>) -> bool) -> usize {
        let counted = self.pairs.iter().filter(|((label, predicted), _)| is_counted(*label, *predicted));
        counted.map(|(_, rows)| rows).sum()
    }

    /// The rows with a label that are predicted as this class.
    pub(crate) fn rows(&self, label: usize, class: usize) -> usize {
        self.pairs.get(&(label, Some(class))).copied().unwrap_or_default()
    }

    /// Share of the rows whose label is predicted.
    pub(crate) fn accuracy(&self) -> f64 {
        let right = self.sum(|label, predicted| predicted == Some(label));
        right as f64 / self.sum(|_, _| true).max(1) as f64
    }

    /// Share of the rows of a class that are predicted as it; none without rows.
    pub(crate) fn recall(&self, class: usize) -> Option<f64> {
        let rows = self.sum(|label, _| label == class);
        (rows > 0).then(|| self.rows(class, class) as f64 / rows as f64)
    }

    /// The mean of the F1 scores of the classes that are a label or a prediction.
    ///
    /// # Source
    /// `f1_score(…, average='macro', zero_division=0)` of scikit-learn.
    pub(crate) fn macro_f1(&self, classes: usize) -> f64 {
        let f1 = |class: usize| {
            let (labels, predictions) =
                (self.sum(|label, _| label == class), self.sum(|_, predicted| predicted == Some(class)));
            let both = labels + predictions;
            (both > 0).then(|| 2.0 * self.rows(class, class) as f64 / both as f64)
        };
        let scores: Vec<f64> = (0..classes).filter_map(f1).collect();
        scores.iter().sum::<f64>() / scores.len().max(1) as f64
    }
}

/// Evaluates a network on rows in blocks of [`BLOCK_ROWS`]. Every call draws the same noise.
///
/// Returns none if there are no rows, or if labels are needed and no row has one.
///
/// # Errors
/// An execution error if the rows cannot be read back, or if the training was aborted.
pub(crate) fn evaluate(
    network: &Network,
    objective: &Objective,
    dataset: &Dataset,
    seed: u64,
    watch: &dyn Watch,
) -> Result<Option<Evaluation>> {
    let objective = Objective { dropout: 0.0, ..objective.clone() };
    let (mut loss, mut confusion, mut n, mut part) = (0.0, Confusion::default(), 0_usize, 0_usize);
    dataset.visit(None, |rows, indices| {
        let labelled = labelled(&objective, rows, indices);
        let indices = labelled.as_deref().unwrap_or(indices);
        let results: Vec<(f64, Confusion)> = indices
            .par_chunks(BLOCK_ROWS)
            .enumerate()
            .map_init(Pass::default, |pass, (block, indices)| {
                if watch.control() == Control::Abort {
                    return (0.0, Confusion::default());
                }
                let mut rng = generator(seed, &[3, part, block]);
                pass.evaluate(network, &objective, rows, indices, &mut rng);
                let confusion = match objective.loss {
                    Loss::CrossEntropy => Confusion::of(pass.output(), network.outputs(), pass.labels()),
                    Loss::Reconstruction { .. } => Confusion::default(),
                };
                (pass.loss, confusion)
            })
            .collect();
        for (block_loss, block_confusion) in results {
            loss += block_loss;
            confusion.add(block_confusion);
        }
        n += indices.len();
        part += 1;
        check(watch)?;
        Ok(true)
    })?;
    Ok((n > 0).then(|| Evaluation { loss: loss / n as f64, confusion }))
}

/// The rows that have a label, if the loss needs labels; none stands for all rows.
pub(crate) fn labelled(objective: &Objective, rows: &Rows<'_>, indices: &[u32]) -> Option<Vec<u32>> {
    (objective.loss == Loss::CrossEntropy)
        .then(|| indices.iter().copied().filter(|index| rows.labels[*index as usize] != NO_LABEL).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_classes_are_those_of_scikit_learn() {
        // labels 0 0 0 0 1 1 2, predictions 0 0 1 3 1 1 0; class 4 is neither
        let labels = [0, 0, 0, 0, 1, 1, 2];
        let logits: Vec<f32> = [0, 0, 1, 3, 1, 1, 0]
            .into_iter()
            .flat_map(|class| (0..5).map(move |i| if i == class { 1.0 } else { 0.0 }))
            .collect();
        let mut confusion = Confusion::of(&logits[..10], 5, &labels[..2]);
        confusion.add(Confusion::of(&logits[10..], 5, &labels[2..]));
        assert_eq!(
            [confusion.rows(0, 0), confusion.rows(0, 1), confusion.rows(0, 3), confusion.rows(2, 0)],
            [2, 1, 1, 1]
        );
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        near(confusion.accuracy(), 4.0 / 7.0);
        near(confusion.recall(0).unwrap_or_default(), 0.5);
        assert_eq!(confusion.recall(3), None);
        // sklearn.metrics.f1_score(labels, predictions, average='macro', zero_division=0)
        near(confusion.macro_f1(5), 12.0 / 35.0);
    }
}
