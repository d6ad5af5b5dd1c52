//! Files on local disks: written in a hidden folder beside their places, and renamed.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::path::{Path as FilePath, PathBuf};

use datafusion::common::exec_err;
use datafusion::error::{DataFusionError, Result};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Beginning of the names of hidden folders.
const PREFIX: &str = ".aefusion-";

/// A file that a living writer has locked.
const LOCK: &str = "lock";

/// What remains to be done when all files are complete. The next writer does it if this one dies.
const COMMIT: &str = "commit";

/// Tries to make a folder that another writer removes at the same time.
const MAX_TRIES: usize = 100;

fn failed(what: &str, path: &FilePath) -> impl Fn(io::Error) -> DataFusionError {
    let text = format!("could not {what} '{}'", path.display());
    move |error| DataFusionError::IoError(error).context(text.clone())
}

/// A hidden folder with the files of one statement.
#[derive(Debug)]
pub(super) struct Staging {
    /// The target, if it is one file. A link is followed: its file is replaced, and the link stays.
    file: Option<PathBuf>,
    folder: PathBuf,
    /// Locked as long as the statement runs.
    lock: Mutex<Option<File>>,
    /// The places of the files, in the order of their numbers.
    places: Mutex<Vec<Path>>,
}

impl Staging {
    /// Makes a hidden folder in a folder, or beside a file, and removes those of dead writers.
    ///
    /// # Errors
    /// An execution error if the folder cannot be written.
    pub(super) fn create(target: &FilePath, is_file: bool) -> Result<Self> {
        let file = is_file.then(|| fs::canonicalize(target).unwrap_or_else(|_| target.to_owned()));
        let base = match &file {
            None => target.to_owned(),
            Some(file) => match file.parent() {
                Some(parent) => parent.to_owned(),
                None => return exec_err!("'{}' is not a file", target.display()),
            },
        };
        let failed = failed("write to the folder", &base);
        fs::create_dir_all(&base).map_err(&failed)?;
        sweep(&base);
        for _ in 0..MAX_TRIES {
            let folder =
                base.join(format!("{PREFIX}{:016x}", RandomState::new().hash_one(std::time::SystemTime::now())));
            if let Some(lock) = make(&folder).map_err(&failed)? {
                return Ok(Self { file, folder, lock: Mutex::new(Some(lock)), places: Mutex::default() });
            }
        }
        exec_err!("could not write to the folder '{}': other programs remove new folders in it", base.display())
    }

    /// The hidden place of a new file.
    pub(super) fn place(&self, location: &Path) -> object_store::Result<Path> {
        let mut places = self.places.lock();
        let hidden = Path::from_absolute_path(self.folder.join(places.len().to_string()))?;
        places.push(location.clone());
        Ok(hidden)
    }

    /// Gives the files their names, durably, and removes those that they replace.
    ///
    /// # Errors
    /// An execution error if a file cannot be renamed. New files of a folder are then removed.
    pub(super) fn commit(&self, replaced: impl Fn(&[Path]) -> Vec<Path>) -> Result<()> {
        let places = std::mem::take(&mut *self.places.lock());
        let disk = LocalFileSystem::new();
        let mut steps = Steps::default();
        for (number, location) in places.iter().enumerate() {
            let from = self.folder.join(number.to_string());
            File::open(&from).and_then(|file| file.sync_all()).map_err(failed("write", &from))?;
            let to = match &self.file {
                Some(file) => file.clone(),
                None => disk.path_to_filesystem(location)?,
            };
            steps.renamed.push((from, to));
        }
        for location in replaced(&places) {
            steps.removed.push(disk.path_to_filesystem(&location)?);
        }
        let is_one = steps.renamed.len() <= 1 && steps.removed.is_empty();
        if !is_one {
            steps.save(&self.folder).map_err(failed("write in", &self.folder))?;
        }
        if let Err((path, error)) = steps.run() {
            if self.file.is_none() {
                // no reader keeps half of the files
                drop(fs::remove_file(self.folder.join(COMMIT)));
                steps.undo();
            }
            return Err(failed("write", &path)(error));
        }
        self.remove();
        Ok(())
    }

