//! Paths in statements and arguments of the program: through `..` and links.

use crate::cli::{aefusion, run};

crate::harness::tests! {
    #[cfg(unix)]
    fn paths_go_through_parents_and_links,
}

/// Every place that takes a path, in a folder below the files, and through links.
#[cfg(unix)]
fn paths_go_through_parents_and_links() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    std::fs::create_dir_all(at("deep/below")).unwrap();
    std::fs::copy("tests/models/mean.onnx", at("mean.onnx")).unwrap();
    std::os::unix::fs::symlink(at("mean.onnx"), at("deep/link.onnx")).unwrap();
    std::os::unix::fs::symlink(at("deep"), at("linked")).unwrap();
    for (below, up) in [("deep", ".."), ("deep/below", "../.."), ("deep", "../deep/below/../../linked/..")] {
        let create = format!("CREATE OR REPLACE MODEL m OPTIONS (model_path = '{up}/mean.onnx')");
        let pair = format!("CREATE OR REPLACE MODEL l OPTIONS (model_path = '{up}/linked/link.onnx')");
        let function = format!(
            "CREATE FUNCTION f(DOUBLE, DOUBLE) RETURNS DOUBLE LANGUAGE ONNX AS '{up}/mean.onnx?output=error'; SELECT f(1, 5)"
        );
        let export = format!("EXPORT MODEL m TO '{up}/out.onnx'");
        let store = format!("{up}/linked/models");
        let arguments =
            ["sql", "--format", "csv", "--models", &store, "-c", &create, "-c", &pair, "-c", &function, "-c", &export];
        let printed = run(aefusion().args(arguments).current_dir(at(below)));
        assert!(printed.starts_with("exit code 0") && printed.contains("\n4.0\n"), "{up}: {printed}");
        assert!(at("deep/models/m/1/model.onnx").is_file(), "{up}");
        std::fs::remove_file(at("out.onnx")).unwrap();
        let page = format!("{up}/m.html");
        let arguments = ["report", "m", "--models", &store, "-o", &page];
        let printed = run(aefusion().args(arguments).current_dir(at(below)));
        assert!(printed.starts_with("exit code 0"), "{up}: {printed}");
        std::fs::remove_file(at("m.html")).unwrap();
    }
}
