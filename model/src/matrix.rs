//! Arguments of a call as rows of features, and blocks of rows as row-major tensors.

mod cells;

use std::fmt::Display;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, StructArray, UInt64Array, new_empty_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::CastOptions;
use arrow::compute::{cast_with_options, take};
use arrow::datatypes::{DataType, FieldRef, Fields};
use datafusion_common::error::Result;
use datafusion_common::{exec_err, plan_err};

use crate::columns::{ColumnKind, temporal_as_numbers};
use crate::contract::{Contract, Known, TensorSpec};
use crate::metadata::{Feature, NullPolicy};
use crate::runtime::Element;
use crate::suggest;
pub use cells::split_columns;
pub(crate) use cells::{Block, Cells};

/// The form of the features in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// No arguments: columns are bound by name.
    ByName,
    /// One list of numbers.
    List(DataType),
    /// One struct, by field name.
    Struct(Fields),
    /// One column for each feature, in the order of the model.
    Columns(Vec<FieldRef>),
}

impl Form {
    /// The form of these arguments.
    pub fn of(fields: &[FieldRef]) -> Self {
        match fields {
            [] => Self::ByName,
            [one] => match one.data_type() {
                DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) => {
                    Self::List(one.data_type().clone())
                }
                DataType::Struct(fields) => Self::Struct(fields.clone()),
                _ => Self::Columns(fields.to_vec()),
            },
            _ => Self::Columns(fields.to_vec()),
        }
    }

    /// The type of each feature; none if the form does not give it.
    pub fn data_types(&self, features: &[Feature]) -> Vec<Option<DataType>> {
        match self {
            Self::ByName => features.iter().map(Feature::data_type).collect(),
            Self::List(list) => vec![item_type(list).cloned(); features.len()],
            Self::Struct(fields) => {
                let field = |feature: &Feature| fields.find(&feature.name).map(|(_, field)| field.data_type().clone());
                features.iter().map(field).collect()
            }
            Self::Columns(fields) => fields.iter().map(|field| Some(field.data_type().clone())).collect(),
        }
    }

    /// Checks that the arguments fit the features of the model, which an error names.
    ///
    /// # Errors
    /// A planning error with the expected and the found number or type of features.
    pub fn check(&self, model: &dyn Display, contract: &Contract) -> Result<()> {
        let expected = contract.features.len();
        match self {
            Self::ByName => return Ok(()),
            Self::List(DataType::FixedSizeList(_, width)) if usize::try_from(*width) != Ok(expected) => {
                return plan_err!("needs {expected} features (model {model}), found a list of {width}");
            }
            Self::List(_) => {}
            Self::Struct(fields) => {
                let missing: Vec<&str> = contract
                    .features
                    .iter()
                    .map(|feature| feature.name.as_str())
                    .filter(|name| fields.find(name).is_none())
                    .collect();
                if !missing.is_empty() {
                    let has: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
                    let (missing, has) = (suggest::shortened(&missing), suggest::shortened(&has));
                    return plan_err!(
                        "needs {expected} features (model {model}); the struct has no field {}; its fields are {}",
                        missing,
                        has
                    );
                }
            }
            Self::Columns(fields)
                if fields.len() != expected && fields.first().is_some_and(|field| field.data_type().is_string()) =>
            {
                return plan_err!(
                    "needs {expected} features (model {model}), found {}, the first of them text; name a model with a \
                     literal string such as 'fraud'",
                    fields.len()
                );
            }
            Self::Columns(fields) if fields.len() != expected => {
                return plan_err!("needs {expected} features (model {model}), found {}", fields.len());
            }
            Self::Columns(_) => {}
        }
        let elements = contract.inputs.iter().flat_map(|input| std::iter::repeat_n(input.element, input.width()));
        for ((feature, data_type), element) in
            contract.features.iter().zip(self.data_types(&contract.features)).zip(elements)
        {
            if let Some(data_type) = data_type
                && !fits(&data_type, element)
            {
                return plan_err!(
                    "feature \"{}\" of model {model} must be {}, found {data_type}",
                    feature.name,
                    if element == Element::String { "a string" } else { "a number" }
                );
            }
        }
        Ok(())
    }
}

