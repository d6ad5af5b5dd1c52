//! Record batches in a temporary Arrow file.

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

/// A file that is being written.
pub(super) struct Writer {
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
    /// An empty file among DataFusion's temporary ones.
    ///
    /// # Errors
    /// An execution error if there are to be none, or if it cannot be made.
    pub(super) fn new(disk: &Arc<DiskManager>, schema: &Schema) -> Result<Self> {
        let file =
            disk.create_tmp_file("keeping the rows of a training (SET ae.train_memory = … keeps more in memory)")?;
        let writer = FileWriter::try_new(BufWriter::new(file.open_writer()?), schema)?;
        Ok(Self { file, writer, batches: 0 })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// An execution error if the disk is full.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.batches += 1;
        Ok(self.writer.write(batch)?)
    }

    /// The file, which can now be read.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(super) fn finish(mut self) -> Result<Spilled> {
        self.writer.finish()?;
        let mut inner = self.writer.into_inner()?.into_inner().map_err(|e| DataFusionError::IoError(e.into_error()))?;
        inner.finish()?;
        Ok(Spilled { file: self.file, batches: self.batches })
    }
}

/// A file that was written; it is gone when this is dropped.
pub(super) struct Spilled {
    file: Arc<dyn SpillFile>,
    /// Batches in it, each of which can be read by itself.
    pub(super) batches: usize,
}

impl fmt::Debug for Spilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spilled").field("file", &self.file.path()).field("batches", &self.batches).finish()
    }
}

impl Spilled {
    /// Opens it.
    ///
    /// # Errors
    /// An execution error if it is not a local file.
    pub(super) fn open(&self) -> Result<FileReader<File>> {
        match self.file.path() {
            Some(path) => Ok(FileReader::try_new(File::open(path)?, None)?),
            None => exec_err!("the rows of a training need temporary files on a local disk"),
        }
    }
}
