//! The values of an input tensor, and blocks of its rows.

use std::fmt::Debug;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use datafusion_common::error::Result;
use datafusion_common::exec_err;
use half::f16;

use super::cast;
use crate::metadata::NullPolicy;
use crate::numbers::{ToF32, ToF64};
use crate::runtime::{Element, Input};

/// Rows of a tile when columns become rows. The tile of the result stays in the first-level cache.
const TILE_ROWS: usize = 64;

/// Columns that are copied together.
const LANES: usize = 8;

macro_rules! natives {
    ($($kind:ident: $arrow:ty),*) => {
        /// The values of an input tensor for all rows, in its element type.
        #[derive(Debug)]
        pub(crate) enum Cells {
            $($kind(Layout<<$arrow as ArrowPrimitiveType>::Native>),)*
            Bool(Vec<bool>, usize),
            String(Vec<String>, usize),
        }

        /// Memory of a block; all blocks of a run reuse it.
        #[derive(Debug)]
        pub(crate) enum Block {
            $($kind(Vec<<$arrow as ArrowPrimitiveType>::Native>),)*
            Bool(Vec<bool>),
            String(Vec<String>),
        }

        impl Block {
            /// Memory, bytes; for strings, without their text.
            pub(crate) fn bytes(&self) -> usize {
                match self {
                    $(Self::$kind(values) => values.capacity() * size_of::<<$arrow as ArrowPrimitiveType>::Native>(),)*
                    Self::Bool(values) => values.capacity(),
                    Self::String(values) => values.capacity() * size_of::<String>(),
                }
            }
        }

        impl Cells {
            /// Cells from one array, row after row.
            pub(crate) fn packed(values: &ArrayRef, element: Element, width: usize, policy: NullPolicy) -> Result<Self> {
                Ok(match element {
                    $(Element::$kind => Self::$kind(Layout::packed(number::<$arrow>(values)?, width, null_value(policy))),)*
                    Element::Bool => Self::Bool(booleans(values)?, width),
                    Element::String => Self::String(strings(values)?, width),
                })
            }

            /// Cells from one array for each column.
            pub(crate) fn columns(columns: &[ArrayRef], element: Element, policy: NullPolicy) -> Result<Self> {
                Ok(match element {
                    $(Element::$kind => {
                        let columns = columns.iter().map(|array| Column::of::<$arrow>(array)).collect::<Result<_>>()?;
                        Self::$kind(Layout::Columns(columns, null_value(policy)))
                    })*
                    Element::Bool => Self::Bool(interleave(columns, booleans)?, columns.len()),
                    Element::String => Self::String(interleave(columns, strings)?, columns.len()),
                })
            }

            /// An empty block of this element type.
            pub(crate) fn new_block(&self) -> Block {
                match self {
                    $(Self::$kind(_) => Block::$kind(Vec::new()),)*
                    Self::Bool(..) => Block::Bool(Vec::new()),
                    Self::String(..) => Block::String(Vec::new()),
                }
            }

            /// The rows of a range, with zeros up to `padded` rows. Packed rows without padding are not copied. The rows that
            /// are not `valid` have no result, so their numbers may be beyond the range of the type.
            ///
            /// # Errors
            /// An execution error if a number is beyond the range of the type, or if `block` was made for other cells.
            pub(crate) fn block<'a>(
                &'a self,
                rows: Range<usize>,
                padded: usize,
                valid: Option<&NullBuffer>,
                block: &'a mut Block,
            ) -> Result<Input<'a>> {
                match (self, block) {
                    $((Self::$kind(layout), Block::$kind(block)) => Ok(Input::$kind(layout.block(rows, padded, valid, block)?)),)*
                    (Self::Bool(values, width), Block::Bool(block)) => Ok(Input::Bool(padded_copy(values, *width, rows, padded, block))),
                    (Self::String(values, width), Block::String(block)) => Ok(Input::String(padded_copy(values, *width, rows, padded, block))),
                    _ => exec_err!("the block has another element type than its cells"),
                }
            }
        }
    };
}
natives!(
    Float16: Float16Type, Float32: Float32Type, Float64: Float64Type, Int8: Int8Type, Int16: Int16Type,
    Int32: Int32Type, Int64: Int64Type, UInt8: UInt8Type, UInt16: UInt16Type, UInt32: UInt32Type, UInt64: UInt64Type
);

/// The values of an array and its nulls.
#[derive(Debug)]
pub(crate) struct Column<T: Number> {
    values: ColumnValues<T>,
    nulls: Option<NullBuffer>,
}

#[derive(Debug)]
enum ColumnValues<T: Number> {
    Same(ScalarBuffer<T>),
    /// Numbers of another type, converted while they are copied. A separate cast takes three times as long.
    Other(Box<dyn Convert<T>>),
}