fn item_type(list: &DataType) -> Option<&DataType> {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn fits(data_type: &DataType, element: Element) -> bool {
    match data_type {
        DataType::Null => true,
        DataType::Dictionary(_, value) => fits(value, element),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => element == Element::String,
        other => ColumnKind::of(other) == Some(ColumnKind::Number) && element != Element::String,
    }
}

/// Rows of features, in their source types.
#[derive(Debug, Clone)]
pub struct Rows {
    n: usize,
    arrays: FeatureArrays,
    /// Rows that are a null list or a null struct.
    nulls: Option<NullBuffer>,
}

/// The memory layout of features.
#[derive(Debug, Clone)]
enum FeatureArrays {
    /// Row after row in one array.
    Packed(ArrayRef),
    /// One array for each feature.
    Columns(Vec<ArrayRef>),
}

impl Rows {
    /// Rows from the arguments of a call that passed [`Form::check`].
    ///
    /// # Errors
    /// An execution error if a list does not have one number for each feature.
    pub fn new(arguments: &[ArrayRef], features: &[Feature], n: usize) -> Result<Self> {
        if let [one] = arguments {
            let width = features.len();
            match one.data_type() {
                DataType::FixedSizeList(_, _) => {
                    let list = one.as_fixed_size_list();
                    return Ok(Self {
                        n,
                        arrays: FeatureArrays::Packed(Arc::clone(list.values())),
                        nulls: list.nulls().cloned(),
                    });
                }
                DataType::List(_) => return Self::from_list::<i32>(one.as_list(), width),
                DataType::LargeList(_) => return Self::from_list::<i64>(one.as_list(), width),
                DataType::Struct(_) => return Self::from_struct(one.as_struct(), features),
                _ => {}
            }
        }
        if arguments.len() != features.len() {
            return exec_err!("needs {} features, found {}", features.len(), arguments.len());
        }
        Ok(Self { n, arrays: FeatureArrays::Columns(arguments.to_vec()), nulls: None })
    }

    fn from_struct(rows: &StructArray, features: &[Feature]) -> Result<Self> {
        let column = |feature: &Feature| match rows.column_by_name(&feature.name) {
            Some(column) => Ok(Arc::clone(column)),
            None => exec_err!("the struct has no field {}", feature.name),
        };
        let columns = features.iter().map(column).collect::<Result<_>>()?;
        Ok(Self { n: rows.len(), arrays: FeatureArrays::Columns(columns), nulls: rows.nulls().cloned() })
    }

    fn from_list<O: OffsetSizeTrait>(rows: &GenericListArray<O>, width: usize) -> Result<Self> {
        let offsets = rows.value_offsets();
        for row in 0..rows.len() {
            let length = (offsets[row + 1] - offsets[row]).as_usize();
            if rows.is_valid(row) && length != width {
                return exec_err!("needs lists of {width} numbers, found one of {length} in row {row} of its batch");
            }
        }
        let first = offsets.first().map_or(0, |offset| offset.as_usize());
        let last = offsets.last().map_or(0, |offset| offset.as_usize());
        let is_packed = last - first == rows.len() * width
            && offsets.windows(2).all(|pair| (pair[1] - pair[0]).as_usize() == width);
        let values = if is_packed {
            rows.values().slice(first, last - first)
        } else {
            // null rows may have another length than the others: replace them by `width` nulls
            let indices: UInt64Array = (0..rows.len() * width)
                .map(|i| rows.is_valid(i / width).then(|| (offsets[i / width].as_usize() + i % width) as u64))
                .collect();
            take(rows.values(), &indices, None)?
        };
        Ok(Self { n: rows.len(), arrays: FeatureArrays::Packed(values), nulls: rows.nulls().cloned() })
    }

    /// `to` rows: these, and a copy of the first row with a result in the place of each row without one, and at the end.
    ///
    /// # Errors
    /// An error of Arrow.
    pub(crate) fn without_gaps(&self, valid: Option<&NullBuffer>, to: usize, width: usize) -> Result<Self> {
        let is_valid = |row: usize| row < self.n && valid.is_none_or(|valid| valid.is_valid(row));
        let Some(first) = (0..self.n).find(|row| is_valid(*row)) else { return Ok(self.clone()) };
        let rows = (0..to).map(|row| if is_valid(row) { row } else { first });
        let arrays = match &self.arrays {
            FeatureArrays::Columns(columns) => {
                let indices = UInt64Array::from_iter_values(rows.map(|row| row as u64));
                let columns = columns.iter().map(|column| Ok(take(column, &indices, None)?));
                FeatureArrays::Columns(columns.collect::<Result<_>>()?)
            }
            FeatureArrays::Packed(values) => {
                let places = rows.flat_map(|row| (row * width..(row + 1) * width).map(|place| place as u64));
                FeatureArrays::Packed(take(values, &UInt64Array::from_iter_values(places), None)?)
            }
        };
        Ok(Self { n: to, arrays, nulls: None })
    }

    /// One row that the graph takes: zeros and empty strings, or a known row.
    ///
    /// # Errors
    /// As [`Rows::zeros`].
    pub(crate) fn taken(contract: &Contract) -> Result<Self> {
        match &contract.known_row {
            None => Self::zeros(contract, 1),
            Some(row) => {
                let columns = row.iter().map(Known::array).collect();
                Ok(Self { n: 1, arrays: FeatureArrays::Columns(columns), nulls: None })
            }
        }
    }

    /// Rows of zeros, or of empty strings for string inputs.
    pub(crate) fn zeros(contract: &Contract, n: usize) -> Result<Self> {
        let zero = |element: Element| -> Result<ArrayRef> {
            let strings: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![""; n]));
            let numbers: ArrayRef = Arc::new(arrow::array::Float32Array::from(vec![0.0; n]));
            Ok(if element == Element::String { strings } else { numbers })
        };
        let elements = contract.inputs.iter().flat_map(|input| std::iter::repeat_n(input.element, input.width()));
        let columns = elements.map(zero).collect::<Result<_>>()?;
        Ok(Self { n, arrays: FeatureArrays::Columns(columns), nulls: None })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Rows with a result; none if all have one.
    pub fn valid(&self, policy: NullPolicy, width: usize) -> Option<NullBuffer> {
        if policy == NullPolicy::Impute {
            return self.nulls.clone();
        }
        match &self.arrays {
            FeatureArrays::Columns(columns) => columns.iter().fold(self.nulls.clone(), |nulls, column| {
                NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref())
            }),
            FeatureArrays::Packed(values) => match values.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
                None => self.nulls.clone(),
                Some(nulls) => {
                    let whole: NullBuffer =
                        (0..self.n).map(|row| (row * width..(row + 1) * width).all(|i| nulls.is_valid(i))).collect();
                    NullBuffer::union(self.nulls.as_ref(), Some(&whole))
                }
            },
        }
    }

    /// Rows with a value of the feature `index`; none if all have one.
    pub fn feature_nulls(&self, index: usize, width: usize) -> Option<NullBuffer> {
        match &self.arrays {
            FeatureArrays::Columns(columns) => columns[index].logical_nulls(),
            FeatureArrays::Packed(values) => {
                let nulls = values.logical_nulls()?;
                Some((0..self.n).map(|row| nulls.is_valid(row * width + index)).collect())
            }
        }
        .filter(|nulls| nulls.null_count() > 0)
    }

    /// The values of one feature. `width` is the number of features.
    ///
    /// # Errors
    /// An error of Arrow if the rows have fewer features.
    pub fn feature(&self, index: usize, width: usize) -> Result<ArrayRef> {
        match &self.arrays {
            FeatureArrays::Columns(columns) => Ok(Arc::clone(&columns[index])),
            FeatureArrays::Packed(values) if values.is_empty() => Ok(new_empty_array(values.data_type())),
            FeatureArrays::Packed(values) => {
                let indices: UInt64Array = (0..self.n).map(|row| Some((row * width + index) as u64)).collect();
                Ok(take(values, &indices, None)?)
            }
        }
    }

    /// Memory of the features of an input tensor in its element type, bytes; none of those that have this type here.
    pub(crate) fn cast_bytes(&self, input: &TensorSpec, first: usize) -> usize {
        let bytes = |array: &ArrayRef, n: usize| match input.element {
            Element::String => n * size_of::<String>() + array.to_data().get_slice_memory_size().unwrap_or_default(),
            element if is_of(array.data_type(), element) && array.null_count() == 0 => 0,
            element => n * element.bytes(),
        };
        match &self.arrays {
            FeatureArrays::Packed(values) => bytes(values, self.n * input.width()),
            FeatureArrays::Columns(columns) => {
                let columns = columns.iter().skip(first).take(input.width());
                columns.map(|column| bytes(column, self.n)).sum()
            }
        }
    }

    /// The features of an input tensor, in its element type.
    ///
    /// `first` is the first feature of the tensor, `width` the number of features of the model.
    ///
    /// # Errors
    /// An execution error if a value does not fit that type.
    pub(crate) fn cells(&self, input: &TensorSpec, first: usize, width: usize, policy: NullPolicy) -> Result<Cells> {
        let all = first == 0 && input.width() == width;
        let columns = match &self.arrays {
            FeatureArrays::Packed(values) if all => {
                return Cells::packed(&temporal_as_numbers(values)?, input.element, width, policy);
            }
            FeatureArrays::Columns(columns) => columns[first..first + input.width()].to_vec(),
            FeatureArrays::Packed(_) => {
                (first..first + input.width()).map(|index| self.feature(index, width)).collect::<Result<_>>()?
            }
        };
        let columns = columns.iter().map(temporal_as_numbers).collect::<Result<Vec<_>>>()?;
        Cells::columns(&columns, input.element, policy)
    }
}

