//! The scaled space: standardised numbers and one-hot categories.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Float64Type, UInt32Type};
use datafusion::common::plan_err;
use datafusion::error::Result;

use crate::config::Scaling;
use crate::deal::Seen;
use crate::ingest::{Column, Numbers, Profile, Table, Texts, UNCOUNTED};
use aefusion_udfs::numbers::to_f32;

/// If the mean of a column is more than this many deviations from zero, `f32` has too few digits: it is read as `f64`.
const FAR_FROM_ZERO: f64 = 32.0;

/// Numbers between these two, and their inverses, are `f32` with all digits. A column with others is read as `f64`.
const LEAST_SINGLE: f64 = 1e-30;
const MOST_SINGLE: f64 = 1e30;

/// Largest width of the scaled space.
const MOST_COLUMNS: usize = 1 << 16;

/// One column of the query, and its scale.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) encoding: Encoding,
    /// Its first column in the scaled space.
    pub(crate) first: usize,
}

/// How the values of a column become numbers of the scaled space.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Encoding {
    /// `(x - mean) / deviation`; a missing number reads as the mean.
    Number {
        mean: f64,
        /// The divisor; 1 for a constant column.
        deviation: f64,
        /// Whether the graph reads `f64`.
        is_double: bool,
    },
    /// One column for each level, then one for all other texts, then one for a missing or empty text.
    Category {
        levels: Vec<String>,
        /// For each number of a text, the place of its level.
        places: Vec<usize>,
    },
}

impl Encoding {
    /// A category with these levels. The empty text is never a level: a graph cannot distinguish it from a missing text.
    pub(crate) fn category(texts: &Texts, levels: Vec<String>) -> Self {
        let by_name: HashMap<&str, usize> = levels.iter().enumerate().map(|(i, level)| (level.as_str(), i)).collect();
        let other = |name: &str| if name.is_empty() { levels.len() + 1 } else { levels.len() };
        let place = |name: &Arc<str>| by_name.get(name.as_ref()).copied().unwrap_or_else(|| other(name));
        let places = texts.names.iter().map(place).collect();
        Self::Category { levels, places }
    }

    /// A category whose levels are the texts with the largest counts.
    fn most_frequent(texts: &Texts, counts: &[usize], max_categories: usize) -> Self {
        let names = texts.by_counts(counts).into_iter().map(|number| texts.names[number as usize].to_string());
        let levels = names.filter(|name| !name.is_empty()).take(max_categories).collect();
        Self::category(texts, levels)
    }

    /// Number of columns in the scaled space.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Number { .. } => 1,
            Self::Category { levels, .. } => levels.len() + 2,
        }
    }
}

/// The scaled space of some columns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Design {
    pub(crate) features: Vec<Feature>,
    pub(crate) width: usize,
}

impl Design {
    /// Learns the scales of columns from their training rows, `seen`. A text column gets at most `max_categories` levels.
    ///
    /// # Errors
    /// A planning error if there are no columns, or too many.
    pub(crate) fn of(
        table: &Table,
        seen: &[Seen],
        columns: &[usize],
        max_categories: usize,
        scaling: Scaling,
    ) -> Result<Self> {
        let columns = || columns.iter().map(|column| (&table.columns[*column], &seen[*column]));
        let common = match scaling {
            Scaling::Standard => None,
            Scaling::Common => Some(common_deviation(columns())),
        };
        let mut first = 0;
        let feature = |(column, seen): (&Column, &Seen)| {
            let encoding = match (&column.profile, seen) {
                (Profile::Numbers(all), seen) => {
                    let numbers = numbers(all, seen);
                    number(all, numbers.mean(), common.unwrap_or_else(|| numbers.deviation()))
                }
                (Profile::Texts(texts), Seen::Texts(counts)) => Encoding::most_frequent(texts, counts, max_categories),
                (Profile::Texts(texts), Seen::Numbers(_)) => {
                    Encoding::most_frequent(texts, &texts.counts, max_categories)
                }
            };
            let place = first;
            first += encoding.width();
            Feature { name: column.name.clone(), data_type: column.data_type.clone(), encoding, first: place }
        };
        let features: Vec<Feature> = columns().map(feature).collect();
        if features.is_empty() {
            return plan_err!("the query returns no columns to train on");
        }
        if first > MOST_COLUMNS {
            return plan_err!(
                "one-hot encoding gives {first} columns, at most {MOST_COLUMNS} are allowed; set max_categories below \
                 {max_categories}, or leave text columns out"
            );
        }
        Ok(Self { features, width: first })
    }

