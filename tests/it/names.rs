//! Names of models in all scripts: each works in every statement, or is refused before any work.

use crate::cli::{aefusion, run};

crate::harness::tests! {
    fn names_beyond_ascii_work_or_are_refused_at_once,
}

fn names_beyond_ascii_work_or_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("models").to_str().unwrap().to_owned();
    let with_store = |query: &str| run(aefusion().args(["sql", "--format", "csv", "--models", &store, "-c", query]));
    let rows = "SELECT sin(value) AS a, cos(value) AS b FROM generate_series(1, 300) AS t(value)";
    let options = "OPTIONS (max_iterations = 2)";
    // 255 bytes as a folder: 42 letters of 6 bytes, and 3 others
    let longest = format!("{}abc", "ß".repeat(42));
    for name in ["größe", "модель", "模型", "_日本", &longest] {
        for statement in [
            format!("CREATE MODEL {name} {options} AS {rows}"),
            format!("CREATE OR REPLACE MODEL {name} {options} AS {rows}"),
            format!("SELECT ae_error('{name}', 0.1, 0.2), ae_error('{name}@1', 0.1, 0.2), ae_error(0.1, 0.2)"),
            format!("DESCRIBE MODEL {name}"),
            format!("ALTER MODEL {name} SET OPTIONS (contamination = 0.1)"),
            format!("EXPORT MODEL {name} TO '{}/{name}.onnx'", folder.path().display()),
            format!("SELECT 1 / CAST(count(*) = 3 AS INT) FROM ae_models() WHERE model = '{name}'"),
            format!("DROP MODEL {name}"),
        ] {
            let printed = with_store(&statement);
            assert!(printed.starts_with("exit code 0"), "{statement}: {printed}");
        }
    }
    for name in ["\"a b\"", "\"a/b\"", "\"..\"", "\"a\u{301}\"", "\"a😀\"", "\"1a\"", "\"\"", &format!("{longest}d")]
    {
        let printed = with_store(&format!("CREATE MODEL {name} {options} AS {rows}"));
        assert!(printed.starts_with("exit code 1") && !printed.contains("epoch"), "{name}: {printed}");
        assert!(printed.contains("cannot name a model") || printed.contains("at most 255"), "{name}: {printed}");
    }
    let left = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), [".dropped"]);
}
