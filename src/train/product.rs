//! Products of matrices.

/// A matrix of `f32` that stands row after row; read as its transpose if `transposed`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` numbers, the first of `values`.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values: &values[..rows * columns], rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Rows as columns.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product replaces what stood there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    Replace,
    Add,
}

/// Writes `a · b` to `to`, row after row, on this thread alone.
pub(super) fn multiply(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32], into: Into) {
    assert_eq!(a.columns, b.rows, "shapes of a product");
    let to = &mut to[..a.rows * b.columns];
    if a.columns == 0 {
        if into == Into::Replace {
            to.fill(0.0);
        }
        return;
    }
    let stride = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    // SAFETY: `Matrix::new` has checked that rows * columns values stand there, and a transpose reads the same ones;
    // `to` was cut to the size of the product above, and being borrowed mutably it overlaps neither.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            to.as_mut_ptr(),
            1,
            stride(b.columns),
            into == Into::Add,
            a.values.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.values.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
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
        multiply(m, m.transposed(), &mut to, Into::Replace);
        assert_eq!(to, [14.0, 32.0, 32.0, 77.0]);
        multiply(m, m.transposed(), &mut to, Into::Add);
        assert_eq!(to, [28.0, 64.0, 64.0, 154.0]);
        let mut to = [0.0; 9];
        multiply(m.transposed(), m, &mut to, Into::Replace);
        assert_eq!(to, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }
}
