//! The losses of rows, and their gradients.

use multiversion::multiversion;

/// The mean squared difference between rows and their reconstruction; the mean absolute difference if `absolute`.
///
/// The mean of a row is over its values that are not missing. Writes the gradient of the mean over `1 / scale` rows to
/// `gradients`, and returns the sum over the rows.
///
/// # Shapes
/// - `target`, `output`, `gradients`: `[rows, width]`, row-major, in the scaled space; a missing target is NaN
pub(crate) fn reconstruction(
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

/// The sum of the squared differences and the number of values that are not missing. Writes twice the differences.
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

/// The sum of the absolute differences and the number of values that are not missing. Writes their signs.
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

/// The cross-entropy of the softmax of `logits` `[rows, classes]`, with one class number a row in `labels`.
///
/// Replaces the logits with the gradient, times `scale`, and returns the sum over the rows.
pub(crate) fn cross_entropy(logits: &mut [f32], classes: usize, labels: &[u32], scale: f32) -> f64 {
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

/// The number of rows whose largest logit is that of their label.
pub(crate) fn hits(logits: &[f32], classes: usize, labels: &[u32]) -> usize {
    let is_hit = |(row, label): &(&[f32], &u32)| {
        let own = row[**label as usize];
        row.iter().all(|value| *value <= own)
    };
    logits.chunks_exact(classes).zip(labels).filter(is_hit).count()
}

/// -1, 0 or 1.
pub(crate) fn sign(value: f32) -> f32 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}
