//! `cargo xtask bench quality` measures models that SQL trains on real data, and shows results of other libraries beside
//! them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::program::{Program, auroc};
use crate::{root, say};

/// Data set, AUROC of scikit-learn's perceptron as an autoencoder, AUROC of PyOD's autoencoder.
const ANOMALY_SETS: [(&str, f64, f64); 8] = [
    ("breastw", 0.991, 0.987),
    ("cardio", 0.957, 0.911),
    ("musk", 1.0, 1.0),
    ("thyroid", 0.976, 0.976),
    ("optdigits", 0.832, 0.859),
    ("satimage-2", 0.999, 0.999),
    ("satellite", 0.822, 0.793),
    ("annthyroid", 0.862, 0.857),
];

const ANOMALY_SEEDS: usize = 3;
const DIGIT_SEEDS: usize = 5;
const SPARSE_SEEDS: usize = 3;
const PIXELS: &str = "* EXCEPT (id, label, fit_0, fit_1, fit_2, fit_3, fit_4, label100_0, label100_1, label100_2, label100_3, label100_4)";

/// Measures all parts, or those whose names contain `filter`; returns their table.
pub(crate) fn run(program: Option<PathBuf>, filter: Option<&str>) -> Result<String> {
    let program = match program {
        Some(path) => Program { path },
        None => Program::release()?,
    };
    let mut bench = Bench { program, models: root().join("target/quality-models"), table: String::new() };
    let is_wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    bench.print("| what | aefusion | at least | others |\n| --- | --- | --- | --- |")?;
    if is_wanted("anomaly") {
        bench.anomalies()?;
    }
    if is_wanted("digits") {
        bench.digits()?;
    }
    if is_wanted("denoising") {
        bench.denoising()?;
    }
    if is_wanted("sparse") {
        bench.sparse()?;
    }
    if is_wanted("linear") {
        bench.linear()?;
    }
    Ok(bench.table)
}

struct Bench {
    program: Program,
    models: PathBuf,
    /// What was printed, in Markdown.
    table: String,
}

impl Bench {
    /// Runs statements on an empty model store; returns the rows that they print.
    fn sql(&self, sql: &str) -> Result<Vec<Vec<f64>>> {
        xtask::remove(&self.models)?;
        self.program.numbers(&self.models, sql)
    }

    fn line(&mut self, what: &str, found: f64, at_least: f64, others: &str) -> Result<()> {
        self.print(&format!("| {what} | {found:.4} | {at_least:.3} | {others} |"))
    }

    fn print(&mut self, line: &str) -> Result<()> {
        self.table.push_str(line);
        self.table.push('\n');
        say(line)
    }

    fn number(&self, sql: &str) -> Result<f64> {
        let rows = self.sql(sql)?;
        rows.first().and_then(|row| row.first()).copied().context("the query returned no number")
    }

    fn anomalies(&mut self) -> Result<()> {
        let mut sum = 0.0;
        for (set, scikit_learn, pyod) in ANOMALY_SETS {
            let file = data(set);
            let mut mean = 0.0;
            for seed in 0..ANOMALY_SEEDS {
                let auroc = self.number(&format!(
                    "CREATE MODEL m OPTIONS (seed = {seed})
                         AS SELECT * EXCEPT (id, label, fit_0, fit_1, fit_2) FROM '{file}' WHERE fit_{seed};
                     {}",
                    auroc("m", &format!("'{file}'"), &format!("NOT fit_{seed}"))
                ))?;
                mean += auroc / ANOMALY_SEEDS as f64;
            }
            sum += mean;
            let others = format!("scikit-learn {scikit_learn}, PyOD {pyod}");
            self.line(&format!("AUROC {set}"), mean, scikit_learn.max(pyod) - 0.02, &others)?;
        }
        let others = "PyOD .923, scikit-learn .930, isolation forest .932";
        self.line("AUROC, mean of 8 sets", sum / ANOMALY_SETS.len() as f64, 0.94, others)
    }

