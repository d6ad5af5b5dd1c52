//! Finds the shared library of ONNX Runtime.

use std::path::{Path, PathBuf};

use datafusion_common::error::{DataFusionError, Result};
use datafusion_common::exec_err;
use ort::environment::EnvironmentBuilder;

const VARIABLE: &str = "ORT_DYLIB_PATH";

#[cfg(target_os = "windows")]
const FILE: &str = "onnxruntime.dll";
#[cfg(target_vendor = "apple")]
const FILE: &str = "libonnxruntime.dylib";
#[cfg(not(any(target_os = "windows", target_vendor = "apple")))]
const FILE: &str = "libonnxruntime.so";

/// Loads the first library that is found.
///
/// 1. the file that `ORT_DYLIB_PATH` names
/// 2. a file beside the executable, or in `../lib`
/// 3. a file in the data folder of the user, under `aefusion`
/// 4. the library that the loader of the system finds
pub(super) fn open() -> Result<(EnvironmentBuilder, PathBuf)> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        if !path.exists() {
            return exec_err!(
                "ONNX Runtime was not found: {VARIABLE} is {}, but this file does not exist; {}",
                path.display(),
                install_hint()
            );
        }
        return init(&path);
    }
    let folders = folders();
    for folder in &folders {
        if let Some(path) = library_in(folder) {
            return init(&path);
        }
    }
    init(Path::new(FILE)).map_err(|e| {
        let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        e.context(format!(
            "ONNX Runtime was not found: no {FILE} in {}, nor in the library path of the system; {}",
            searched.join(", "),
            install_hint()
        ))
    })
}

fn install_hint() -> String {
    format!(
        "run `cargo xtask setup` in a clone of aefusion, or `pip install onnxruntime` and set {VARIABLE} to the \
         {FILE}* in its folder onnxruntime/capi"
    )
}

fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.push(folder.to_owned());
        folders.extend(folder.parent().map(|parent| parent.join("lib")));
    }
    folders.extend(dirs::data_dir().map(|folder| folder.join("aefusion")));
    folders
}

/// `libonnxruntime.so`, or the newest `libonnxruntime.so.1.x.y`, of a folder.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let exact = folder.join(FILE);
    if exact.exists() {
        return Some(exact);
    }
    let stem = FILE.trim_end_matches(".dylib");
    let numbers = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
        .max_by_key(numbers)
}

fn init(path: &Path) -> Result<(EnvironmentBuilder, PathBuf)> {
    match ort::init_from(path) {
        Ok(builder) => Ok((builder, path.to_owned())),
        Err(e) => Err(DataFusionError::External(Box::new(e)).context(format!(
            "ONNX Runtime 1.{} or newer is required, but {} cannot be used; {}",
            ort::MINOR_VERSION,
            path.display(),
            install_hint()
        ))),
    }
}
