//! Record batches in temporary Arrow files.

use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use datafusion::arrow::ipc::reader::FileReader;
use datafusion::arrow::ipc::writer::FileWriter;
use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::DiskManager;
use datafusion::execution::spill_file::{SpillFile, SpillWriter};

/// A temporary file that is being written.
pub(crate) struct Writer {
    file: Arc<dyn SpillFile>,
    writer: FileWriter<BufWriter<Box<dyn SpillWriter>>>,
    batches: usize,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("file", &self.file.path())
            .field("batches", &self.batches)
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Creates an empty file in the directory of DataFusion's temporary files.
    ///
    /// # Errors
    /// A resource error if temporary files are disabled; an execution error if the file cannot be created.
    pub(crate) fn new(disk: &Arc<DiskManager>, schema: &Schema) -> Result<Self> {
        let file =
            disk.create_tmp_file("spilling training rows (a larger ae.train_memory keeps more of them in memory)")?;
        let writer = FileWriter::try_new(BufWriter::new(file.open_writer()?), schema)?;
        Ok(Self { file, writer, batches: 0 })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// An execution error if the disk is full.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.batches += 1;
        Ok(self.writer.write(batch)?)
    }

    /// Completes the file for reading.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(crate) fn finish(mut self) -> Result<Spilled> {
        self.writer.finish()?;
        let mut inner = self.writer.into_inner()?.into_inner().map_err(|e| DataFusionError::IoError(e.into_error()))?;
        inner.finish()?;
        Ok(Spilled { file: self.file, batches: self.batches })
    }
}

/// A complete temporary file. It is deleted when this value is dropped.
pub(crate) struct Spilled {
    file: Arc<dyn SpillFile>,
    /// The number of batches; each can be read separately.
    pub(crate) batches: usize,
}

impl fmt::Debug for Spilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spilled").field("file", &self.file.path()).field("batches", &self.batches).finish()
    }
}

impl Spilled {
    /// Opens the file for reading.
    ///
    /// # Errors
    /// An execution error if it is not a local file.
    pub(crate) fn open(&self) -> Result<FileReader<File>> {
        match self.file.path() {
            Some(path) => Ok(FileReader::try_new(File::open(path)?, None)?),
            None => exec_err!(
                "training rows can be spilled to local files only; configure a local directory for temporary files"
            ),
        }
    }
}
