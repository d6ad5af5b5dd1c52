//! Principal axes of rows.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use aefusion_udfs::numbers::to_f32;
use datafusion::common::internal_err;
use datafusion::error::Result;
use nalgebra::{DMatrix, SymmetricEigen};

use crate::dataset::Dataset;
use crate::fit::FitContext;
use crate::gemm::{Matrix, Write, multiply};
use crate::gradient::fill_missing;
use crate::network::BLOCK_ROWS;

/// The mean of rows, and the orthonormal directions in which the rows vary most, in falling order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axes {
    pub(crate) mean: Vec<f64>,
    pub(crate) axes: Vec<Vec<f64>>,
}

impl Axes {
    /// The first `count` axes of rows, with missing values filled. If there are more than `most` rows, blocks at equal
    /// distances are used. `context` can abort between blocks, and while the axes are computed from the sums.
    ///
    /// # Errors
    /// An execution error if the rows cannot be read back, or if the training was aborted.
    pub(crate) fn of(dataset: &Dataset, count: usize, most: usize, context: &FitContext<'_>) -> Result<Self> {
        let width = dataset.width();
        let Self { mean, .. } = Self::mean_alone(dataset, context)?;
        let mut products = vec![0.0_f64; width * width];
        let (mut centered, mut product) = (Vec::new(), vec![0.0; width * width]);
        for_blocks(dataset, most, context, |rows| {
            centered.clear();
            for row in rows.chunks_exact(width) {
                centered.extend(row.iter().zip(&mean).map(|(value, mean)| to_f32(f64::from(*value) - mean)));
            }
            let block = Matrix::new(&centered, rows.len() / width, width);
            multiply(block.transposed(), block, &mut product, Write::Replace);
            products.iter_mut().zip(&product).for_each(|(sum, value)| *sum += f64::from(*value));
        })?;
        context.check()?;
        Ok(Self { mean, axes: interruptible(move || largest_axes(products, width, count), context)? })
    }

    /// The mean of rows, without axes.
    ///
    /// # Errors
    /// As [`Axes::of`].
    pub(crate) fn mean_alone(dataset: &Dataset, context: &FitContext<'_>) -> Result<Self> {
        let width = dataset.width();
        let mut sums = vec![0.0_f64; width];
        let mut n = 0.0_f64;
        for_blocks(dataset, usize::MAX, context, |rows| {
            for row in rows.chunks_exact(width) {
                n += 1.0;
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        })?;
        Ok(Self { mean: sums.iter().map(|sum| sum / n.max(1.0)).collect(), axes: Vec::new() })
    }
}

/// Computes on another thread, and asks `context` meanwhile. After an abort, the result of the thread is not awaited.
fn interruptible<T: Send + 'static>(
    compute: impl FnOnce() -> T + Send + 'static,
    context: &FitContext<'_>,
) -> Result<T> {
    const BETWEEN: Duration = Duration::from_millis(50);
    let (sender, receiver) = channel();
    // ignore a receiver that is gone after an abort
    std::thread::Builder::new().name("axes".to_owned()).spawn(move || drop(sender.send(compute())))?;
    loop {
        match receiver.recv_timeout(BETWEEN) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => context.check()?,
            Err(RecvTimeoutError::Disconnected) => return internal_err!("the thread of the principal axes panicked"),
        }
    }
}

/// The directions in which rows vary most, from the sums of products of their columns `[width, width]`.
fn largest_axes(products: Vec<f64>, width: usize, count: usize) -> Vec<Vec<f64>> {
    let eigen = SymmetricEigen::new(DMatrix::from_vec(width, width, products));
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let axis = |place: &usize| eigen.eigenvectors.column(*place).iter().copied().collect();
    order.iter().take(count).map(axis).collect()
}

/// Projects rows onto the two directions in which they vary most, for a chart of codes.
///
/// # Shapes
/// - `rows`: one vector a row, all of the same length
/// - returns one point a row; its second coordinate is 0 for rows of one number
pub fn two_axes(rows: &[Vec<f64>]) -> Vec<(f64, f64)> {
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

/// The errors of two simple models of rows, for comparison with a network.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Floors {
    /// Mean squared difference between rows and their mean.
    pub(crate) mean_only: f64,
    /// Mean squared difference between rows and their projection onto the axes.
    pub(crate) pca: f64,
}