/// Whether arrays of a type are tensors of an element type as they are.
fn is_of(data_type: &DataType, element: Element) -> bool {
    matches!(
        (element, data_type),
        (Element::Float16, DataType::Float16)
            | (Element::Float32, DataType::Float32)
            | (Element::Float64, DataType::Float64)
            | (Element::Int8, DataType::Int8)
            | (Element::Int16, DataType::Int16)
            | (Element::Int32, DataType::Int32)
            | (Element::Int64, DataType::Int64)
            | (Element::UInt8, DataType::UInt8)
            | (Element::UInt16, DataType::UInt16)
            | (Element::UInt32, DataType::UInt32)
            | (Element::UInt64, DataType::UInt64)
    )
}

/// Casts an array. A value that does not fit is an error, not a null.
pub(crate) fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions { safe: false, ..Default::default() };
    cast_with_options(array, to, &options).map_err(|e| {
        datafusion_common::error::DataFusionError::from(e)
            .context(format!("a feature of type {} does not fit the model's {to}", array.data_type()))
    })
}

/// A column of lists of `width` numbers.
///
/// # Errors
/// An error of Arrow if the number of values is no multiple of `width`.
pub fn list_array(values: ArrayRef, width: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    let DataType::FixedSizeList(item, size) = list_type(width) else { return exec_err!("not a list") };
    Ok(Arc::new(arrow::array::FixedSizeListArray::try_new(item, size, values, nulls)?))
}

