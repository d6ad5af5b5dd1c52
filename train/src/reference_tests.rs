//! The trainer against PyTorch and numpy (`train/reference/training.py`), and its gradients against differences.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aefusion_udfs::choice::Choice;
use aefusion_udfs::numbers::to_f32;
use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch};
use datafusion::execution::DiskManager;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use serde::Deserialize;
use strum::VariantNames;

use crate::activation::Activation;
use crate::config::{Scaling, SplitBy};
use crate::dataset::{Dataset, DatasetWriter};
use crate::deal::Deal;
use crate::design::Design;
use crate::fit::{EarlyStopping, FitContext, FitOptions, Schedule, fit, generator};
use crate::gradient::{Loss, Objective, Pass, Rows};
use crate::ingest::{self, Roles};
use crate::network::{Layer, Network};
use crate::noise::{Extremes, Noise, NoiseKind};
use crate::optimizer::OptimizerKind;
use crate::rule::Rule;
use crate::step::Fitting;
use crate::watch::Unwatched;

#[derive(Deserialize)]
struct Reference {
    steps: Vec<Case>,
    schedules: Schedules,
    early_stopping: Vec<Stopping>,
    scaling: Scaled,
}

#[derive(Deserialize)]
struct Case {
    activation: String,
    loss: String,
    optimizer: String,
    l1_reg_activation: f32,
    l1_reg: f64,
    l2_reg: f64,
    widths: Vec<usize>,
    parameters: Vec<f32>,
    rows: Vec<Vec<Option<f32>>>,
    fill: Vec<f32>,
    labels: Vec<u32>,
    class_weights: Vec<f32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    gradients: Vec<f32>,
    after: Vec<f32>,
}

#[derive(Deserialize)]
struct Schedules {
    linear: Vec<f64>,
    cosine: Vec<f64>,
}

#[derive(Deserialize)]
struct Stopping {
    losses: Vec<f64>,
    min_rel_progress: f64,
    patience: usize,
    stops_after: Option<usize>,
}

#[derive(Deserialize)]
struct Scaled {
    columns: Vec<Vec<Option<f64>>>,
    standard: Vec<Vec<Option<f64>>>,
    common: Vec<Vec<Option<f64>>>,
}

fn reference() -> Reference {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/training.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn network(widths: &[usize], activation: Activation) -> Network {
    let last = widths.len() - 2;
    let layer = |(i, pair): (usize, &[usize])| Layer {
        inputs: pair[0],
        outputs: pair[1],
        activation: if i == last { Activation::Linear } else { activation },
    };
    let layers = widths.windows(2).enumerate().map(layer).collect();
    Network::random(layers, &mut generator(7, &[]))
}

fn options(optimizer: OptimizerKind) -> FitOptions {
    FitOptions {
        batch_size: 7,
        learn_rate: if optimizer == OptimizerKind::Sgd { 0.1 } else { 0.01 },
        schedule: Schedule::Constant,
        optimizer,
        l1_reg: 0.0,
        l2_reg: 0.0,
        max_iterations: 1,
        early_stop: false,
        min_rel_progress: 0.0,
        patience: 1,
        seed: 1,
    }
}

fn assert_near(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // single precision, in another order of addition
        assert!((found - expected).abs() <= 2e-6 + 2e-5 * expected.abs(), "{what} [{i}]: {found}, not {expected}");
    }
}

#[test]
fn losses_gradients_and_steps_are_those_of_pytorch() {
    let cases = reference().steps;
    assert_eq!(cases.len(), 19);
    for case in cases {
        let what = format!("{} {} {}", case.activation, case.loss, case.optimizer);
        let activation = Activation::parse("activation", &case.activation).unwrap();
        let mut network = network(&case.widths, activation);
        network.parameters.copy_from_slice(&case.parameters);
        let objective = Objective {
            loss: match case.loss.as_str() {
                "cross_entropy" => Loss::CrossEntropy,
                metric => Loss::Reconstruction { of: 0, absolute: metric == "mae" },
            },
            trained: 0..network.layers().len(),
            noise: None,
            dropout: 0.0,
            code: Some(1),
            l1_reg_activation: case.l1_reg_activation,
            class_weights: case.class_weights,
        };
        let values: Vec<f32> = case.rows.iter().flatten().map(|value| value.unwrap_or(f32::NAN)).collect();
        let width = case.widths[0];
        let extremes = Extremes::of(&values, width);
        let rows = Rows { values: &values, width, fill: &case.fill, extremes: &extremes, labels: &case.labels };
        let indices: Vec<u32> = (0..7).collect();
        let optimizer = OptimizerKind::parse("optimizer", &case.optimizer).unwrap();
        let options = FitOptions { l1_reg: case.l1_reg, l2_reg: case.l2_reg, ..options(optimizer) };
        let mut fitting = Fitting::new(&objective, &options, &network, &Unwatched);
        assert_eq!(case.steps.len(), 3, "{what}");
        for (i, step) in case.steps.iter().enumerate() {
            let what = format!("{what}, step {i}");
            let loss = fitting.batch(&mut network, &rows, &indices, [0, i], options.learn_rate) / 7.0;
            assert!((loss - step.loss).abs() < 1e-6 + 1e-5 * step.loss, "{what}: loss {loss}, not {}", step.loss);
            assert_near(&format!("{what}: gradient"), fitting.gradients(), &step.gradients);
            assert_near(&format!("{what}: parameter"), &network.parameters, &step.after);
        }
    }
}