    /// Mean accuracy over the seeds of a classifier on the codes of a model. The model was trained on all training rows.
    fn accuracy(&self, base: &str, labels: &str, classifier: &str) -> Result<f64> {
        let file = data("digits");
        let mut mean = 0.0;
        for seed in 0..DIGIT_SEEDS {
            let label = labels.replace("{seed}", &seed.to_string());
            mean += self.number(&format!(
                "CREATE MODEL base OPTIONS (seed = {seed}, scaling = 'common', {base})
                     AS SELECT {PIXELS} FROM '{file}' WHERE fit_{seed};
                 CREATE MODEL digit OPTIONS (seed = {seed}, model_type = 'classifier', base_model = 'base',
                                             input_label_cols = ['label'], {classifier})
                     AS SELECT {PIXELS}, label FROM '{file}' WHERE {label};
                 SELECT avg(CASE WHEN ae_predict('digit') = label THEN 1.0 ELSE 0.0 END)
                     FROM '{file}' WHERE NOT fit_{seed}"
            ))? / DIGIT_SEEDS as f64;
        }
        Ok(mean)
    }

    fn digits(&mut self) -> Result<()> {
        let all = "fit_{seed}";
        let base = "hidden_units = [128, 16, 128], activation_fn = 'relu', code_activation_fn = 'tanh'";
        let others = "PyTorch .967, logistic regression .968";
        self.line("digits, all labels, fine-tuned", self.accuracy(base, all, "fine_tune = 'all'")?, 0.97, others)?;
        let head =
            "fine_tune = 'head', head_units = [64], activation_fn = 'relu', learn_rate = 0.003, max_iterations = 200";
        let others = "PyTorch .950, logistic regression on PCA .949";
        self.line("digits, all labels, encoder frozen", self.accuracy(base, all, head)?, 0.95, others)?;
        let few = "label100_{seed}";
        let base = "hidden_units = [256, 128, 256], training = 'layerwise', activation_fn = 'tanh', noise = 'masking',
                    noise_level = 0.3, learn_rate_schedule = 'constant', patience = 10, max_iterations = 50";
        let every_row = "data_split_eval_fraction = 0, calibration_share = 0";
        let head = format!("fine_tune = 'head', learn_rate = 0.01, l2_reg = 0.01, max_iterations = 200, {every_row}");
        let whole = format!("fine_tune = 'all', dropout = 0.3, learn_rate_schedule = 'cosine', {every_row}");
        let (frozen, tuned) = (self.accuracy(base, few, &head)?, self.accuracy(base, few, &whole)?);
        let others = "PyTorch .896, logistic regression .892";
        self.line("digits, 100 labels, layer by layer, frozen", frozen, 0.9, others)?;
        self.line("digits, 100 labels, layer by layer, fine-tuned", tuned, 0.9, others)
    }