    /// Removes the folder and the files that are still in it.
    pub(super) fn remove(&self) {
        if self.lock.lock().take().is_some() {
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A new folder with a locked file, or nothing if another writer removed it.
fn make(folder: &FilePath) -> io::Result<Option<File>> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        made => made?,
    }
    let path = folder.join(LOCK);
    let lock = match File::create_new(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        made => made?,
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // a file system without locks: no writer removes the folder
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    Ok(path.exists().then_some(lock))
}

/// Finishes or removes what dead writers left in a folder. What cannot be removed now, a later writer removes.
fn sweep(base: &FilePath) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let folder = entry.path();
        let Ok(lock) = File::options().write(true).open(folder.join(LOCK)) else {
            remove_unlocked(&folder);
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        let is_finished = match Steps::load(&folder) {
            None => true,
            Some(steps) => steps.run().is_ok(),
        };
        if is_finished {
            drop(fs::remove_dir_all(folder));
        }
    }
}

/// Removes a folder without a lock. A writer that has just made it makes another one.
fn remove_unlocked(folder: &FilePath) {
    let files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
    if files.iter().any(|file| file.ends_with(LOCK)) {
        return;
    }
    for file in files {
        drop(fs::remove_file(file));
    }
    drop(fs::remove_dir(folder));
}

/// What a statement does when all of its files are complete.
#[derive(Debug, Default)]
struct Steps {
    renamed: Vec<(PathBuf, PathBuf)>,
    removed: Vec<PathBuf>,
}

impl Steps {
    fn save(&self, folder: &FilePath) -> io::Result<()> {
        let renamed: Vec<_> = self.renamed.iter().map(|(from, to)| json!([from, to])).collect();
        let text = json!({ "renamed": renamed, "removed": self.removed }).to_string();
        let new = folder.join("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(new, folder.join(COMMIT))?;
        sync(folder)
    }

    fn load(folder: &FilePath) -> Option<Self> {
        let text = fs::read(folder.join(COMMIT)).ok()?;
        let saved: Value = serde_json::from_slice(&text).ok()?;
        let path = |value: &Value| value.as_str().map(PathBuf::from);
        let renamed = saved.get("renamed")?.as_array()?.iter();
        let renamed = renamed.map(|pair| Some((path(pair.get(0)?)?, path(pair.get(1)?)?))).collect::<Option<_>>()?;
        let removed = saved.get("removed")?.as_array()?.iter().map(path).collect::<Option<_>>()?;
        Some(Self { renamed, removed })
    }

    /// Renames and removes the files, durably. What was done before is not done again.
    fn run(&self) -> std::result::Result<(), (PathBuf, io::Error)> {
        let mut folders = BTreeSet::new();
        for (from, to) in &self.renamed {
            let failed = |error| (to.clone(), error);
            if let Some(parent) = to.parent() {
                let new = parent.ancestors().take_while(|folder| !folder.exists()).count();
                folders.extend(parent.ancestors().take(new + 1).map(FilePath::to_owned));
                fs::create_dir_all(parent).map_err(failed)?;
            }
            match fs::rename(from, to) {
                Err(error) if error.kind() == ErrorKind::NotFound && !from.exists() && to.exists() => {}
                renamed => renamed.map_err(failed)?,
            }
        }
        for path in &self.removed {
            match fs::remove_file(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(|error| (path.clone(), error))?,
            }
            folders.extend(path.parent().map(FilePath::to_owned));
        }
        folders.iter().try_for_each(|folder| sync(folder).map_err(|error| (folder.clone(), error)))
    }

    fn undo(&self) {
        for (from, to) in &self.renamed {
            if !from.exists() {
                drop(fs::remove_file(to));
            }
        }
    }
}

/// Waits until the entries of a folder are durable.
fn sync(folder: &FilePath) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