fn dataset(rows: &[f32], width: usize) -> Dataset {
    let disk = Arc::new(DiskManager::builder().build().unwrap());
    let mut writer = DatasetWriter::new(vec![0.0; width], false, 1 << 20, disk);
    rows.chunks_exact(width).for_each(|row| writer.push(row, None).unwrap());
    writer.finish().unwrap()
}

/// Fits one weight and one bias to reconstruct the number 1, by the absolute error. While the output is below 1, both
/// gradients are exactly -1. An epoch of one batch then raises each parameter by the learning rate.
fn fit_from_below(weight: f32, options: &FitOptions) -> (Vec<aefusion_udfs::model::metadata::Epoch>, Network) {
    let layer = Layer { inputs: 1, outputs: 1, activation: Activation::Linear };
    let mut network = Network::of(vec![layer], vec![weight, 0.0]).unwrap();
    let objective = Objective::plain(Loss::Reconstruction { of: 0, absolute: true }, 0..1);
    let (train, held_out) = (dataset(&[1.0], 1), dataset(&[], 1));
    let is_interrupted = &AtomicBool::new(false);
    let context = FitContext { train: &train, held_out: &held_out, options, watch: &Unwatched, is_interrupted };
    let history = fit(&mut network, &objective, context, "together").unwrap();
    (history, network)
}

#[test]
fn learning_rates_are_those_of_the_schedulers_of_pytorch() {
    let Schedules { linear, cosine } = reference().schedules;
    for (schedule, expected) in
        [(Schedule::Linear, linear), (Schedule::Cosine, cosine), (Schedule::Constant, vec![0.01; 10])]
    {
        let options =
            FitOptions { learn_rate: 0.01, schedule, max_iterations: expected.len(), ..options(OptimizerKind::Sgd) };
        let (history, network) = fit_from_below(-1.0, &options);
        let rates: Vec<f64> = history.iter().map(|epoch| epoch.learn_rate).collect();
        assert_eq!(rates.len(), expected.len());
        for (found, expected) in rates.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-15, "{schedule:?}: {rates:?}");
        }
        // and the steps have these lengths
        let way: f64 = expected.iter().sum();
        assert_near(&format!("{schedule:?}"), &network.parameters, &[to_f32(way - 1.0), to_f32(way)]);
    }
}

#[test]
fn patience_ends_where_that_of_pytorch_ends() {
    for Stopping { losses, min_rel_progress, patience, stops_after } in reference().early_stopping {
        let mut stopping = EarlyStopping::new(min_rel_progress, patience);
        let ended = losses.iter().position(|loss| stopping.has_ended(*loss)).map(|epoch| epoch + 1);
        assert_eq!(ended, stops_after, "min_rel_progress {min_rel_progress}, patience {patience}");
    }
}

#[test]
fn patience_by_hand() {
    let mut stopping = EarlyStopping::new(0.1, 2);
    // progress, needs 0.9, progress, needs 0.765, needs 0.765 for the second time
    let found: Vec<bool> = [1.0, 0.95, 0.85, 0.8, 0.77].into_iter().map(|loss| stopping.has_ended(loss)).collect();
    assert_eq!(found, [false, false, false, false, true]);
}

#[test]
fn a_fit_ends_after_the_first_epoch_and_patience() {
    // the loss is 2 and falls by 2e-6 in each epoch, a share of 1e-6
    let slow = FitOptions {
        learn_rate: 1e-6,
        max_iterations: 20,
        min_rel_progress: 1e-3,
        patience: 3,
        early_stop: true,
        ..options(OptimizerKind::Sgd)
    };
    let epochs = |options: &FitOptions| fit_from_below(-1.0, options).0.len();
    assert_eq!(epochs(&slow), 4, "one epoch that is progress, three that are not");
    assert_eq!(epochs(&FitOptions { early_stop: false, ..slow.clone() }), 20);
    assert_eq!(epochs(&FitOptions { min_rel_progress: 0.0, ..slow.clone() }), 20, "each epoch is progress");
    assert_eq!(epochs(&FitOptions { patience: 30, ..slow }), 20);
}

