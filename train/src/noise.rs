//! The noise that a denoising autoencoder learns to remove.

use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;
use strum::{EnumString, IntoStaticStr, VariantNames};

/// The kinds of noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
pub(crate) enum NoiseKind {
    /// Adds normally distributed numbers to all values.
    Gaussian,
    /// Sets some values to zero, the mean of a standardised column.
    Masking,
    /// Sets some values to the smallest or the largest value of their column.
    SaltAndPepper,
}

/// A kind of noise and its level.
///
/// # Source
/// Vincent et al., JMLR 11 (2010).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Noise {
    pub(crate) kind: NoiseKind,
    /// The standard deviation in the scaled space for gaussian noise; otherwise the share of values that change, 0 to 1.
    pub(crate) level: f32,
}

impl Noise {
    /// Adds the noise to rows whose columns have these extremes.
    pub(crate) fn add(self, rows: &mut [f32], Extremes { low, high }: &Extremes, rng: &mut Pcg64Mcg) {
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
                        // a column without values has no extremes
                        if chance < self.level && low <= high {
                            *value = if chance < self.level / 2.0 { *low } else { *high };
                        }
                    }
                }
            }
        }
    }
}

/// The smallest and the largest value of each column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Extremes {
    low: Vec<f32>,
    high: Vec<f32>,
}

impl Extremes {
    /// The extremes of no rows.
    pub(crate) fn new(width: usize) -> Self {
        Self { low: vec![f32::INFINITY; width], high: vec![f32::NEG_INFINITY; width] }
    }

    /// The extremes of rows of `width` values.
    pub(crate) fn of(rows: &[f32], width: usize) -> Self {
        let mut extremes = Self::new(width);
        rows.chunks_exact(width.max(1)).for_each(|row| extremes.add(row));
        extremes
    }

    /// The columns with one distinct value, or none.
    pub(crate) fn constant(&self) -> impl Iterator<Item = usize> {
        self.low.iter().zip(&self.high).enumerate().filter(|(_, (low, high))| low >= high).map(|(column, _)| column)
    }

    /// Adds a row; missing values (NaN) do not count.
    pub(crate) fn add(&mut self, row: &[f32]) {
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
        let nothing = Extremes::of(&[f32::NAN, 1.0], 2);
        let mut unchanged = [0.5, 6.0];
        noise.add(&mut unchanged, &nothing, &mut Pcg64Mcg::seed_from_u64(0));
        assert!(unchanged[0] > 0.4 && unchanged[0] < 0.6 && unchanged[1] < 1.5, "{unchanged:?}");
        let is_extreme = |value: f32, extremes: [f32; 2]| extremes.contains(&value);
        assert!(is_extreme(row[0], [-1.0, 2.0]) && is_extreme(row[1], [5.0, 7.0]), "{row:?}");
    }
}
