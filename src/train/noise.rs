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
    /// Spoils rows whose columns have these extremes.
    pub(super) fn add(self, rows: &mut [f32], Extremes { low, high }: &Extremes, rng: &mut Pcg64Mcg) {
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
                for row in rows.chunks_exact_mut(low.len().max(1)) {
                    for ((value, low), high) in row.iter_mut().zip(low).zip(high) {
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
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Extremes {
    low: Vec<f32>,
    high: Vec<f32>,
}

impl Extremes {
    /// Of no rows yet.
    pub(super) fn new(width: usize) -> Self {
        Self { low: vec![f32::INFINITY; width], high: vec![f32::NEG_INFINITY; width] }
    }

    /// Of rows of `width` values.
    pub(super) fn of(rows: &[f32], width: usize) -> Self {
        let mut extremes = Self::new(width);
        rows.chunks_exact(width.max(1)).for_each(|row| extremes.add(row));
        extremes
    }

    /// Columns that hold one value, or none.
    pub(super) fn constant(&self) -> impl Iterator<Item = usize> {
        self.low.iter().zip(&self.high).enumerate().filter(|(_, (low, high))| low >= high).map(|(column, _)| column)
    }

    /// A row more; missing values (NaN) do not count.
    pub(super) fn add(&mut self, row: &[f32]) {
        for ((value, low), high) in row.iter().zip(&mut self.low).zip(&mut self.high) {
            *low = low.min(*value);
            *high = high.max(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn salt_and_pepper_are_the_extremes_of_the_columns_whatever_the_rows() {
        let extremes = Extremes::of(&[-1.0, 5.0, 2.0, f32::NAN, 0.0, 7.0], 2);
        let mut row = [0.5, 6.0];
        let noise = Noise { kind: NoiseKind::SaltAndPepper, level: 1.0 };
        noise.add(&mut row, &extremes, &mut Pcg64Mcg::seed_from_u64(0));
        let is_extreme = |value: f32, extremes: [f32; 2]| extremes.contains(&value);
        assert!(is_extreme(row[0], [-1.0, 2.0]) && is_extreme(row[1], [5.0, 7.0]), "{row:?}");
    }
}