    /// The values that a network reads instead of missing ones: zero, the mean of a number; for a text, the level of missing
    /// texts.
    pub(crate) fn fill(&self) -> Vec<f32> {
        let mut fill = vec![0.0; self.width];
        for feature in &self.features {
            if let Encoding::Category { levels, .. } = &feature.encoding {
                fill[feature.first + levels.len() + 1] = 1.0;
            }
        }
        fill
    }

    /// The feature of a column of the scaled space.
    pub(crate) fn feature_of(&self, column: usize) -> Option<&Feature> {
        self.features.iter().rfind(|feature| feature.first <= column)
    }

    /// Scales the `columns` of a batch of a [`Table`], row after row. Missing values become NaN.
    ///
    /// The arithmetic is that of the exported graph.
    pub(crate) fn encode(&self, batch: &RecordBatch, columns: &[usize], into: &mut Vec<f32>) {
        into.clear();
        into.resize(batch.num_rows() * self.width, 0.0);
        for (feature, column) in self.features.iter().zip(columns) {
            let array = batch.column(*column);
            let rows = into.chunks_exact_mut(self.width);
            match &feature.encoding {
                Encoding::Number { mean, deviation, is_double } => {
                    let scale = Scale::new(*mean, *deviation, *is_double);
                    for (row, value) in rows.zip(array.as_primitive::<Float64Type>()) {
                        row[feature.first] = value.map_or(f32::NAN, |value| scale.apply(value));
                    }
                }
                Encoding::Category { levels, places } => {
                    for (row, number) in rows.zip(array.as_primitive::<UInt32Type>()) {
                        let row = &mut row[feature.first..feature.first + levels.len() + 2];
                        match number {
                            None => row.fill(f32::NAN),
                            Some(UNCOUNTED) => row[levels.len()] = 1.0,
                            Some(number) => row[places[number as usize]] = 1.0,
                        }
                    }
                }
            }
        }
    }
}

/// The arithmetic of a standardised column.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scale {
    Single { mean: f32, factor: f32 },
    Double { mean: f64, factor: f64 },
}

impl Scale {
    pub(crate) fn new(mean: f64, deviation: f64, is_double: bool) -> Self {
        match is_double {
            true => Self::Double { mean, factor: 1.0 / deviation },
            false => Self::Single { mean: to_f32(mean), factor: to_f32(1.0 / deviation) },
        }
    }

    fn apply(self, value: f64) -> f32 {
        match self {
            Self::Single { mean, factor } => (to_f32(value) - mean) * factor,
            Self::Double { mean, factor } => to_f32((value - mean) * factor),
        }
    }
}

/// The root mean square of the standard deviations of all number columns.
fn common_deviation<'a>(columns: impl Iterator<Item = (&'a Column, &'a Seen)>) -> f64 {
    let squares: Vec<f64> = columns
        .filter_map(|(column, seen)| match &column.profile {
            Profile::Numbers(all) => Some(numbers(all, seen).deviation().powi(2)),
            Profile::Texts(_) => None,
        })
        .collect();
    (squares.iter().sum::<f64>() / squares.len().max(1) as f64).sqrt()
}

/// The numbers of the training rows; those of all rows if the column is missing in all training rows.
fn numbers<'a>(all: &'a Numbers, seen: &'a Seen) -> &'a Numbers {
    match seen {
        Seen::Numbers(seen) if seen.given > 0 => seen,
        _ => all,
    }
}

/// The scale of a column with the numbers `all`.
fn number(all: &Numbers, mean: f64, deviation: f64) -> Encoding {
    // the inverse of a tiny deviation is infinite
    let deviation = if deviation > 0.0 && (1.0 / deviation).is_finite() { deviation } else { 1.0 };
    let is_far = mean.abs() > FAR_FROM_ZERO * deviation;
    let fits = |value: f64| value == 0.0 || LEAST_SINGLE < value.abs() && value.abs() < MOST_SINGLE;
    let is_single = [deviation, all.min, all.max].into_iter().all(fits);
    Encoding::Number { mean, deviation, is_double: is_far || !is_single }
}