#[test]
fn the_parameters_of_the_best_epoch_are_kept() {
    // outputs before the epochs are 0, 1.4, 0, … : each step of 0.7 overshoots and comes back
    let jumping = FitOptions { learn_rate: 0.7, max_iterations: 4, ..options(OptimizerKind::Sgd) };
    let (history, network) = fit_from_below(0.0, &jumping);
    let losses: Vec<f64> = history.iter().map(|epoch| epoch.loss).collect();
    let expected = [1.0, 0.4, 1.0, 0.4];
    assert!(losses.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{losses:?}");
    assert_eq!(history.iter().map(|epoch| epoch.is_best).collect::<Vec<_>>(), [false, true, false, false]);
    // without held-out rows, the loss of an epoch is that of its steps: the best one ends back at the start
    assert_near("best", &network.parameters, &[0.0, 0.0]);
}

#[test]
fn dropout_drops_its_share_and_scales_the_others() {
    let layer = |inputs, outputs| Layer { inputs, outputs, activation: Activation::Linear };
    // ones in, ones behind each weight of 1: a hidden unit is 1 without dropout, and the output counts the units
    let (rows, units) = (200_usize, 100_usize);
    let mut parameters = vec![1.0; units];
    parameters.extend(vec![0.0; units]);
    parameters.extend(vec![1.0; units]);
    parameters.push(0.0);
    let network = Network::of(vec![layer(1, units), layer(units, 1)], parameters).unwrap();
    let values = vec![1.0; rows];
    let extremes = Extremes::of(&values, 1);
    let rows_ = Rows { values: &values, width: 1, fill: &[0.0], extremes: &extremes, labels: &[] };
    let indices: Vec<u32> = (0..200).collect();
    let plain = Objective::plain(Loss::Reconstruction { of: 0, absolute: false }, 0..2);
    for share in [0.25_f32, 0.5] {
        let objective = Objective { dropout: share, ..plain.clone() };
        let mut pass = Pass::default();
        pass.run(&network, &objective, &rows_, &indices, rows, &mut generator(5, &[]));
        // kept units of each row: the output is their number, divided by the share that is kept
        let kept: Vec<f32> = pass.output().iter().map(|output| output * (1.0 - share)).collect();
        assert!(kept.iter().all(|kept| (kept - kept.round()).abs() < 1e-3), "each unit is kept or dropped");
        let n = f64::from(to_f32((rows * units) as f64));
        let mean = kept.iter().map(|kept| f64::from(*kept)).sum::<f64>() / n;
        let expected = 1.0 - f64::from(share);
        let deviation = (expected * (1.0 - expected) / n).sqrt();
        assert!((mean - expected).abs() < 4.0 * deviation, "{mean} of the units are kept, not {expected}");
        // each row draws its own units: their numbers vary as a binomial distribution does, within a fifth
        let variance = kept.iter().map(|kept| (f64::from(*kept) - expected * 100.0).powi(2)).sum::<f64>() / 200.0;
        let binomial = 100.0 * expected * (1.0 - expected);
        assert!((variance / binomial - 1.0).abs() < 0.4, "variance {variance}, binomial {binomial}");
        // neither the code nor the last layer drops units
        let code = Objective { code: Some(0), ..objective };
        pass.run(&network, &code, &rows_, &indices, rows, &mut generator(5, &[]));
        assert!(pass.output().iter().all(|output| (output - 100.0).abs() < 1e-3));
    }
}

#[test]
fn columns_are_scaled_as_numpy_scales_them() {
    let Scaled { columns, standard, common } = reference().scaling;
    let names = ["a", "b", "c", "d"];
    let array = |column: &Vec<Option<f64>>| -> ArrayRef { Arc::new(Float64Array::from(column.clone())) };
    let batch = RecordBatch::try_from_iter(names.into_iter().zip(columns.iter().map(array))).unwrap();
    let roles = Roles { label: None, split_by: SplitBy::Row };
    let read = || {
        let stream = futures::stream::iter([Ok(batch.clone())]);
        let stream = Box::pin(RecordBatchStreamAdapter::new(batch.schema(), stream));
        let disk = Arc::new(DiskManager::builder().build().unwrap());
        futures::executor::block_on(ingest::read(stream, &roles, 1 << 20, disk)).unwrap()
    };
    for (scaling, expected) in [(Scaling::Standard, standard), (Scaling::Common, common)] {
        let table = read();
        let deal = Deal::of(&table, Rule::new(0, SplitBy::Row, 0.0, 0.0), None, 1, &Unwatched).unwrap();
        let design = Design::of(&table, &deal.seen, &[0, 1, 2, 3], 10, scaling).unwrap();
        let mut scaled = Vec::new();
        table
            .drain(|_, batch| {
                design.encode(&batch, &[0, 1, 2, 3], &mut scaled);
                Ok(())
            })
            .unwrap();
        assert_eq!(scaled.len(), 4 * expected[0].len());
        for (i, row) in scaled.chunks_exact(4).enumerate() {
            for (column, found) in expected.iter().zip(row) {
                match column[i] {
                    None => assert!(found.is_nan(), "{scaling:?}, row {i}: {row:?}"),
                    // single precision, of numbers up to 30 deviations from zero
                    Some(expected) => {
                        assert!(
                            (f64::from(*found) - expected).abs() < 1e-5,
                            "{scaling:?}, row {i}: {found}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// Loss of some rows and its gradient.
fn measured(network: &Network, objective: &Objective, rows: &Rows<'_>) -> (f64, Vec<f32>) {
    let indices: Vec<u32> = (0..u32::try_from(rows.values.len() / rows.width).unwrap()).collect();
    let mut pass = Pass::default();
    pass.run(network, objective, rows, &indices, indices.len(), &mut generator(3, &[]));
    (pass.loss / f64::from(u32::try_from(indices.len()).unwrap()), pass.gradients)
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let widths = [6, 5, 3, 5, 6];
    let values: Vec<f32> = (0..60_u16).map(|i| (f32::from(i * 37 % 61) / 20.0) - 1.5).collect();
    let mut with_gaps = values.clone();
    with_gaps.iter_mut().step_by(7).for_each(|value| *value = f32::NAN);
    let labels: Vec<u32> = (0..10).map(|i| i * 5 % 6).collect();
    let fill = [0.1; 6];
    let reconstruction = Loss::Reconstruction { of: 0, absolute: false };
    let plain = Objective {
        loss: reconstruction,
        trained: 0..4,
        noise: None,
        dropout: 0.0,
        code: Some(1),
        l1_reg_activation: 0.0,
        class_weights: Vec::new(),
    };
    let mut objectives = vec![
        plain.clone(),
        Objective { loss: Loss::Reconstruction { of: 0, absolute: true }, ..plain.clone() },
        Objective { loss: Loss::CrossEntropy, ..plain.clone() },
        Objective { loss: Loss::CrossEntropy, class_weights: vec![0.2, 3.0, 1.0, 1.5, 0.7, 1.0], ..plain.clone() },
        Objective { l1_reg_activation: 0.5, ..plain.clone() },
        Objective { dropout: 0.3, ..plain.clone() },
        Objective { trained: 2..4, ..plain.clone() },
    ];
    for kind in [NoiseKind::Gaussian, NoiseKind::Masking, NoiseKind::SaltAndPepper] {
        objectives.push(Objective { noise: Some(Noise { kind, level: 0.3 }), ..plain.clone() });
    }
    for name in Activation::VARIANTS {
        let activation = Activation::parse("activation", name).unwrap();
        for objective in &objectives {
            let network = network(&widths, activation);
            let extremes = Extremes::of(&with_gaps, 6);
            let rows = Rows { values: &with_gaps, width: 6, fill: &fill, extremes: &extremes, labels: &labels };
            let trained = network.range(objective.trained.clone());
            let (_, gradients) = measured(&network, objective, &rows);
            let mut checked = 0;
            for (i, gradient) in gradients.iter().enumerate() {
                let step = 2e-3;
                let at = |change: f32| {
                    let mut moved = network.clone();
                    moved.parameters[trained.start + i] += change;
                    measured(&moved, objective, &rows).0
                };
                let (up, here, down) = (at(step), at(0.0), at(-step));
                let (right, left) = ((up - here) / f64::from(step), (here - down) / f64::from(step));
                // where the two sides differ, there is a kink between them
                if (right - left).abs() > 0.02 * right.abs().max(0.05) {
                    continue;
                }
                checked += 1;
                let found = f64::from(*gradient);
                let expected = f64::midpoint(left, right);
                assert!(
                    (found - expected).abs() < 1e-3 + 0.01 * expected.abs(),
                    "{activation} {objective:?} [{i}]: {found}, not {expected}"
                );
            }
            assert!(checked * 10 > gradients.len() * 8, "{activation} {objective:?}: only {checked} could be checked");
        }
    }
}