/// Numbers that convert to another type.
pub(crate) trait Convert<T>: Debug + Send + Sync {
    fn convert(&self, rows: Range<usize>, into: &mut [T]);

    /// The number of a row.
    fn number(&self, row: usize) -> f64;
}

impl<S: Number + ToF32 + ToF64> Convert<f32> for ScalarBuffer<S> {
    fn convert(&self, rows: Range<usize>, into: &mut [f32]) {
        into.iter_mut().zip(&self[rows]).for_each(|(to, from)| *to = from.to_f32());
    }

    fn number(&self, row: usize) -> f64 {
        self[row].to_f64()
    }
}

impl<T: Number> Column<T> {
    fn of<A: ArrowPrimitiveType<Native = T>>(array: &ArrayRef) -> Result<Self> {
        if let Some(values) = T::converted(array) {
            return Ok(Self { values: ColumnValues::Other(values), nulls: given_nulls(array) });
        }
        let (values, nulls) = number::<A>(array)?;
        Ok(Self { values: ColumnValues::Same(values), nulls })
    }

    /// The values of some rows; in `scratch` if they are converted.
    fn tile<'a>(&'a self, rows: Range<usize>, scratch: &'a mut [T; TILE_ROWS]) -> &'a [T] {
        match &self.values {
            ColumnValues::Same(values) => &values[rows],
            ColumnValues::Other(values) => {
                let into = &mut scratch[..rows.len()];
                values.convert(rows, into);
                into
            }
        }
    }
}

fn given_nulls(array: &dyn Array) -> Option<NullBuffer> {
    array.nulls().filter(|nulls| nulls.null_count() > 0).cloned()
}

/// The memory layout of cells.
#[derive(Debug)]
pub(crate) enum Layout<T: Number> {
    /// Row after row, with nulls replaced.
    Packed(ScalarBuffer<T>, usize),
    /// Column after column; the second value replaces nulls.
    Columns(Vec<Column<T>>, T),
}

/// A number that a tensor can hold.
pub(crate) trait Number: arrow::datatypes::ArrowNativeType + ToF64 {
    /// The value of a null that the graph fills in: NaN, or 0 for integers.
    const MISSING: Self;

    /// The numbers of an array of another type, if they convert one by one; none if the array needs a cast.
    fn converted(_: &ArrayRef) -> Option<Box<dyn Convert<Self>>> {
        None
    }
}

impl Number for f32 {
    const MISSING: Self = Self::NAN;

    fn converted(array: &ArrayRef) -> Option<Box<dyn Convert<Self>>> {
        match array.data_type() {
            DataType::Float64 => Some(Box::new(array.as_primitive::<Float64Type>().values().clone())),
            DataType::Int64 => Some(Box::new(array.as_primitive::<Int64Type>().values().clone())),
            DataType::Int32 => Some(Box::new(array.as_primitive::<Int32Type>().values().clone())),
            _ => None,
        }
    }
}

macro_rules! missing {
    ($($native:ty = $value:expr),*) => { $(impl Number for $native { const MISSING: Self = $value; })* };
}
missing!(f16 = f16::NAN, f64 = f64::NAN, i8 = 0, i16 = 0, i32 = 0, i64 = 0, u8 = 0, u16 = 0, u32 = 0, u64 = 0);

fn null_value<T: Number>(policy: NullPolicy) -> T {
    match policy {
        NullPolicy::Impute => T::MISSING,
        NullPolicy::Propagate => T::default(),
    }
}

impl<T: Number> Layout<T> {
    fn packed((values, nulls): (ScalarBuffer<T>, Option<NullBuffer>), width: usize, null: T) -> Self {
        let Some(nulls) = &nulls else { return Self::Packed(values, width) };
        let replaced =
            values.iter().zip(nulls.iter()).map(|(value, valid)| if valid { *value } else { null }).collect();
        Self::Packed(replaced, width)
    }

    fn block<'a>(
        &'a self,
        rows: Range<usize>,
        padded: usize,
        valid: Option<&NullBuffer>,
        block: &'a mut Vec<T>,
    ) -> Result<&'a [T]> {
        match self {
            Self::Packed(values, width) => Ok(padded_copy(values, *width, rows, padded, block)),
            Self::Columns(columns, null) => {
                transpose(columns, *null, rows.clone(), padded, block);
                check_converted(columns, rows, valid, block)?;
                Ok(block)
            }
        }
    }
}

