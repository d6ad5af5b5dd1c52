//! Products of matrices.

/// A matrix of `f32`, stored row after row; read as its transpose if it is [`Matrix::transposed`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The first `rows * columns` of `values`, as `rows` rows.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values: &values[..rows * columns], rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What a product does to the values at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// Replaces them.
    Replace,
    /// Is added to them.
    Add,
}

/// Writes `a · b` to `to`, row after row, on the calling thread.
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32], write: Write) {
    assert_eq!(a.columns, b.rows, "shapes of a product");
    let to = &mut to[..a.rows * b.columns];
    if a.columns == 0 {
        if write == Write::Replace {
            to.fill(0.0);
        }
        return;
    }
    // the kernels prefer columns that are contiguous: (a · b)ᵀ = bᵀ · aᵀ; a single column already is
    let (left, right, to_row_stride, to_column_stride) = match b.columns {
        1 => (a, b, 1, 1),
        columns => (b.transposed(), a.transposed(), 1, columns),
    };
    let stride = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    // SAFETY: `Matrix::new` has checked that `values` holds rows * columns values, and a transpose reads the same ones.
    // `to` was cut to the size of the product above. It is borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            left.rows,
            right.columns,
            left.columns,
            to.as_mut_ptr(),
            stride(to_column_stride),
            stride(to_row_stride),
            write == Write::Add,
            left.values.as_ptr(),
            stride(left.column_stride),
            stride(left.row_stride),
            right.values.as_ptr(),
            stride(right.column_stride),
            stride(right.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "whole numbers are exact")]
mod tests {
    use super::*;

    #[test]
    fn products_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut to = [9.0; 4];
        let m = Matrix::new(&a, 2, 3);
        multiply(m, m.transposed(), &mut to, Write::Replace);
        assert_eq!(to, [14.0, 32.0, 32.0, 77.0]);
        multiply(m, m.transposed(), &mut to, Write::Add);
        assert_eq!(to, [28.0, 64.0, 64.0, 154.0]);
        let mut to = [0.0; 9];
        multiply(m.transposed(), m, &mut to, Write::Replace);
        assert_eq!(to, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }

    #[test]
    fn products_of_one_column_and_of_one_row() {
        let a = Matrix::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3);
        let mut column = [0.0; 2];
        multiply(a, Matrix::new(&[1.0, 10.0, 100.0], 3, 1), &mut column, Write::Replace);
        assert_eq!(column, [321.0, 654.0]);
        let mut row = [0.0; 3];
        multiply(Matrix::new(&[1.0, 10.0], 1, 2), a, &mut row, Write::Replace);
        assert_eq!(row, [41.0, 52.0, 63.0]);
        let mut unchanged = [7.0];
        multiply(Matrix::new(&[], 1, 0), Matrix::new(&[], 0, 1), &mut unchanged, Write::Add);
        assert_eq!(unchanged, [7.0]);
    }
}
