//! Refuses folders whose files are not the table: those of Delta Lake, Iceberg and Hudi.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::common::plan_err;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::Result;
use datafusion::logical_expr::CreateExternalTable;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore};

/// Formats of tables that list their files themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lake {
    Delta,
    Iceberg,
    Hudi,
}

impl Lake {
    const ALL: [Self; 3] = [Self::Delta, Self::Iceberg, Self::Hudi];

    fn name(self) -> &'static str {
        match self {
            Self::Delta => "Delta Lake",
            Self::Iceberg => "Iceberg",
            Self::Hudi => "Hudi",
        }
    }

    /// The folder in a table that has the list of its files.
    fn folder(self) -> &'static str {
        match self {
            Self::Delta => "_delta_log",
            Self::Iceberg => "metadata",
            Self::Hudi => ".hoodie",
        }
    }

    /// Whether a file is in the list of a table that lies in this folder.
    fn is_list(self, list: &str, file: &str) -> bool {
        list == self.folder() && (self != Self::Iceberg || file.ends_with(".metadata.json"))
    }

    /// The format and the folder of the table whose list a file belongs to.
    fn of(file: &Path) -> Option<(Self, Path)> {
        let parts: Vec<String> = file.parts().map(|part| part.as_ref().to_owned()).collect();
        let (name, folders) = parts.split_last()?;
        folders.iter().enumerate().find_map(|(depth, folder)| {
            let lake = Self::ALL.into_iter().find(|lake| lake.is_list(folder, name))?;
            Some((lake, Path::from_iter(folders.iter().take(depth).map(String::as_str))))
        })
    }
}

/// Checks that no file of a folder or a glob belongs to a table in another format. `name` is for messages.
///
/// # Errors
/// A planning error if one does, or an error of the object store.
pub(super) async fn check(url: &ListingTableUrl, name: &str, session: &dyn Session) -> Result<()> {
    let is_file = !url.is_collection() && url.get_glob().is_none() && url.file_extension().is_some();
    if is_file {
        return Ok(());
    }
    let store = session.runtime_env().object_store(url)?;
    let mut tables = lists(store.as_ref(), url.prefix()).await?;
    for folder in above(url.prefix()) {
        for lake in Lake::ALL {
            tables.extend(lists(store.as_ref(), &folder.clone().join(lake.folder())).await?);
        }
    }
    if tables.is_empty() {
        return Ok(());
    }
    if let Some((lake, _)) = tables.iter().find(|(_, table)| url.prefix().prefix_matches(table)) {
        return refuse(*lake, name);
    }
    let mut files = url.list_all_files(session, store.as_ref(), "").await?;
    while let Some(file) = files.try_next().await? {
        let is_list = Lake::of(&file.location).is_some();
        let table = tables.iter().find(|(_, table)| file.location.prefix_matches(table));
        if let (false, Some((lake, _))) = (is_list, table) {
            return refuse(*lake, name);
        }
    }
    Ok(())
}

/// Checks that a folder is no table in another format, by one of its files.
///
/// # Errors
/// A planning error if it is one.
pub(super) fn check_write(file: &Path, folder: &Path, name: &str) -> Result<()> {
    match Lake::of(file) {
        Some((lake, table)) if folder.prefix_matches(&table) => refuse(lake, name),
        _ => Ok(()),
    }
}

fn refuse(lake: Lake, name: &str) -> Result<()> {
    plan_err!(
        "'{name}' is a table of {}, which is not supported yet: its files also hold deleted and replaced rows, and \
         the folder {} lists the valid ones; export the table to Parquet with another program",
        lake.name(),
        lake.folder()
    )
}

/// The tables whose lists of files are below a folder.
async fn lists(store: &dyn ObjectStore, folder: &Path) -> Result<Vec<(Lake, Path)>> {
    let mut tables = Vec::new();
    let mut files = store.list(Some(folder));
    loop {
        match files.try_next().await {
            Ok(Some(file)) => {
                if let Some(table) = Lake::of(&file.location)
                    && !tables.contains(&table)
                {
                    tables.push(table);
                }
            }
            Ok(None) | Err(Error::NotFound { .. }) => return Ok(tables),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The folders above folders of a table's files: `t` for `t/year=2026/month=1` and for `t/data`, as in Iceberg.
fn above(folder: &Path) -> Vec<Path> {
    let mut parts: Vec<String> = folder.parts().map(|part| part.as_ref().to_owned()).collect();
    let mut folders = Vec::new();
    while parts.pop().is_some_and(|name| name.contains('=') || name == "data") {
        folders.push(Path::from_iter(parts.iter().map(String::as_str)));
    }
    folders
}

/// Checks the locations of `CREATE EXTERNAL TABLE`.
#[derive(Debug)]
pub(super) struct CheckedTables(pub(super) Arc<dyn TableProviderFactory>);

#[async_trait]
impl TableProviderFactory for CheckedTables {
    async fn create(&self, session: &dyn Session, create: &CreateExternalTable) -> Result<Arc<dyn TableProvider>> {
        for location in &create.locations {
            check(&ListingTableUrl::parse(location)?, location, session).await?;
        }
        self.0.create(session, create).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str) -> Option<(Lake, String)> {
        Lake::of(&Path::from(file)).map(|(lake, table)| (lake, table.to_string()))
    }

    #[test]
    fn lists_of_files_are_found() {
        assert_eq!(of("a/t/_delta_log/00000000000000000000.json"), Some((Lake::Delta, "a/t".to_owned())));
        assert_eq!(of("a/t/_delta_log/_sidecars/1.parquet"), Some((Lake::Delta, "a/t".to_owned())));
        assert_eq!(of("t/metadata/v1.metadata.json"), Some((Lake::Iceberg, "t".to_owned())));
        assert_eq!(of("t/.hoodie/hoodie.properties"), Some((Lake::Hudi, "t".to_owned())));
        assert_eq!(of("t/metadata/notes.json"), None);
        assert_eq!(of("t/_delta_log"), None);
    }

    #[test]
    fn partitions_lie_in_tables() {
        let above = |folder: &str| above(&Path::from(folder)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(above("a/t/y=1/m=2"), ["a/t/y=1", "a/t"]);
        assert_eq!(above("a/t/data/y=1"), ["a/t/data", "a/t"]);
        assert!(above("a/t").is_empty());
    }
}
