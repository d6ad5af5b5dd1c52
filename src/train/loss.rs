//! Losses over rows, and their gradients.

use multiversion::multiversion;

/// Difference between rows and their reconstruction, mean over the values that are given (a missing one is NaN) and over
/// `1 / scale` rows.
///
/// Writes the gradient to `gradients` and returns the sum over the rows of their mean squared (or, if `absolute`, their
/// mean absolute) difference.
pub(super) fn reconstruction(
    target: &[f32],
    output: &[f32],
    width: usize,
    absolute: bool,
    scale: f32,
    gradients: &mut [f32],
) -> f64 {
    let mut sum = 0.0;
    let rows = target.chunks_exact(width).zip(output.chunks_exact(width)).zip(gradients.chunks_exact_mut(width));
    for ((target, output), gradients) in rows {
        let (total, given) = match absolute {
            true => absolute_row(target, output, gradients),
            false => squared_row(target, output, gradients),
        };
        let given = given.max(1.0);
        sum += f64::from(total) / f64::from(given);
        let factor = scale / given;
        gradients.iter_mut().for_each(|gradient| *gradient *= factor);
    }
    sum
}

/// Sum of squares and number of values given; leaves twice the differences.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn squared_row(target: &[f32], output: &[f32], gradients: &mut [f32]) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut totals, mut counts) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let whole = target.len() / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for lane in 0..LANES {
            let t = target[i + lane];
            let is_given = !t.is_nan();
            let difference = if is_given { output[i + lane] - t } else { 0.0 };
            totals[lane] += difference * difference;
            counts[lane] += if is_given { 1.0 } else { 0.0 };
            gradients[i + lane] = 2.0 * difference;
        }
        i += LANES;
    }
    let (mut total, mut count) = (totals.iter().sum::<f32>(), counts.iter().sum::<f32>());
    for ((t, o), gradient) in target[whole..].iter().zip(&output[whole..]).zip(&mut gradients[whole..]) {
        let difference = if t.is_nan() { 0.0 } else { o - t };
        total += difference * difference;
        count += if t.is_nan() { 0.0 } else { 1.0 };
        *gradient = 2.0 * difference;
    }
    (total, count)
}

/// Sum of absolute differences and number of values given; leaves their signs.
fn absolute_row(target: &[f32], output: &[f32], gradients: &mut [f32]) -> (f32, f32) {
    let (mut total, mut count) = (0.0, 0.0);
    for ((t, o), gradient) in target.iter().zip(output).zip(gradients) {
        let difference = if t.is_nan() { 0.0 } else { o - t };
        total += difference.abs();
        count += if t.is_nan() { 0.0 } else { 1.0 };
        *gradient = sign(difference);
    }
    (total, count)
}

/// Cross-entropy of the softmax of `logits` `[rows, classes]` against class numbers.
///
/// Writes the gradient, times `scale`, in place of the logits, and returns the sum over the rows.
pub(super) fn cross_entropy(logits: &mut [f32], classes: usize, labels: &[u32], scale: f32) -> f64 {
    let mut sum = 0.0;
    for (row, label) in logits.chunks_exact_mut(classes).zip(labels) {
        let label = *label as usize;
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = f64::from(row[label] - largest);
        row.iter_mut().for_each(|value| *value = (*value - largest).exp());
        let total: f32 = row.iter().sum();
        sum += f64::from(total).ln() - own;
        row.iter_mut().for_each(|value| *value *= scale / total);
        row[label] -= scale;
    }
    sum
}

/// Number of rows whose largest logit is that of their label.
pub(super) fn hits(logits: &[f32], classes: usize, labels: &[u32]) -> usize {
    let is_hit = |(row, label): &(&[f32], &u32)| {
        let own = row[**label as usize];
        row.iter().all(|value| *value <= own)
    };
    logits.chunks_exact(classes).zip(labels).filter(is_hit).count()
}

/// -1, 0 or 1.
pub(super) fn sign(value: f32) -> f32 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}