/// Checks that no finite number of a valid row became infinite. The block is still in the cache, unlike the columns.
fn check_converted<T: Number>(
    columns: &[Column<T>],
    rows: Range<usize>,
    valid: Option<&NullBuffer>,
    block: &[T],
) -> Result<()> {
    let is_converted = columns.iter().any(|column| matches!(column.values, ColumnValues::Other(_)));
    // without an early end, so the compiler can vectorise it
    if !is_converted || !block.iter().fold(false, |found, value| found | value.to_f64().is_infinite()) {
        return Ok(());
    }
    let is_valid = |row| valid.is_none_or(|valid| valid.is_valid(row));
    for (row, values) in rows.zip(block.chunks_exact(columns.len())).filter(|(row, _)| is_valid(*row)) {
        for (column, value) in columns.iter().zip(values) {
            if let ColumnValues::Other(source) = &column.values
                && value.to_f64().is_infinite()
                && source.number(row).is_finite()
            {
                return beyond(source.number(row), &DataType::Float32);
            }
        }
    }
    Ok(())
}

fn beyond<T>(value: f64, data_type: &DataType) -> Result<T> {
    exec_err!("the model takes {data_type}, which cannot hold {value:e}; scale or limit the values first")
}

fn padded_copy<'a, T: Clone + Default>(
    values: &'a [T],
    width: usize,
    rows: Range<usize>,
    padded: usize,
    block: &'a mut Vec<T>,
) -> &'a [T] {
    let given = &values[rows.start * width..rows.end * width];
    if rows.len() == padded {
        return given;
    }
    block.clear();
    block.extend_from_slice(given);
    block.resize(padded * width, T::default());
    block
}

/// Columns as rows, in tiles. A tile reads some rows of each column, and its rows stay in the first-level cache until
/// all columns are written.
fn transpose<T: Number>(columns: &[Column<T>], null: T, rows: Range<usize>, padded: usize, block: &mut Vec<T>) {
    let width = columns.len();
    block.resize(padded * width, T::default());
    let mut scratch = [[T::default(); TILE_ROWS]; LANES];
    let is_whole = columns.iter().all(|column| column.nulls.is_none());
    let eights = if is_whole { width / LANES * LANES } else { 0 };
    for start in rows.clone().step_by(TILE_ROWS) {
        let tile = start..(start + TILE_ROWS).min(rows.end);
        let into = &mut block[(tile.start - rows.start) * width..(tile.end - rows.start) * width];
        for (first, eight) in columns[..eights].chunks_exact(LANES).enumerate() {
            let mut tiles = eight.iter().zip(&mut scratch).map(|(column, scratch)| column.tile(tile.clone(), scratch));
            transpose_eight(std::array::from_fn(|_| tiles.next().unwrap_or_default()), first * LANES, width, into);
        }
        for (j, column) in columns.iter().enumerate().skip(eights) {
            let values = column.tile(tile.clone(), &mut scratch[0]);
            match &column.nulls {
                None => into.chunks_exact_mut(width).zip(values).for_each(|(row, value)| row[j] = *value),
                Some(nulls) => {
                    for ((row, value), index) in into.chunks_exact_mut(width).zip(values).zip(tile.clone()) {
                        row[j] = if nulls.is_valid(index) { *value } else { null };
                    }
                }
            }
        }
    }
    block[rows.len() * width..].fill(T::default());
}

/// Copies eight columns at once, with one write for each row.
fn transpose_eight<T: Number>(columns: [&[T]; LANES], first: usize, width: usize, into: &mut [T]) {
    for (i, row) in into.chunks_exact_mut(width).enumerate() {
        let values: [T; LANES] = std::array::from_fn(|j| columns[j][i]);
        row[first..first + LANES].copy_from_slice(&values);
    }
}

/// Rows as columns, in the same tiles as `transpose`.
pub fn split_columns<T: Copy>(values: &[T], width: usize) -> Vec<Vec<T>> {
    let rows = values.len().checked_div(width).unwrap_or_default();
    let mut columns: Vec<Vec<T>> = (0..width).map(|_| Vec::with_capacity(rows)).collect();
    for tile in values.chunks(TILE_ROWS * width.max(1)) {
        for (j, column) in columns.iter_mut().enumerate() {
            column.extend(tile[j..].iter().step_by(width));
        }
    }
    columns
}

/// The values of an array as a number type, and its nulls.
fn number<T: ArrowPrimitiveType>(array: &ArrayRef) -> Result<(ScalarBuffer<T::Native>, Option<NullBuffer>)>
where
    T::Native: Number,
{
    // Arrow cannot cast these types to f16
    let via = match array.data_type() {
        DataType::Boolean | DataType::Decimal128(..) | DataType::Decimal256(..)
            if T::DATA_TYPE == DataType::Float16 =>
        {
            &cast(array, &DataType::Float32)?
        }
        DataType::Null => &arrow::array::new_null_array(&T::DATA_TYPE, array.len()),
        _ => array,
    };
    let cast = cast(via, &T::DATA_TYPE)?;
    if T::DATA_TYPE.is_integer() && !via.data_type().is_integer() {
        check_whole(via, &cast)?;
    }
    let numbers = cast.as_primitive::<T>();
    if T::DATA_TYPE.is_floating() && *via.data_type() != T::DATA_TYPE {
        check_range(via, numbers)?;
    }
    Ok((numbers.values().clone(), given_nulls(numbers)))
}

