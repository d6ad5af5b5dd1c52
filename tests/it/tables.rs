//! Files, globs and folders as tables, as a user of the program meets them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::cli::{aefusion, run};

crate::harness::tests! {
    fn tables_of_other_formats_are_refused,
    #[cfg(unix)]
    fn a_killed_copy_leaves_the_old_file_or_the_new_one,
    fn unfinished_writes_are_removed_or_finished,
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

fn hidden(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

/// SIGKILL at moments that spread over the whole statement.
#[cfg(unix)]
fn a_killed_copy_leaves_the_old_file_or_the_new_one() {
    const ROWS: u32 = 300_000;
    const KILLS: u32 = 20;
    let folder = tempfile::tempdir().unwrap();
    let copy = |generation: u32| {
        format!("COPY (SELECT value AS id, {generation} AS g FROM range(0, {ROWS})) TO 'rows.parquet'")
    };
    let begun = std::time::Instant::now();
    assert!(sql(folder.path(), &[&copy(0)]).starts_with("exit code 0"));
    let whole = begun.elapsed();
    let mut generation = 0;
    for kill in 0..KILLS {
        let mut command = aefusion();
        command.args(["sql", "--quiet", "--models", "memory:///", "-c", &copy(generation + 1)]);
        let mut child = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // steps of the golden ratio fill the time evenly
        let share = (f64::from(kill) * 0.618_033_988_749_895).fract();
        std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * share * 1.1));
        drop(child.kill());
        child.wait().unwrap();
        let printed = sql(folder.path(), &["SELECT count(*) AS n, min(g) AS a, max(g) AS b FROM 'rows.parquet'"]);
        let whole = |generation| printed.contains(&format!("\n{ROWS},{generation},{generation}\n"));
        assert!(printed.starts_with("exit code 0"), "{printed}");
        assert!(whole(generation) || whole(generation + 1), "{printed}");
        generation += u32::from(whole(generation + 1));
    }
    assert!(sql(folder.path(), &[&copy(100)]).starts_with("exit code 0"));
    assert_eq!(hidden(folder.path()), [""; 0], "the next write removes what dead writers left");
}

/// One writer died before its files were complete, the other while they got their names.
fn unfinished_writes_are_removed_or_finished() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let copy = |option: &str| {
        format!("COPY (SELECT 1 AS x) TO 'rows/' STORED AS CSV OPTIONS ('{option}' 'true', 'format.has_header' 'true')")
    };
    assert!(sql(folder.path(), &[&copy("append")]).starts_with("exit code 0"));
    let old = std::fs::read_dir(at("rows")).unwrap().next().unwrap().unwrap().path();
    for (name, is_complete) in [("rows/.aefusion-1", false), ("rows/.aefusion-2", true)] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("lock"), "").unwrap();
        std::fs::write(at(name).join("0"), "x\n20\n").unwrap();
        if is_complete {
            let new = at("rows/finished.csv").display().to_string();
            let steps = format!(
                r#"{{"renamed":[["{}","{new}"]],"removed":["{}"]}}"#,
                at(name).join("0").display(),
                old.display()
            );
            std::fs::write(at(name).join("commit"), steps).unwrap();
        }
    }
    assert!(sql(folder.path(), &[&copy("append")]).starts_with("exit code 0"));
    assert_eq!(hidden(&at("rows")), [""; 0]);
    let printed = sql(folder.path(), &["SELECT x FROM 'rows/' ORDER BY x"]);
    assert!(printed.contains("x\n1\n20\n") && !old.exists(), "{printed}");
}
