//! Noise that a denoising autoencoder is given and must take away.

use aefusion_udfs::named::Named;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

/// What is done to the values of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoiseKind {
    /// Adds normally distributed numbers.
    Gaussian,
    /// Sets some values to zero, which is the mean of a standardised column.
    Masking,
    /// Sets some values to the smallest or the largest of their column.
    SaltAndPepper,
}

impl Named for NoiseKind {
    const NAMES: &'static [(&'static str, Self)] =
        &[("gaussian", Self::Gaussian), ("masking", Self::Masking), ("salt_and_pepper", Self::SaltAndPepper)];
}

/// Noise of a strength.
///
/// # Source
/// Vincent et al., JMLR 11 (2010).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Noise {
    pub(super) kind: NoiseKind,
    /// Standard deviation of what is added, in the scaled space; or the share of values that are replaced, 0 to 1.
    pub(super) level: f32,
}

impl Noise {
    /// Spoils rows of `width` values.
    pub(super) fn add(self, rows: &mut [f32], width: usize, rng: &mut Pcg64Mcg) {
        match self.kind {
            NoiseKind::Gaussian => {
                for value in rows {
                    let normal: f32 = StandardNormal.sample(rng);
                    *value += self.level * normal;
                }
            }
            NoiseKind::Masking => {
                for value in rows {
                    if rng.random::<f32>() < self.level {
                        *value = 0.0;
                    }
                }
            }
            NoiseKind::SaltAndPepper => {
                let (low, high) = extremes(rows, width);
                for row in rows.chunks_exact_mut(width) {
                    for ((value, low), high) in row.iter_mut().zip(&low).zip(&high) {
                        let chance: f32 = rng.random();
                        if chance < self.level {
                            *value = if chance < self.level / 2.0 { *low } else { *high };
                        }
                    }
                }
            }
        }
    }
}

/// Smallest and largest value of each column.
fn extremes(rows: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut low = vec![f32::INFINITY; width];
    let mut high = vec![f32::NEG_INFINITY; width];
    for row in rows.chunks_exact(width) {
        for ((value, low), high) in row.iter().zip(&mut low).zip(&mut high) {
            *low = low.min(*value);
            *high = high.max(*value);
        }
    }
    (low, high)
}
