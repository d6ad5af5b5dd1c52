//! Errors of any number of calibration rows, in bounded memory.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use datafusion_common::error::Result;

use super::{Calibration, all_finite};

/// Errors that are sorted in memory, 32 MiB. More go to temporary files.
const IN_MEMORY: usize = 4 << 20;

/// Errors of calibration rows, in any order.
#[derive(Debug, Default)]
pub struct Errors {
    latest: Vec<f64>,
    /// Earlier errors, sorted. Each file has [`Errors::in_memory`] of them.
    files: Vec<File>,
    rows: usize,
    not_finite: usize,
    /// Replaces [`IN_MEMORY`] in tests.
    in_memory: Option<usize>,
}

impl Errors {
    /// Adds errors.
    ///
    /// # Errors
    /// An execution error if a temporary file cannot be written.
    pub fn append(&mut self, errors: impl Iterator<Item = f64>) -> Result<()> {
        for error in errors {
            self.rows += 1;
            match error.is_finite() {
                true => self.latest.push(error),
                false => self.not_finite += 1,
            }
            if self.latest.len() == self.in_memory.unwrap_or(IN_MEMORY) {
                self.spill()?;
            }
        }
        Ok(())
    }

    /// Whether there is no error.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    fn spill(&mut self) -> io::Result<()> {
        self.latest.sort_by(f64::total_cmp);
        let mut file = BufWriter::new(tempfile::tempfile()?);
        for error in self.latest.drain(..) {
            file.write_all(&error.to_le_bytes())?;
        }
        let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.files.push(file);
        Ok(())
    }

    /// The calibration by these errors.
    ///
    /// # Errors
    /// As [`Calibration::of`], or if a temporary file cannot be read.
    pub fn calibration(mut self) -> Result<Calibration> {
        all_finite(self.not_finite)?;
        if self.files.is_empty() {
            return Calibration::of(self.latest);
        }
        self.spill()?;
        Calibration::of_sorted(self.rows, Merge::of(self.files)?)
    }
}

/// The errors of sorted files in ascending order.
struct Merge {
    files: Vec<BufReader<File>>,
    /// The next error of each file that has one.
    next: BinaryHeap<Reverse<(Ascending, usize)>>,
}

impl Merge {
    fn of(files: Vec<File>) -> io::Result<Self> {
        let mut merge = Self { files: files.into_iter().map(BufReader::new).collect(), next: BinaryHeap::new() };
        (0..merge.files.len()).try_for_each(|file| merge.read(file))?;
        Ok(merge)
    }

    fn read(&mut self, file: usize) -> io::Result<()> {
        let mut bytes = [0; 8];
        match self.files[file].read_exact(&mut bytes) {
            Ok(()) => self.next.push(Reverse((Ascending(f64::from_le_bytes(bytes)), file))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = io::Result<f64>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((Ascending(error), file)) = self.next.pop()?;
        Some(self.read(file).map(|()| error))
    }
}

/// A number in the order of [`f64::total_cmp`].
struct Ascending(f64);

impl PartialEq for Ascending {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ascending {}

impl PartialOrd for Ascending {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ascending {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn errors_in_files_give_the_same_calibration() {
        // 11 files of 1,000 errors and one of 345; 7919 is prime, and each error occurs five times
        let errors = |n: u32| (0..n).map(|i| f64::from(i.wrapping_mul(7919) % 2_269));
        for n in [0, 999, 1_000, 11_345] {
            let mut in_files = Errors { in_memory: Some(1_000), ..Errors::default() };
            in_files.append(errors(n)).unwrap();
            assert_eq!((in_files.is_empty(), in_files.files.len()), (n == 0, n as usize / 1_000));
            match Calibration::of(errors(n).collect()) {
                Ok(expected) => assert_eq!(in_files.calibration().unwrap(), expected),
                Err(expected) => {
                    assert_eq!(in_files.calibration().unwrap_err().to_string(), expected.to_string());
                }
            }
        }
    }

    #[test]
    fn errors_that_are_not_finite_are_counted() {
        let mut errors = Errors::default();
        errors.append([1.0, f64::NAN, f64::INFINITY].into_iter()).unwrap();
        let refused = errors.calibration().unwrap_err().to_string();
        assert!(refused.contains("the error of 2 rows"), "{refused}");
    }
}
