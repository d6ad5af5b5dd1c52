//! The format `avro`: the value is an Avro record, and its fields are the columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use aefusion_udfs::choice::Choice;
use arrow_avro::reader::ReaderBuilder;
use arrow_avro::schema::{
    AvroSchema, Fingerprint, FingerprintAlgorithm, FingerprintStrategy, SCHEMA_METADATA_KEY, SchemaStore,
};
use arrow_avro::writer::WriterBuilder;
use arrow_avro::writer::format::AvroSoeFormat;
use datafusion::arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::{bytes, values_of};
use crate::columns::cast_exactly;

/// What precedes the fields of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case", ascii_case_insensitive)]
enum Framing {
    /// Nothing.
    Plain,
    /// A zero byte, and the ID of the schema in a registry in four bytes.
    Confluent,
    /// The bytes C3 01 and the fingerprint of the schema ("single object encoding" of the Avro specification).
    SingleObject,
}

/// Length of the zero byte and the schema ID, bytes.
const CONFLUENT_PREFIX: usize = 5;

/// The schemas of a table.
#[derive(Debug, Clone)]
pub(crate) struct Avro {
    framing: Framing,
    /// By ID. A framing without IDs has one schema, with ID 0.
    schemas: BTreeMap<u32, String>,
}

impl Avro {
    /// Reads the options `avro_framing` and `avro_schema`, or `avro_schema.N` for each schema ID N of a registry.
    /// Records are written with the largest ID. Without a schema in the options, the columns determine it.
    ///
    /// # Errors
    /// A planning error if an option is missing or wrong, or if a schema does not fit the columns.
    pub(crate) fn take(options: &mut BTreeMap<String, String>, values: &SchemaRef) -> Result<Self> {
        let framing = options.remove("avro_framing").unwrap_or_else(|| "plain".to_owned());
        let framing = Framing::parse("the option avro_framing", &framing)?;
        let mut schemas = BTreeMap::new();
        let numbered: Vec<String> = options.keys().filter(|key| key.starts_with("avro_schema.")).cloned().collect();
        for key in numbered {
            let Ok(number) = key["avro_schema.".len()..].parse::<u32>() else {
                return plan_err!("the option {key} must end in the ID of a schema, a whole number");
            };
            schemas.extend(options.remove(&key).map(|schema| (number, schema)));
        }
        match (framing, options.remove("avro_schema"), schemas.is_empty()) {
            (Framing::Confluent, None, false) | (Framing::Plain | Framing::SingleObject, None, true) => {}
            (Framing::Confluent, ..) => {
                return plan_err!(
                    "avro_framing = 'confluent' requires the option avro_schema.N for each schema ID N in the records"
                );
            }
            (_, _, false) => return plan_err!("the option avro_schema.N requires avro_framing = 'confluent'"),
            (_, schema, true) => schemas.extend(schema.map(|schema| (0, schema))),
        }
        if schemas.is_empty() {
            let plain = Schema::new(values.fields().iter().map(|f| f.as_ref().clone()).collect::<Vec<_>>());
            schemas.insert(0, AvroSchema::try_from(&plain)?.json_string);
        }
        let avro = Self { framing, schemas };
        // checks the schemas now, not at the first record
        avro.decode(&BinaryArray::from_iter_values::<[u8; 0], _>([]), values)
            .map_err(|e| DataFusionError::Plan(format!("avro_schema: {}", super::reason(&e))))?;
        Ok(avro)
    }

    pub(super) fn decode(&self, values: &BinaryArray, wanted: &SchemaRef) -> Result<RecordBatch> {
        let mut decoder = self.decoder(values.len())?;
        let mut batches = Vec::new();
        for i in 0..values.len() {
            let framed = self.framed(bytes(values, i))?;
            let mut rest = framed.as_ref();
            // a record with another schema than the previous one starts a new batch
            for _ in 0..2 {
                rest = &rest[decoder.decode(rest).map_err(DataFusionError::from_avro)?..];
                if rest.is_empty() {
                    break;
                }
                batches.extend(decoder.flush().map_err(DataFusionError::from_avro)?);
            }
            if !rest.is_empty() {
                return exec_err!("the value must be one Avro record; {} bytes follow it", rest.len());
            }
        }
        batches.extend(decoder.flush().map_err(DataFusionError::from_avro)?);
        let batches = batches.iter().map(|batch| by_name(batch, wanted)).collect::<Result<Vec<_>>>()?;
        Ok(concat_batches(wanted, &batches)?)
    }