impl Axes {
    /// The errors of rows; the error of a row is the mean over its values that are not missing.
    ///
    /// # Errors
    /// An execution error if the rows cannot be read back, or if the training was aborted.
    pub(crate) fn floors(&self, dataset: &Dataset, context: &FitContext<'_>) -> Result<Floors> {
        let width = dataset.width();
        let mut sums = Floors::default();
        dataset.visit(None, |rows, _| {
            for block in rows.values.chunks(BLOCK_ROWS * width) {
                context.check()?;
                for row in block.chunks_exact(width) {
                    self.add_errors(row, rows.fill, &mut sums);
                }
            }
            Ok(true)
        })?;
        let n = dataset.len().max(1) as f64;
        Ok(Floors { mean_only: sums.mean_only / n, pca: sums.pca / n })
    }

    fn add_errors(&self, row: &[f32], fill: &[f32], sums: &mut Floors) {
        let filled = row.iter().zip(fill).map(|(value, fill)| if value.is_nan() { fill } else { value });
        let mut residual: Vec<f64> = filled.zip(&self.mean).map(|(value, mean)| f64::from(*value) - mean).collect();
        sums.mean_only += mean_square(row, &residual);
        for axis in &self.axes {
            let coordinate: f64 = axis.iter().zip(&residual).map(|(a, r)| a * r).sum();
            residual.iter_mut().zip(axis).for_each(|(r, a)| *r -= coordinate * a);
        }
        sums.pca += mean_square(row, &residual);
    }
}

/// Mean of the squared `residual` over the values of `row` that are not missing.
fn mean_square(row: &[f32], residual: &[f64]) -> f64 {
    let given = row.iter().zip(residual).filter(|(value, _)| !value.is_nan());
    let (sum, n) = given.fold((0.0, 0.0_f64), |(sum, n), (_, residual)| (sum + residual * residual, n + 1.0));
    sum / n.max(1.0)
}

/// Visits the rows block by block, with missing values filled. If there are more than `most` rows, it visits every
/// second, third … block.
fn for_blocks(dataset: &Dataset, most: usize, context: &FitContext<'_>, mut visit: impl FnMut(&[f32])) -> Result<()> {
    let mut block = Vec::new();
    let mut number = 0_usize;
    let stride = dataset.len().div_ceil(most).max(1);
    dataset.visit(None, |rows, _| {
        for values in rows.values.chunks(BLOCK_ROWS * rows.width) {
            context.check()?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

    use datafusion::execution::DiskManager;

    use super::*;
    use crate::dataset::DatasetWriter;
    use crate::fit::{FitOptions, Schedule};
    use crate::optimizer::OptimizerKind;
    use crate::watch::{Control, Watch};

    /// Aborts when it is asked for the `after`th time.
    #[derive(Debug)]
    struct Aborting {
        after: usize,
        asked: AtomicUsize,
    }

    impl Watch for Aborting {
        fn control(&self) -> Control {
            match self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.after {
                true => Control::Abort,
                false => Control::Continue,
            }
        }
    }

    #[test]
    fn axes_and_floors_are_aborted_between_blocks() {
        let disk = Arc::new(DiskManager::builder().build().unwrap());
        let mut writer = DatasetWriter::new(vec![0.0; 2], false, 1 << 20, disk);
        // four blocks
        for i in 0..2000_u16 {
            writer.push(&[f32::from(i), f32::from(i % 7)], None).unwrap();
        }
        let dataset = writer.finish().unwrap();
        let options = FitOptions {
            batch_size: 1,
            learn_rate: 1.0,
            schedule: Schedule::Constant,
            optimizer: OptimizerKind::Sgd,
            l1_reg: 0.0,
            l2_reg: 0.0,
            max_iterations: 1,
            early_stop: false,
            min_rel_progress: 0.0,
            patience: 1,
            seed: 0,
        };
        let aborted_after = |after: usize, run: &dyn Fn(&FitContext<'_>) -> Result<()>| {
            let watch = Aborting { after, asked: AtomicUsize::new(0) };
            let context = FitContext {
                train: &dataset,
                held_out: &dataset,
                options: &options,
                watch: &watch,
                is_interrupted: &AtomicBool::new(false),
            };
            let error = run(&context).unwrap_err().to_string();
            assert!(error.contains("aborted"), "{error}");
            assert_eq!(watch.asked.into_inner(), after, "nothing is asked, or computed, after the abort");
        };
        let axes = |context: &FitContext<'_>| Axes::of(&dataset, 2, usize::MAX, context).map(drop);
        // in the mean, in the products, before the decomposition
        for after in [2, 7, 9] {
            aborted_after(after, &axes);
        }
        // while the axes are computed
        let started = Instant::now();
        aborted_after(2, &|context| interruptible(|| std::thread::sleep(Duration::from_secs(60)), context));
        assert!(started.elapsed() < Duration::from_secs(30));
        let mean = Axes { mean: vec![0.0; 2], axes: Vec::new() };
        aborted_after(3, &|context| mean.floors(&dataset, context).map(drop));
    }
}
