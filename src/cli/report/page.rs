//! The page itself.

use std::collections::BTreeMap;

use aefusion_udfs::model::Model;
use aefusion_udfs::model::metadata::{Epoch, Role, Training};
use datafusion::error::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::{Scored, Worst, charts};
use crate::cli::training::summary_lines;
use aefusion_train::two_axes;

/// Maximum number of points of the scatter plot. More would cover each other.
const POINTS: usize = 3000;

/// Number of causes in the table of a row.
const CAUSES: usize = 8;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
    h1{font-size:1.6em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}\
    table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .7em;text-align:left;border-bottom:1px solid #eee}\
    td.n{text-align:right;font-variant-numeric:tabular-nums}.charts{display:flex;flex-wrap:wrap;gap:16px}\
    figure{margin:0;max-width:560px}figcaption{color:#555;font-size:.93em}svg{max-width:100%;height:auto}\
    .bar{background:#1f66b2;height:.7em;display:inline-block}details{margin:.4em 0}.warning{color:#a04000}";

/// A page about a model and the rows that it scored, as HTML.
pub(super) fn page(model: &Model, data: Option<&str>, scored: Option<&Scored>) -> Result<String> {
    let training = model.metadata().training.as_ref();
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Model " (model) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Model " (model) }
                (about(model, training))
                @if let Some(training) = training { (losses(training)?) }
                @if let Some(scored) = scored { (rows(model, data.unwrap_or_default(), scored)?) }
                @else { (calibration(model)?) }
                (options(training))
            }
        }
    };
    Ok(markup.into_string())
}

fn about(model: &Model, training: Option<&Training>) -> Markup {
    let contract = model.contract();
    let code = contract.tensor(Role::Code).map(|code| code.width());
    html! {
        p {
            (contract.features.len()) " features"
            @if let Some(code) = code { ", a code of " (code) }
            ", written by " (model.producer()) ", sha256 " code { (model.sha256_hex()) } "."
        }
        @if let Some(training) = training {
            @for line in summary_lines(&current(model, training)) {
                p class=(if line.starts_with("warning") { "warning" } else { "" }) { (line) }
            }
        }
    }
}

/// The summary of a training, with threshold and warnings for the current contamination of the model.
fn current(model: &Model, training: &Training) -> BTreeMap<String, Value> {
    let mut summary = training.summary.clone();
    summary.remove("threshold");
    summary.remove("calibration_rows_wanted");
    let calibration = model.metadata().calibration.as_ref();
    let smallest = calibration.map(|calibration| calibration.smallest_p_value());
    summary.extend(smallest.map(|p| ("smallest_p_value".to_owned(), p.into())));
    let wanted = calibration.zip(model.contract().contamination);
    let wanted = wanted.and_then(|(calibration, share)| calibration.rows_wanted(share));
    summary.extend(wanted.map(|wanted| ("calibration_rows_wanted".to_owned(), wanted.into())));
    summary.extend(threshold(model).map(|threshold| ("threshold".to_owned(), threshold.into())));
    summary
}

fn losses(training: &Training) -> Result<Markup> {
    let mut stages: Vec<&str> = Vec::new();
    for epoch in &training.history {
        if !stages.contains(&epoch.stage.as_str()) {
            stages.push(&epoch.stage);
        }
    }
    Ok(html! {
        h2 { "Loss by epoch" }
        div.charts {
            @for stage in stages {
                figure {
                    @let epochs: Vec<&Epoch> = training.history.iter().filter(|epoch| epoch.stage == stage).collect();
                    (PreEscaped(charts::loss(&epochs)?))
                    figcaption { "Stage \u{201c}" (stage) "\u{201d}. The grey line marks the epoch that was kept." }
                }
            }
        }
    })
}

fn threshold(model: &Model) -> Option<f64> {
    let share = model.contract().contamination?;
    model.metadata().calibration.as_ref()?.threshold(share).filter(|threshold| threshold.is_finite())
}

