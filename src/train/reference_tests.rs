//! The trainer against PyTorch (`tests/reference/training.py`), and its gradients against differences.

#![allow(clippy::unwrap_used, reason = "tests")]

use aefusion_udfs::named::Named;
use serde::Deserialize;

use super::activation::Activation;
use super::fit::{FitOptions, Fitting, Schedule, Unwatched, generator};
use super::gradient::{Loss, Objective, Pass, Rows};
use super::network::{Layer, Network};
use super::noise::{Extremes, Noise, NoiseKind};
use super::optimizer::OptimizerKind;

#[derive(Deserialize)]
struct Case {
    activation: String,
    loss: String,
    optimizer: String,
    l1_reg_activation: f32,
    widths: Vec<usize>,
    parameters: Vec<f32>,
    rows: Vec<Vec<Option<f32>>>,
    labels: Vec<u32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    gradients: Vec<f32>,
    after: Vec<f32>,
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
    let (learn_rate, l2_reg) = match optimizer {
        OptimizerKind::AdamW => (0.01, 0.1),
        OptimizerKind::Sgd => (0.1, 0.0),
        _ => (0.01, 0.0),
    };
    FitOptions {
        batch_size: 7,
        learn_rate,
        schedule: Schedule::Constant,
        optimizer,
        l1_reg: 0.0,
        l2_reg,
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
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/training.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let what = format!("{} {} {}", case.activation, case.loss, case.optimizer);
        let activation = Activation::named("activation", &case.activation).unwrap();
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
        };
        let values: Vec<f32> = case.rows.iter().flatten().map(|value| value.unwrap_or(f32::NAN)).collect();
        let fill = vec![0.0; case.widths[0]];
        let width = case.widths[0];
        let extremes = Extremes::of(&values, width);
        let rows = Rows { values: &values, width, fill: &fill, extremes: &extremes, labels: &case.labels };
        let indices: Vec<u32> = (0..7).collect();
        let options = options(OptimizerKind::named("optimizer", &case.optimizer).unwrap());
        let mut fitting = Fitting::new(&objective, &options, &network, &Unwatched);
        for (i, step) in case.steps.iter().enumerate() {
            let what = format!("{what}, step {i}");
            let loss = fitting.batch(&mut network, &rows, &indices, [0, i], options.learn_rate) / 7.0;
            assert!((loss - step.loss).abs() < 1e-6 + 1e-5 * step.loss, "{what}: loss {loss}, not {}", step.loss);
            if options.optimizer != OptimizerKind::AdamW {
                assert_near(&format!("{what}: gradient"), fitting.gradients(), &step.gradients);
            }
            if options.optimizer == OptimizerKind::AdamW && i > 0 {
                break;
            }
            assert_near(&format!("{what}: parameter"), &network.parameters, &step.after);
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
    };
    let mut objectives = vec![
        plain.clone(),
        Objective { loss: Loss::Reconstruction { of: 0, absolute: true }, ..plain.clone() },
        Objective { loss: Loss::CrossEntropy, ..plain.clone() },
        Objective { l1_reg_activation: 0.5, ..plain.clone() },
        Objective { dropout: 0.3, ..plain.clone() },
        Objective { trained: 2..4, ..plain.clone() },
    ];
    for kind in [NoiseKind::Gaussian, NoiseKind::Masking, NoiseKind::SaltAndPepper] {
        objectives.push(Objective { noise: Some(Noise { kind, level: 0.3 }), ..plain.clone() });
    }
    for (_, activation) in Activation::NAMES {
        for objective in &objectives {
            let network = network(&widths, *activation);
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