/// `FixedSizeList<Float32, width>`.
pub fn list_type(width: usize) -> DataType {
    DataType::new_fixed_size_list(DataType::Float32, crate::numbers::list_size(width), true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use arrow::array::ListArray;
    use arrow::datatypes::Float32Type;

    fn features(n: usize) -> Vec<Feature> {
        (0..n).map(|i| Feature::named(format!("f{i}"))).collect()
    }

    #[test]
    fn null_lists_that_take_no_space_are_skipped() {
        let lists = ListArray::from_iter_primitive::<Float32Type, _, _>([
            Some(vec![Some(1.0), Some(2.0)]),
            None,
            Some(vec![Some(3.0), None]),
        ]);
        let rows = Rows::new(&[Arc::new(lists)], &features(2), 3).unwrap();
        let valid = rows.valid(NullPolicy::Propagate, 2).unwrap();
        assert_eq!(valid.iter().collect::<Vec<_>>(), [true, false, false]);
        let imputed = rows.valid(NullPolicy::Impute, 2).unwrap();
        assert_eq!(imputed.iter().collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn a_list_of_another_length_is_an_error() {
        let lists = ListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(1.0)])]);
        let error = Rows::new(&[Arc::new(lists)], &features(2), 1).unwrap_err();
        assert!(error.to_string().contains("needs lists of 2 numbers, found one of 1 in row 0"), "{error}");
    }

    #[test]
    fn sliced_lists_read_their_own_rows() {
        let lists = ListArray::from_iter_primitive::<Float32Type, _, _>([
            Some(vec![Some(1.0), Some(2.0)]),
            Some(vec![Some(3.0), Some(4.0)]),
        ]);
        let rows = Rows::new(&[Arc::new(lists.slice(1, 1))], &features(2), 1).unwrap();
        let second = rows.feature(1, 2).unwrap();
        assert_eq!(second.as_primitive::<Float32Type>().values(), &[4.0]);
    }
}
