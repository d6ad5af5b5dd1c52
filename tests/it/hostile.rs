//! Files that are corrupt, cut off or changed at random: each loads or gives an error, and none brings the process down.

use std::path::Path;

use aefusion_udfs::catalog::Models;
use aefusion_udfs::model::metadata::Metadata;
use aefusion_udfs::store::ModelStore;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

crate::harness::tests! {
    alone changed_files_load_or_are_refused,
    fn every_shorter_file_is_refused_or_loads,
    fn nesting_is_bounded,
}

/// Changed files a model.
const CHANGED: usize = 100;
/// Memory that all of them together may add, bytes.
const MEMORY: usize = 512 << 20;

const BASES: [&str; 20] = [
    "models/mean",
    "models/impute",
    "models/scaled",
    "models/typed",
    "models/random",
    "models/open_shape",
    "models/ambiguous",
    "interop/dense",
    "interop/dense_dynamo",
    "interop/batchnorm_dropout",
    "interop/conv",
    "interop/lstm",
    "interop/vae",
    "interop/float64",
    "interop/fixed_batch_16",
    "interop/sklearn_mlp",
    "interop/strings",
    "interop/quantised_qdq",
    "interop/float16",
    "interop/column_inputs",
];

fn changed_files_load_or_are_refused() {
    let models = Models::new(ModelStore::in_memory());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let (mut loaded, mut refused) = (0, 0);
    let before = resident_bytes();
    for base in BASES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("{base}.onnx"));
        let original = std::fs::read(path).unwrap();
        for i in 0..CHANGED {
            let file = change(&original, &mut random);
            match models.register_bytes(&format!("m{i}"), file, Metadata::default()) {
                Ok(_) => loaded += 1,
                Err(e) => {
                    assert!(!e.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    let added = resident_bytes().saturating_sub(before);
    assert!(added < MEMORY, "{added} bytes were added");
    // both happen, or the changes test nothing
    assert!(loaded > 100 && refused > 500, "{loaded} loaded, {refused} refused");
}

fn every_shorter_file_is_refused_or_loads() {
    let models = Models::new(ModelStore::in_memory());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/mean.onnx");
    let original = std::fs::read(path).unwrap();
    for length in 0..original.len() {
        let refused = models.register_bytes("m", original[..length].to_vec(), Metadata::default()).is_err();
        // what is cut off last is the version of the operator set
        assert!(refused || length > original.len() - 10, "the first {length} bytes");
    }
}

fn nesting_is_bounded() {
    // a graph in an attribute of a node of a graph in …
    let mut file = Vec::new();
    for _ in 0..10_000 {
        file = wrap(1, &wrap(5, &wrap(6, &file)));
        if file.len() > 60_000 {
            break;
        }
    }
    let models = Models::new(ModelStore::in_memory());
    let error = models.register_bytes("m", wrap(7, &file), Metadata::default()).unwrap_err();
    assert!(error.to_string().contains("not an ONNX file"), "{error}");
}

/// A length-delimited protobuf field.
fn wrap(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    let mut length = content.len();
    while length > 127 {
        bytes.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend_from_slice(content);
    bytes
}

/// One of: bytes set at random, a bit flipped, a piece left out, doubled, or put elsewhere.
fn change(original: &[u8], random: &mut TestRng) -> Vec<u8> {
    let mut file = original.to_vec();
    let mut below = |n: usize| usize::try_from(random.next_u64() % u64::try_from(n.max(1)).unwrap()).unwrap();
    match below(6) {
        0 => {
            for _ in 0..=below(8) {
                let at = below(file.len());
                file[at] = u8::try_from(below(256)).unwrap();
            }
        }
        1 => {
            let at = below(file.len());
            file[at] ^= 1 << below(8);
        }
        2 => {
            let (at, n) = (below(file.len()), below(40));
            file.drain(at..(at + n).min(original.len()));
        }
        3 => {
            let (at, n) = (below(file.len()), below(200));
            let piece = original[at..(at + n).min(original.len())].to_vec();
            let to = below(file.len());
            file.splice(to..to, piece);
        }
        4 => {
            // numbers of shapes, versions and types become huge or negative
            let at = below(file.len());
            let huge = [[0xff; 9].as_slice(), &[0x7f], &[0x00], &[0xff, 0xff, 0xff, 0xff, 0x07]][below(4)];
            file.splice(at..(at + 1).min(original.len()), huge.iter().copied());
        }
        _ => file.truncate(below(file.len())),
    }
    file
}

/// Memory that the process holds, bytes; 0 where the system does not tell.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
