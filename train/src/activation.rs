//! Activation functions and their derivatives.

use std::fmt;

use aefusion_udfs::choice::Choice;
use multiversion::multiversion;
use strum::{EnumString, IntoStaticStr, VariantNames};

/// The function that a layer applies to its weighted sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub(crate) enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x` if positive, otherwise `exp(x) - 1`
    Elu,
    /// A scaled ELU that keeps standardised values standardised (Klambauer et al., 2017).
    Selu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
    /// `x`
    Linear,
}

/// Constants of the SELU function, from the paper and from ONNX.
const SELU_ALPHA: f32 = 1.673_263_2;
const SELU_SCALE: f32 = 1.050_701;

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Activation {
    /// Replaces values with the function of them.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Self::Linear => {}
            Self::Relu => relu(values),
            Self::Relu6 => relu6(values),
            Self::Elu => elu(values, 1.0, 1.0),
            Self::Selu => elu(values, SELU_SCALE, SELU_ALPHA),
            Self::Sigmoid => sigmoid(values),
            Self::Tanh => tanh(values),
        }
    }

    /// Multiplies gradients by the derivative, computed from the outputs of the function.
    pub(crate) fn backward(self, outputs: &[f32], gradients: &mut [f32]) {
        match self {
            Self::Linear => {}
            Self::Relu => multiply(outputs, gradients, |a| if a > 0.0 { 1.0 } else { 0.0 }),
            Self::Relu6 => multiply(outputs, gradients, |a| if a > 0.0 && a < 6.0 { 1.0 } else { 0.0 }),
            Self::Elu => multiply(outputs, gradients, |a| if a > 0.0 { 1.0 } else { a + 1.0 }),
            Self::Selu => {
                multiply(outputs, gradients, |a| if a > 0.0 { SELU_SCALE } else { a + SELU_SCALE * SELU_ALPHA })
            }
            Self::Sigmoid => multiply(outputs, gradients, |a| a * (1.0 - a)),
            Self::Tanh => multiply(outputs, gradients, |a| 1.0 - a * a),
        }
    }
}

#[inline(always)]
fn multiply(outputs: &[f32], gradients: &mut [f32], derivative: impl Fn(f32) -> f32) {
    for (gradient, output) in gradients.iter_mut().zip(outputs) {
        *gradient *= derivative(*output);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn relu(values: &mut [f32]) {
    for value in values {
        // not `max`, which would turn NaN into 0
        *value = if *value < 0.0 { 0.0 } else { *value };
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn relu6(values: &mut [f32]) {
    for value in values {
        *value = value.clamp(0.0, 6.0);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn elu(values: &mut [f32], scale: f32, alpha: f32) {
    for value in values {
        let x = *value;
        // not `min`, which would turn NaN into 0
        let below = alpha * (exp(if x > 0.0 { 0.0 } else { x }) - 1.0);
        *value = scale * if x > 0.0 { x } else { below };
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn sigmoid(values: &mut [f32]) {
    for value in values {
        *value = 1.0 / (1.0 + exp(-*value));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn tanh(values: &mut [f32]) {
    for value in values {
        *value = 1.0 - 2.0 / (exp(2.0 * *value) + 1.0);
    }
}

/// `e^x` to within 2 units in the last place, without a call or a branch: loops over it become vector instructions.
/// Values that would overflow give the largest power.
///
/// # Source
/// Range reduction and polynomial of Cephes `expf` (S. Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding this constant to a small number leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * LN_2_HIGH - power * LN_2_LOW;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    mantissa * f32::from_bits(exponent)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; these numbers are exact")]
mod tests {
    use strum::VariantNames as _;

    use super::*;

    #[test]
    fn no_activation_hides_nan() {
        for name in Activation::VARIANTS {
            let activation = Activation::parse("activation", name).unwrap();
            // in a vector of instructions, and in its rest
            let mut values = [f32::NAN; 19];
            activation.apply(&mut values);
            assert!(values.iter().all(|value| value.is_nan()), "{name}: {values:?}");
        }
        let mut values = [-2.0, -0.0, 0.0, 3.0];
        Activation::Relu.apply(&mut values);
        assert_eq!(values, [0.0, 0.0, 0.0, 3.0]);
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for i in -8730..8830_i16 {
            let x = f32::from(i) / 100.0;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(relative < 2.5e-7, "exp({x}): off by {relative}");
        }
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) < 1e-37);
    }
}
