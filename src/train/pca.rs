//! Principal axes of rows.

use datafusion::error::Result;
use nalgebra::{DMatrix, SymmetricEigen};

use super::gradient::fill_missing;
use super::network::BLOCK_ROWS;
use super::product::{Into, Matrix, multiply};
use super::samples::Samples;

/// The mean of rows and the orthonormal directions in which they vary most, the first most.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axes {
    pub(super) mean: Vec<f64>,
    pub(super) axes: Vec<Vec<f64>>,
}

impl Axes {
    /// The first `count` axes of rows, missing values filled; of more than `most` rows, of blocks at equal distances.
    ///
    /// # Errors
    /// An execution error if the rows cannot be read back.
    pub(super) fn of(samples: &Samples, count: usize, most: usize) -> Result<Self> {
        let width = samples.width();
        let Self { mean, .. } = Self::mean_alone(samples)?;
        let mut products = vec![0.0_f64; width * width];
        let (mut centered, mut product) = (Vec::new(), vec![0.0; width * width]);
        for_blocks(samples, most, |rows| {
            centered.clear();
            for row in rows.chunks_exact(width) {
                centered
                    .extend(row.iter().zip(&mean).map(|(value, mean)| crate::narrow::to_f32(f64::from(*value) - mean)));
            }
            let block = Matrix::new(&centered, rows.len() / width, width);
            multiply(block.transposed(), block, &mut product, Into::Replace);
            products.iter_mut().zip(&product).for_each(|(sum, value)| *sum += f64::from(*value));
        })?;
        Ok(Self { mean, axes: largest_axes(products, width, count) })
    }

    /// The mean of rows, and no axes.
    ///
    /// # Errors
    /// As [`Axes::of`].
    pub(super) fn mean_alone(samples: &Samples) -> Result<Self> {
        let width = samples.width();
        let mut sums = vec![0.0_f64; width];
        let mut n = 0.0_f64;
        for_blocks(samples, usize::MAX, |rows| {
            for row in rows.chunks_exact(width) {
                n += 1.0;
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        })?;
        Ok(Self { mean: sums.iter().map(|sum| sum / n.max(1.0)).collect(), axes: Vec::new() })
    }
}

/// The directions in which rows vary most, out of the sums of products of their columns `[width, width]`.
fn largest_axes(products: Vec<f64>, width: usize, count: usize) -> Vec<Vec<f64>> {
    let eigen = SymmetricEigen::new(DMatrix::from_vec(width, width, products));
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let axis = |place: &usize| eigen.eigenvectors.column(*place).iter().copied().collect();
    order.iter().take(count).map(axis).collect()
}

/// The coordinates of rows along the two directions in which they vary most; the second is 0 for rows of one number.
pub(crate) fn two_axes(rows: &[Vec<f64>]) -> Vec<(f64, f64)> {
    let width = rows.first().map_or(0, Vec::len);
    let n = rows.len().max(1) as f64;
    let mean: Vec<f64> = (0..width).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / n).collect();
    let centered: Vec<Vec<f64>> =
        rows.iter().map(|row| row.iter().zip(&mean).map(|(value, mean)| value - mean).collect()).collect();
    let mut products = vec![0.0; width * width];
    for row in &centered {
        for (i, a) in row.iter().enumerate() {
            for (product, b) in products[i * width..(i + 1) * width].iter_mut().zip(row) {
                *product += a * b;
            }
        }
    }
    let axes = largest_axes(products, width, 2);
    let along = |row: &[f64], k: usize| axes.get(k).map_or(0.0, |axis| row.iter().zip(axis).map(|(a, b)| a * b).sum());
    centered.iter().map(|row| (along(row, 0), along(row, 1))).collect()
}

/// What rows lose on the way to their mean, and to their coordinates along the axes, and back.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Floors {
    /// Mean squared difference to the mean, over the values that are given.
    pub(super) mean_only: f64,
    /// Mean squared difference to the projection onto the axes.
    pub(super) pca: f64,
}

impl Axes {
    /// Errors of rows, each row the mean over its values that are given.
    ///
    /// # Errors
    /// An execution error if the rows cannot be read back.
    pub(super) fn floors(&self, samples: &Samples) -> Result<Floors> {
        let width = samples.width();
        let mut sums = Floors::default();
        samples.visit(None, |rows, _| {
            for row in rows.values.chunks_exact(width) {
                let filled = row.iter().zip(rows.fill).map(|(value, fill)| if value.is_nan() { fill } else { value });
                let mut rest: Vec<f64> = filled.zip(&self.mean).map(|(value, mean)| f64::from(*value) - mean).collect();
                sums.mean_only += mean_square(row, &rest);
                for axis in &self.axes {
                    let coordinate: f64 = axis.iter().zip(&rest).map(|(a, r)| a * r).sum();
                    rest.iter_mut().zip(axis).for_each(|(r, a)| *r -= coordinate * a);
                }
                sums.pca += mean_square(row, &rest);
            }
            Ok(true)
        })?;
        let n = samples.len().max(1) as f64;
        Ok(Floors { mean_only: sums.mean_only / n, pca: sums.pca / n })
    }
}

fn mean_square(row: &[f32], rest: &[f64]) -> f64 {
    let given = row.iter().zip(rest).filter(|(value, _)| !value.is_nan());
    let (sum, n) = given.fold((0.0, 0.0_f64), |(sum, n), (_, rest)| (sum + rest * rest, n + 1.0));
    sum / n.max(1.0)
}

/// Gives the rows block by block, missing values filled; of more than `most` rows, every second, third … block.
fn for_blocks(samples: &Samples, most: usize, mut visit: impl FnMut(&[f32])) -> Result<()> {
    let mut block = Vec::new();
    let mut number = 0_usize;
    let stride = samples.len().div_ceil(most).max(1);
    samples.visit(None, |rows, _| {
        for values in rows.values.chunks(BLOCK_ROWS * rows.width) {
            if number.is_multiple_of(stride) {
                block.clear();
                block.extend_from_slice(values);
                fill_missing(&mut block, rows.fill);
                visit(&block);
            }
            number += 1;
        }
        Ok(true)
    })
}
