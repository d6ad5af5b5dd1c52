//! Files, globs and folders as tables, as a user of the program meets them.

use std::path::Path;

use crate::cli::{aefusion, run};

crate::harness::tests! {
    fn tables_of_other_formats_are_refused,
}

fn sql(folder: &Path, statements: &[&str]) -> String {
    let mut command = aefusion();
    command.args(["sql", "--quiet", "--models", "memory:///", "--format", "csv"]).current_dir(folder);
    for statement in statements {
        command.args(["--command", statement]);
    }
    run(&mut command)
}

/// Their folders hold files whose rows are deleted or replaced.
fn tables_of_other_formats_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lists = [
        ("delta", "", "_delta_log/00000000000000000000.json", "Delta Lake"),
        ("iceberg", "data/", "metadata/v1.metadata.json", "Iceberg"),
        ("hudi", "day=1/", ".hoodie/hoodie.properties", "Hudi"),
    ];
    for (table, below, list, name) in lists {
        let at = |path: &str| folder.path().join(table).join(path);
        std::fs::create_dir_all(at(list).parent().unwrap()).unwrap();
        std::fs::create_dir_all(at(below)).unwrap();
        let copy = format!("COPY (SELECT 1 AS x) TO '{table}/{below}a.parquet'");
        assert!(sql(folder.path(), &[&copy]).starts_with("exit code 0"));
        std::fs::write(at(list), "{}").unwrap();
        let paths = ["", "/", &format!("/{below}"), &format!("/{below}*.parquet")].map(|path| format!("{table}{path}"));
        for path in paths {
            let query = format!("SELECT * FROM '{path}'");
            let create = format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{path}'");
            for statement in [query, create] {
                let printed = sql(folder.path(), &[&statement]);
                let expected = format!("'{path}' is a table of {name}, which is not supported yet");
                assert!(printed.starts_with("exit code 1") && printed.contains(&expected), "{statement}: {printed}");
            }
        }
        // one file is what it is
        let printed = sql(folder.path(), &[&format!("SELECT * FROM '{table}/{below}a.parquet'")]);
        assert!(printed.starts_with("exit code 0") && printed.contains("x\n1\n"), "{printed}");
    }
    // a table beside other files concerns only queries that read from it
    assert!(sql(folder.path(), &["COPY (SELECT 2 AS x) TO 'plain.parquet'"]).starts_with("exit code 0"));
    let printed = sql(folder.path(), &["SELECT * FROM '*.parquet'"]);
    assert!(printed.starts_with("exit code 0") && printed.contains("x\n2\n"), "{printed}");
}