    fn denoising(&mut self) -> Result<()> {
        let file = data("digits");
        let pixels: Vec<String> = (0..64).map(|i| format!("p{i}")).collect();
        // normally distributed numbers (Box and Muller), the same in every run
        let uniform = |i: usize| format!("((abs(sin(id * 12.9898 + {i} * 78.233 + value * 37.719)) * 43758.5453) % 1)");
        let noisy: Vec<String> = pixels
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let (radius, angle) = (uniform(2 * i), uniform(2 * i + 1));
                format!("{p} + 0.3 * sqrt(-2 * ln(1 - {radius})) * cos(2 * pi() * {angle}) AS {p}")
            })
            .collect();
        let squares: Vec<String> = pixels.iter().map(|p| format!("power(d['{p}'] - {p}_clean, 2)")).collect();
        let clean: Vec<String> = pixels.iter().map(|p| format!("{p} AS {p}_clean")).collect();
        let db = self.number(&format!(
            "CREATE MODEL m OPTIONS (noise = 'gaussian', scaling = 'common') AS SELECT {PIXELS} FROM '{file}' WHERE fit_0;
             WITH noisy AS (SELECT {}, {} FROM '{file}', generate_series(1, 5) AS g(value) WHERE NOT fit_0),
             denoised AS (SELECT *, ae_denoise('m') AS d FROM noisy)
             SELECT 10 * log10(1 / avg(({}) / 64)) FROM denoised",
            clean.join(", "),
            noisy.join(", "),
            squares.join(" + "),
        ))?;
        self.line("denoising digits, dB", db, 17.8, "Wiener 16.4, PyTorch 17.84, noisy 10.5")
    }

    fn sparse(&mut self) -> Result<()> {
        let file = data("digits");
        let (mut ratio, mut mean_share) = (0.0, 0.0);
        for seed in 0..SPARSE_SEEDS {
            let measure = |penalty: f64| -> Result<(f64, f64)> {
                let rows = self.sql(&format!(
                    "CREATE MODEL m OPTIONS (seed = {seed}, l1_reg_activation = {penalty}, hidden_units = [256, 512, 256],
                                             activation_fn = 'relu', code_activation_fn = 'sigmoid', noise = 'gaussian',
                                             learn_rate = 0.003, patience = 50, max_iterations = 100)
                         AS SELECT {PIXELS} FROM '{file}' WHERE fit_{seed};
                     WITH coded AS (SELECT ae_error('m') AS error, unnest(ae_encode('m')) AS unit
                                    FROM '{file}' WHERE NOT fit_{seed})
                     SELECT avg(error), avg(CASE WHEN unit < 0.01 THEN 1.0 ELSE 0.0 END) FROM coded"
                ))?;
                let row = rows.first().context("no row")?;
                Ok((row[0], row[1]))
            };
            let ((dense_error, _), (error, share)) = (measure(0.0)?, measure(0.3)?);
            ratio += error / dense_error / SPARSE_SEEDS as f64;
            mean_share += share / SPARSE_SEEDS as f64;
        }
        self.line("sparse, L1 .3: share of units under .01", mean_share, 0.7, "PyTorch .735 (64-128-64)")?;
        self.line("sparse: error over that of the dense one (at most)", ratio, 1.05, "")
    }

    fn linear(&mut self) -> Result<()> {
        let digits = data("digits");
        let cardio = data("cardio");
        let pixels: Vec<String> = (0..64).map(|i| format!("power(d['p{i}'] - p{i}, 2)")).collect();
        for (code, floor) in [(8, 0.023_913), (16, 0.011_044)] {
            let error = self.number(&format!(
                "CREATE MODEL m OPTIONS (hidden_units = [{code}], activation_fn = 'linear', scaling = 'common', {ALL_ROWS})
                     AS SELECT {PIXELS} FROM '{digits}';
                 WITH d AS (SELECT *, ae_reconstruct('m') AS d FROM '{digits}')
                 SELECT avg(({}) / 64) FROM d",
                pixels.join(" + ")
            ))?;
            self.line(
                &format!("linear, digits, code {code}: over the PCA floor (at most)"),
                error / floor,
                1.001,
                "1",
            )?;
        }
        let error = self.number(&format!(
            "CREATE MODEL m OPTIONS (hidden_units = [6], activation_fn = 'linear', {ALL_ROWS})
                 AS SELECT * EXCEPT (id, label, fit_0, fit_1, fit_2) FROM '{cardio}';
             SELECT avg(ae_error('m')) FROM '{cardio}'"
        ))?;
        self.line("linear, cardio, code 6: over the PCA floor (at most)", error / 0.289_351, 1.001, "1")
    }
}

const ALL_ROWS: &str = "data_split_eval_fraction = 0, calibration_share = 0";

/// The file of a data set. The demo's is stored with the demo.
fn data(set: &str) -> String {
    match set {
        "satimage-2" => format!("examples/demo/{set}.parquet"),
        _ => format!("benches/quality/data/{set}.parquet"),
    }
}