fn calibration(model: &Model) -> Result<Markup> {
    let Some(calibration) = &model.metadata().calibration else { return Ok(html! {}) };
    Ok(html! {
        h2 { "Errors of the " (calibration.rows) " calibration rows" }
        figure { (PreEscaped(charts::histogram(&calibration.sample(), threshold(model))?)) }
    })
}

fn rows(model: &Model, data: &str, scored: &Scored) -> Result<Markup> {
    let threshold = threshold(model);
    let step = scored.codes.len().div_ceil(POINTS).max(1);
    let codes: Vec<Vec<f64>> = scored.codes.iter().step_by(step).cloned().collect();
    let is_anomaly = |(i, error): (usize, &f64)| match &scored.labels {
        Some(labels) => labels[i],
        None => threshold.is_some_and(|threshold| *error >= threshold),
    };
    let anomalies: Vec<bool> = scored.errors.iter().enumerate().step_by(step).map(is_anomaly).collect();
    let over = threshold.map(|threshold| scored.errors.iter().filter(|error| **error >= threshold).count());
    Ok(html! {
        h2 { "Rows of " code { (data) } }
        p {
            (scored.errors.len()) " rows"
            @if let Some(over) = over { ", " (over) " over the threshold" }
            @if let Some(labels) = &scored.labels {
                "; " (labels.iter().filter(|label| **label).count()) " are known anomalies"
                @if let Some(threshold) = threshold { ", " (found(scored, labels, threshold)) " of those over the threshold" }
            }
            @if scored.not_finite > 0 { "; " (scored.not_finite) " rows with an infinite or NaN error are left out" }
            "."
        }
        div.charts {
            figure {
                (PreEscaped(charts::histogram(&scored.errors, threshold)?))
                figcaption { "Errors. The last bar includes all larger errors." }
            }
            @if !codes.is_empty() {
                figure {
                    (PreEscaped(charts::scatter(&two_axes(&codes), &anomalies)?))
                    figcaption {
                        "Codes, projected on their first two principal components. Orange: "
                        @if scored.labels.is_some() { "known anomalies." } @else { "errors over the threshold." }
                    }
                }
            }
            @if let Some(labels) = &scored.labels { (curves(&scored.errors, labels)?) }
            @for (i, (error, input, output)) in scored.rows.iter().enumerate() {
                figure {
                    (PreEscaped(charts::row(input, output)?))
                    figcaption {
                        "Input and reconstruction of the row with the "
                        @if i == 0 { "median" } @else { "largest" }
                        " error, " (format!("{error:.4}")) "."
                    }
                }
            }
        }
        (worst(&scored.worst))
    })
}

/// Known anomalies over the threshold.
fn found(scored: &Scored, labels: &[bool], threshold: f64) -> usize {
    scored.errors.iter().zip(labels).filter(|(error, label)| **error >= threshold && **label).count()
}

fn curves(errors: &[f64], labels: &[bool]) -> Result<Markup> {
    let Some(ranked) = Ranked::of(errors, labels) else {
        return Ok(html! { p.warning { "All rows have the same label, so there are no curves." } });
    };
    let share = ranked.positives / (ranked.positives + ranked.negatives);
    Ok(html! {
        figure {
            (PreEscaped(charts::unit_curve(&ranked.roc, [(0.0, 0.0), (1.0, 1.0)], "false positive rate", "true positive rate")?))
            figcaption { "ROC curve: rates for each threshold. Area under the curve: " (format!("{:.4}", ranked.area())) "." }
        }
        figure {
            (PreEscaped(charts::unit_curve(&ranked.precision_recall, [(0.0, share), (1.0, share)], "recall", "precision")?))
            figcaption { "Precision and recall for each threshold. Average precision: " (format!("{:.4}", ranked.average_precision())) "." }
        }
    })
}

