//! Records of a topic, stored by column.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int32Array, Int64Array, ListArray, ListBuilder, RecordBatch,
    StringBuilder, StructBuilder, TimestampMillisecondArray,
};
use datafusion::arrow::datatypes::{
    DataType, Field, Fields, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType,
};
use datafusion::error::Result;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};

/// Fields of a header.
static HEADER: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)])
});

/// Type of the headers of a record: a list of keys and values, in the order in which they were sent.
pub(crate) static HEADERS: LazyLock<DataType> =
    LazyLock::new(|| DataType::List(Arc::new(Field::new("item", DataType::Struct(HEADER.clone()), true))));

/// Type of the timestamp of a record.
pub(crate) const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("value", DataType::Binary, true),
        Field::new("key", DataType::Binary, true),
        Field::new("timestamp", TIMESTAMP, true),
        Field::new("partition", DataType::Int32, true),
        Field::new("offset", DataType::Int64, true),
        Field::new("headers", HEADERS.clone(), true),
    ]))
});

/// Records that were read from a topic or will be written to a topic, one row per record.
#[derive(Debug, Clone)]
pub(crate) struct Records(RecordBatch);

impl Records {
    /// Records to write. For a null partition, the partitioner chooses; a null timestamp means the time of writing.
    pub(crate) fn try_new(
        values: BinaryArray,
        keys: ArrayRef,
        timestamps: ArrayRef,
        partitions: ArrayRef,
        headers: ArrayRef,
    ) -> Result<Self> {
        let offsets = Int64Array::new_null(values.len());
        let columns = vec![Arc::new(values) as ArrayRef, keys, timestamps, partitions, Arc::new(offsets), headers];
        Ok(Self(RecordBatch::try_new(Arc::clone(&SCHEMA), columns)?))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.num_rows()
    }

    pub(crate) fn slice(&self, range: &Range<usize>) -> Self {
        Self(self.0.slice(range.start, range.len()))
    }

    pub(crate) fn values(&self) -> &BinaryArray {
        self.0.column(0).as_binary()
    }

    pub(crate) fn keys(&self) -> &BinaryArray {
        self.0.column(1).as_binary()
    }

    pub(crate) fn timestamps(&self) -> &TimestampMillisecondArray {
        self.0.column(2).as_primitive::<TimestampMillisecondType>()
    }

    pub(crate) fn partitions(&self) -> &Int32Array {
        self.0.column(3).as_primitive::<Int32Type>()
    }

    pub(crate) fn offsets(&self) -> &Int64Array {
        self.0.column(4).as_primitive::<Int64Type>()
    }

    pub(crate) fn headers(&self) -> &ListArray {
        self.0.column(5).as_list()
    }

    /// The headers of one record.
    pub(crate) fn headers_of(&self, record: usize) -> Vec<(String, Option<Vec<u8>>)> {
        if self.headers().is_null(record) {
            return Vec::new();
        }
        let headers = self.headers().value(record);
        let headers = headers.as_struct();
        let (keys, values) = (headers.column(0).as_string::<i32>(), headers.column(1).as_binary::<i32>());
        keys.iter().zip(values).map(|(k, v)| (k.unwrap_or_default().to_owned(), v.map(<[u8]>::to_vec))).collect()
    }

    /// A column by name: `value`, `key`, `timestamp`, `partition`, `offset` or `headers`.
    pub(crate) fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.0.column_by_name(name)
    }
}

/// Collects records while they are read.
#[derive(Debug)]
pub(crate) struct RecordsBuilder {
    values: BinaryBuilder,
    keys: BinaryBuilder,
    timestamps: Vec<Option<i64>>,
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    headers: ListBuilder<StructBuilder>,
    with_headers: bool,
    bytes: usize,
}

impl RecordsBuilder {
    /// `with_headers`: whether to keep the headers; without, they are null.
    pub(crate) fn new(with_headers: bool) -> Self {
        Self {
            values: BinaryBuilder::new(),
            keys: BinaryBuilder::new(),
            timestamps: Vec::new(),
            partitions: Vec::new(),
            offsets: Vec::new(),
            headers: header_builder(),
            with_headers,
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Size of all keys, values and headers, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, message: &BorrowedMessage<'_>) {
        let (value, key) = (message.payload(), message.key());
        self.bytes += value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
        self.values.append_option(value);
        self.keys.append_option(key);
        self.timestamps.push(message.timestamp().to_millis());
        self.partitions.push(message.partition());
        self.offsets.push(message.offset());
        if self.with_headers {
            let headers = message.headers();
            let n = headers.map_or(0, Headers::count);
            for header in (0..n).filter_map(|i| headers.map(|headers| headers.get(i))) {
                self.bytes += header.key.len() + header.value.map_or(0, <[u8]>::len);
                push_header(&mut self.headers, header.key, header.value);
            }
            self.headers.append(true);
        }
    }

    /// Returns the collected records, and empties the builder.
    ///
    /// # Errors
    /// An Arrow error if the columns differ in length, which cannot happen.
    pub(crate) fn finish(&mut self) -> Result<Records> {
        self.bytes = 0;
        let n = self.len();
        let headers: ArrayRef = match self.with_headers {
            true => Arc::new(self.headers.finish()),
            false => datafusion::arrow::array::new_null_array(&HEADERS, n),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.values.finish()),
            Arc::new(self.keys.finish()),
            Arc::new(TimestampMillisecondArray::from(std::mem::take(&mut self.timestamps))),
            Arc::new(Int32Array::from(std::mem::take(&mut self.partitions))),
            Arc::new(Int64Array::from(std::mem::take(&mut self.offsets))),
            headers,
        ];
        Ok(Records(RecordBatch::try_new(Arc::clone(&SCHEMA), columns)?))
    }
}

fn header_builder() -> ListBuilder<StructBuilder> {
    let fields: Vec<Box<dyn datafusion::arrow::array::ArrayBuilder>> =
        vec![Box::new(StringBuilder::new()), Box::new(BinaryBuilder::new())];
    ListBuilder::new(StructBuilder::new(HEADER.clone(), fields))
}

fn push_header(headers: &mut ListBuilder<StructBuilder>, key: &str, value: Option<&[u8]>) {
    let header = headers.values();
    if let Some(keys) = header.field_builder::<StringBuilder>(0) {
        keys.append_value(key);
    }
    if let Some(values) = header.field_builder::<BinaryBuilder>(1) {
        values.append_option(value);
    }
    header.append(true);
}