/// Checks that a cast to a floating-point type made no finite number infinite.
fn check_range<T: ArrowPrimitiveType>(from: &ArrayRef, to: &PrimitiveArray<T>) -> Result<()>
where
    T::Native: Number,
{
    if !to.iter().flatten().any(|value| value.to_f64().is_infinite()) {
        return Ok(());
    }
    let from = cast(from, &DataType::Float64)?;
    let finite = |(from, to): (Option<f64>, Option<T::Native>)| {
        from.filter(|from| from.is_finite() && to.is_some_and(|to| to.to_f64().is_infinite()))
    };
    match from.as_primitive::<Float64Type>().iter().zip(to.iter()).find_map(finite) {
        Some(value) => beyond(value, &T::DATA_TYPE),
        None => Ok(()),
    }
}

/// Checks that a cast to an integer lost no fraction.
fn check_whole(from: &ArrayRef, to: &ArrayRef) -> Result<()> {
    let (before, after) = (cast(from, &DataType::Float64)?, cast(to, &DataType::Float64)?);
    let (before, after) = (before.as_primitive::<Float64Type>(), after.as_primitive::<Float64Type>());
    let lost = before.iter().zip(after).find(|(before, after)| before.is_some() && before != after);
    match lost {
        Some((Some(value), _)) => {
            exec_err!("the model takes whole numbers ({}), found {value}; round it first", to.data_type())
        }
        _ => Ok(()),
    }
}

fn booleans(array: &ArrayRef) -> Result<Vec<bool>> {
    let cast = cast(array, &DataType::Boolean)?;
    Ok(cast.as_boolean().iter().map(|value| value.unwrap_or_default()).collect())
}

fn strings(array: &ArrayRef) -> Result<Vec<String>> {
    let cast = cast(array, &DataType::Utf8)?;
    Ok(cast.as_string::<i32>().iter().map(|value| value.unwrap_or_default().to_owned()).collect())
}

fn interleave<T: Default>(columns: &[ArrayRef], read: impl Fn(&ArrayRef) -> Result<Vec<T>>) -> Result<Vec<T>> {
    let mut columns = columns.iter().map(|column| read(column).map(Vec::into_iter)).collect::<Result<Vec<_>>>()?;
    let rows = columns.first().map_or(0, ExactSizeIterator::len);
    let mut values = Vec::with_capacity(rows * columns.len());
    for _ in 0..rows {
        values.extend(columns.iter_mut().map(|column| column.next().unwrap_or_default()));
    }
    Ok(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float32Array, Float64Array, Int16Array, Int32Array, Int64Array};

    use super::*;

    /// The value of a row and column: a whole number that fits every type, or null.
    fn value(row: i16, column: i16) -> Option<i16> {
        (column != 10 || row % 7 != 0).then_some(row * 3 - column * 50)
    }

    fn column(column: i16, rows: i16) -> ArrayRef {
        let values = (0..rows).map(|row| value(row, column));
        match column % 5 {
            0 => Arc::new(values.map(|value| value.map(f64::from)).collect::<Float64Array>()),
            1 => Arc::new(values.map(|value| value.map(i64::from)).collect::<Int64Array>()),
            2 => Arc::new(values.map(|value| value.map(i32::from)).collect::<Int32Array>()),
            3 => Arc::new(values.map(|value| value.map(f32::from)).collect::<Float32Array>()),
            _ => Arc::new(values.collect::<Int16Array>()),
        }
    }

    #[test]
    fn columns_of_every_type_become_rows() {
        // with and without nulls, with more columns than eight, with more rows than a tile
        for (width, rows) in [(10_u8, 0..150_u8), (11, 0..150), (8, 70..134), (3, 5..6)] {
            let columns: Vec<ArrayRef> = (0..width).map(|j| column(i16::from(j), 150)).collect();
            let cells = Cells::columns(&columns, Element::Float32, NullPolicy::Propagate).unwrap();
            let mut block = cells.new_block();
            let range = usize::from(rows.start)..usize::from(rows.end);
            let Input::Float32(found) = cells.block(range, 160, None, &mut block).unwrap() else { unreachable!() };
            let mut expected: Vec<f32> = rows
                .flat_map(|row| (0..width).map(move |j| value(row.into(), j.into()).map_or(0.0, f32::from)))
                .collect();
            expected.resize(160 * columns.len(), 0.0);
            assert_eq!(found, expected);
        }
    }
}