/// Rows ranked by error. Rows with equal errors are one step.
struct Ranked {
    positives: f64,
    negatives: f64,
    roc: Vec<(f64, f64)>,
    /// Points of recall and precision.
    precision_recall: Vec<(f64, f64)>,
}

impl Ranked {
    /// Returns none if all labels are equal.
    fn of(errors: &[f64], labels: &[bool]) -> Option<Self> {
        let mut order: Vec<usize> = (0..errors.len()).collect();
        order.sort_by(|a, b| errors[*b].total_cmp(&errors[*a]));
        let positives = labels.iter().filter(|label| **label).count() as f64;
        let negatives = labels.len() as f64 - positives;
        if positives < 1.0 || negatives < 1.0 {
            return None;
        }
        let (mut found, mut wrong) = (0.0, 0.0);
        let mut roc = vec![(0.0, 0.0)];
        let mut precision_recall = Vec::new();
        for equal in order.chunk_by(|a, b| errors[*a].total_cmp(&errors[*b]).is_eq()) {
            let anomalies = equal.iter().filter(|row| labels[**row]).count() as f64;
            found += anomalies;
            wrong += equal.len() as f64 - anomalies;
            roc.push((wrong / negatives, found / positives));
            precision_recall.push((found / positives, found / (found + wrong)));
        }
        Some(Self { positives, negatives, roc, precision_recall })
    }

    /// Area under the ROC curve, by the trapezoidal rule.
    fn area(&self) -> f64 {
        self.roc.windows(2).map(|pair| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1)).sum()
    }

    /// Mean of the precision over the recall, by steps.
    fn average_precision(&self) -> f64 {
        let before = std::iter::once(0.0).chain(self.precision_recall.iter().map(|(recall, _)| *recall));
        before.zip(&self.precision_recall).map(|(before, (recall, precision))| (recall - before) * precision).sum()
    }
}

fn worst(rows: &[Worst]) -> Markup {
    html! {
        @if !rows.is_empty() { h2 { "Rows with the largest errors, and the features responsible" } }
        @for (i, row) in rows.iter().enumerate() {
            details open[i == 0] {
                summary { "error " (format!("{:.4}", row.error)) }
                table {
                    tr { th { "feature" } th { "value" } th { "expected" } th { "share of the error" } }
                    @for cause in row.causes.iter().take(CAUSES) {
                        tr {
                            td { (cause.feature) }
                            td.n { (cause.value) }
                            td.n { (cause.expected) }
                            td {
                                span.bar style=(format!("width:{:.0}px", 160.0 * cause.share)) {}
                                " " (format!("{:.0} %", 100.0 * cause.share))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn options(training: Option<&Training>) -> Markup {
    html! {
        @if let Some(training) = training {
            h2 { "Training options" }
            table {
                @for (name, value) in &training.options {
                    tr { td { (name) } td { (value) } }
                }
            }
        }
    }
}

/// A number with at most five decimals; other text unchanged.
pub(super) fn rounded(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(number) if text.contains('.') => {
            let short = format!("{number:.5}");
            short.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_by_hand() {
        // ranked: anomaly, normal, anomaly and normal with equal errors, normal
        let errors = [9.0, 5.0, 3.0, 3.0, 1.0];
        let labels = [true, false, true, false, false];
        let ranked = Ranked::of(&errors, &labels).into_iter().next();
        let (area, precision) = ranked.map_or((0.0, 0.0), |ranked| (ranked.area(), ranked.average_precision()));
        // the first anomaly is above 3 normal rows; the second is above 1, ties with 1 and is below 1: 4.5 of 6 pairs
        assert!((area - 0.75).abs() < 1e-12, "{area}");
        // recall 0.5 at precision 1, then 0.5 more at precision 2 of 4
        assert!((precision - 0.75).abs() < 1e-12, "{precision}");
        assert!(Ranked::of(&errors, &[false; 5]).is_none());
    }
}
