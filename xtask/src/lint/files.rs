//! Files of the repository, and those that are in it twice.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

/// Bytes from which a data file must not be in the repository twice.
const BYTES: u64 = 10_000;

/// Paths of all files, from the root, in order; neither what is built nor what is hidden.
pub(super) fn list(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    visit(root, root, &mut paths)?;
    paths.sort();
    Ok(paths)
}

fn visit(root: &Path, folder: &Path, paths: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("could not list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_built = folder == root && matches!(&*name, "target" | "models");
        if name.starts_with('.') || is_built {
            continue;
        }
        if path.is_dir() {
            visit(root, &path, paths)?;
        } else {
            paths.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Data files that have the same bytes as another one.
pub(super) fn duplicates(root: &Path, paths: &[String]) -> Result<Vec<Finding>> {
    let mut first: HashMap<Vec<u8>, &String> = HashMap::new();
    let mut findings = Vec::new();
    for path in paths.iter().filter(|path| path.ends_with(".parquet") || path.ends_with(".onnx")) {
        let bytes = std::fs::read(root.join(path)).with_context(|| format!("could not read {path}"))?;
        if (bytes.len() as u64) < BYTES {
            continue;
        }
        if let Some(other) = first.get(&bytes) {
            findings.push(Finding::new(
                path,
                1,
                "duplicate-file",
                format!("the same file as {other}: keep one of them"),
            ));
        } else {
            first.insert(bytes, path);
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_data_twice_is_found() {
        let folder = crate::root().join("target").join(format!("lint-duplicates-{}", std::process::id()));
        let data = |byte: u8, n: usize| vec![byte; n];
        std::fs::create_dir_all(folder.join("data")).unwrap();
        let files = [
            ("a.parquet", data(1, 10_000)),
            ("data/b.parquet", data(1, 10_000)),
            ("data/c.onnx", data(2, 10_000)),
            ("small.onnx", data(3, 9_999)),
            ("small2.onnx", data(3, 9_999)),
            ("text.csv", data(1, 10_000)),
        ];
        for (path, bytes) in &files {
            std::fs::write(folder.join(path), bytes).unwrap();
        }
        let paths = list(&folder).unwrap();
        let found = duplicates(&folder, &paths).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(paths.len(), files.len());
        let expected =
            Finding::new("data/b.parquet", 1, "duplicate-file", "the same file as a.parquet: keep one of them");
        assert_eq!(found, [expected]);
    }
}
