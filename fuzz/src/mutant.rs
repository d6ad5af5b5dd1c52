//! Mutants: each is determined by a seed, its number, and the files of the corpus.

use std::path::{Path, PathBuf};

use aefusion_model::onnx::proto::ModelProto;
use anyhow::{Context, Result};
use prost::Message;

use crate::graphs;
use crate::mutate;
use crate::random::Random;

/// Folders whose files mutants begin with.
const FOLDERS: [&str; 4] = ["examples/demo", "tests/foreign", "tests/interop", "tests/models"];

/// Files that mutants begin with.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<(String, Vec<u8>)>,
}

impl Corpus {
    /// The small files of the repository, by name.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for folder in FOLDERS {
            let path = root.join(folder);
            let entries = std::fs::read_dir(&path).with_context(|| format!("could not list {}", path.display()))?;
            let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
            paths.sort();
            for path in paths {
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                files.push((name, std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?));
            }
        }
        Ok(Self { files })
    }

    /// The mutant of a seed with a number.
    pub fn mutant(&self, seed: u64, number: u64) -> Mutant {
        let mut random = Random::new(seed, number);
        let (origin, original) = match random.one_in(2) {
            true => ("a new graph".to_owned(), graphs::any(&mut random).encode_to_vec()),
            false => random.of(&self.files).unwrap_or_default(),
        };
        let is_decoded = !random.one_in(12);
        let mut bytes = match ModelProto::decode(original.as_slice()) {
            Ok(model) if is_decoded => self.changed(model, &mut random),
            _ => original,
        };
        match random.below(40) {
            0 => mutate::change_bytes(&mut bytes, &mut random),
            1 if random.one_in(20) => mutate::nest_types(&mut bytes, random.one([10, 90, 110, 10_000])),
            _ => {}
        }
        if !is_decoded {
            mutate::change_bytes(&mut bytes, &mut random);
        }
        Mutant { number, origin, bytes }
    }

    fn changed(&self, mut model: ModelProto, random: &mut Random) -> Vec<u8> {
        let other = random.of(&self.files).and_then(|(_, bytes)| ModelProto::decode(bytes.as_slice()).ok());
        let other = other.unwrap_or_default();
        for _ in 0..random.one([0, 1, 1, 1, 1, 2, 2, 3, 5]) {
            mutate::change(&mut model, &other, random);
        }
        let mut bytes = model.encode_to_vec();
        mutate::spoil_names(&mut bytes);
        bytes
    }
}

/// A file to try.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// Its number.
    pub number: u64,
    /// What it was before the changes.
    pub origin: String,
    /// The file.
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_is_the_same_file_each_time() {
        let corpus = Corpus::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap();
        assert!(corpus.files.len() > 50);
        for number in 0..300 {
            assert_eq!(corpus.mutant(1, number).bytes, corpus.mutant(1, number).bytes);
        }
        assert_ne!(corpus.mutant(1, 0).bytes, corpus.mutant(2, 0).bytes);
    }

    #[test]
    fn most_mutants_can_be_decoded() {
        let corpus = Corpus::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))).unwrap();
        let decoded = |number: &u64| ModelProto::decode(corpus.mutant(3, *number).bytes.as_slice()).is_ok();
        assert!((0..500).filter(decoded).count() > 400);
    }
}