    fn decoder(&self, rows: usize) -> Result<arrow_avro::reader::Decoder> {
        let algorithm = match self.framing {
            Framing::SingleObject => FingerprintAlgorithm::Rabin,
            Framing::Plain | Framing::Confluent => FingerprintAlgorithm::Id,
        };
        let mut store = SchemaStore::new_with_type(algorithm);
        for (number, schema) in &self.schemas {
            let schema = AvroSchema::new(schema.clone());
            match self.framing {
                Framing::SingleObject => store.register(schema)?,
                Framing::Plain | Framing::Confluent => store.set(Fingerprint::Id(*number), schema)?,
            };
        }
        Ok(ReaderBuilder::new().with_batch_size(rows + 1).with_writer_schema_store(store).build_decoder()?)
    }

    /// A value with the framing that the decoder expects.
    fn framed<'a>(&self, value: &'a [u8]) -> Result<std::borrow::Cow<'a, [u8]>> {
        if value.is_empty() {
            return exec_err!("the value is empty");
        }
        Ok(match self.framing {
            Framing::Plain => [&[0; CONFLUENT_PREFIX], value].concat().into(),
            Framing::Confluent | Framing::SingleObject => value.into(),
        })
    }

    pub(super) fn encode(&self, rows: &RecordBatch) -> Result<BinaryArray> {
        let Some((number, schema)) = self.schemas.last_key_value() else {
            return exec_err!("the table has no Avro schema");
        };
        let rows = &self.as_written(rows, *number, schema)?;
        let strategy = match self.framing {
            Framing::SingleObject => FingerprintStrategy::Rabin,
            Framing::Plain | Framing::Confluent => FingerprintStrategy::Id(*number),
        };
        let fields = rows.schema().fields().iter().map(|f| f.as_ref().clone()).collect::<Vec<_>>();
        let metadata = [(SCHEMA_METADATA_KEY.to_owned(), schema.clone())].into();
        let described = Schema::new_with_metadata(fields, metadata);
        let rows = RecordBatch::try_new(Arc::new(described.clone()), rows.columns().to_vec())?;
        let builder = WriterBuilder::new(described).with_fingerprint_strategy(strategy);
        let mut encoder = builder.build_encoder::<AvroSoeFormat>().map_err(DataFusionError::from_avro)?;
        encoder.encode(&rows).map_err(DataFusionError::from_avro)?;
        let encoded = encoder.flush();
        let cut = if self.framing == Framing::Plain { CONFLUENT_PREFIX } else { 0 };
        let (mut values, mut ends) = (Vec::with_capacity(encoded.bytes().len()), Vec::with_capacity(encoded.len()));
        for record in encoded.iter() {
            values.extend_from_slice(&record[cut..]);
            ends.push(values.len());
        }
        values_of(values, ends.into_iter())
    }

    /// Rows with the types of the schema that they are written with.
    fn as_written(&self, rows: &RecordBatch, number: u32, schema: &str) -> Result<RecordBatch> {
        let one = Self { schemas: [(number, schema.to_owned())].into(), ..self.clone() };
        let written = one.decoder(0)?.schema();
        let rows_schema = rows.schema();
        let unknown = rows_schema.fields().iter().find(|field| written.field_with_name(field.name()).is_err());
        if let Some(unknown) = unknown {
            return exec_err!("the Avro schema has no field \"{}\" for the column", unknown.name());
        }
        by_name(rows, &written)
    }
}

/// The wanted columns with their wanted types. A missing column is null if it may be.
fn by_name(batch: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch> {
    let column = |field: &Arc<datafusion::arrow::datatypes::Field>| -> Result<ArrayRef> {
        match batch.column_by_name(field.name()) {
            Some(column) => cast_exactly(column, field.data_type()),
            None if field.is_nullable() => Ok(new_null_array(field.data_type(), batch.num_rows())),
            None => exec_err!("there is no field \"{}\", which must not be null", field.name()),
        }
    };
    let columns = wanted.fields().iter().map(column).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(SchemaRef::clone(wanted), columns, &options)?)
}

trait FromAvro {
    fn from_avro(error: arrow_avro::errors::AvroError) -> Self;
}

impl FromAvro for DataFusionError {
    fn from_avro(error: arrow_avro::errors::AvroError) -> Self {
        datafusion::arrow::error::ArrowError::from(error).into()
    }
}
