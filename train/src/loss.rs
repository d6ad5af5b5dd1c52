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

/// The cross-entropy of the softmax of `logits` `[rows, classes]`, with one class number a row in `labels`. A row counts
/// with the weight of its class in `weights`, or with 1 if there are no weights.
///
/// Replaces the logits with the gradient, times `scale`, and returns the sum over the rows.
pub(crate) fn cross_entropy(logits: &mut [f32], classes: usize, labels: &[u32], weights: &[f32], scale: f32) -> f64 {
    let mut sum = 0.0;
    for (row, label) in logits.chunks_exact_mut(classes).zip(labels) {
        let label = *label as usize;
        let weight = weights.get(label).copied().unwrap_or(1.0);
        let scale = scale * weight;
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = f64::from(row[label] - largest);
        row.iter_mut().for_each(|value| *value = (*value - largest).exp());
        let total: f32 = row.iter().sum();
        sum += f64::from(weight) * (f64::from(total).ln() - own);
        row.iter_mut().for_each(|value| *value *= scale / total);
        row[label] -= scale;
    }
    sum
}

/// The class that a row of logits predicts: the first of the largest logits, as `ae_predict`. None if a logit is NaN.
pub(crate) fn predicted(logits: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (class, logit) in logits.iter().copied().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((class, logit));
        }
    }
    best.map(|(class, _)| class)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_logits_is_predicted() {
        assert_eq!(predicted(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(predicted(&[0.0; 4]), Some(0), "a head that is dead predicts one class, not all");
        assert_eq!(predicted(&[1.0, f32::NAN, 3.0]), None);
        assert_eq!(predicted(&[f32::NEG_INFINITY; 2]), Some(0));
    }
}
