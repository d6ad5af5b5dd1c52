//! The order of the modules of a crate: each uses only those below it, and circles are impossible.

use std::path::Path;

use super::Finding;

/// A folder of sources, and its modules from the bottom to the top. `docs/architecture.md` has the same order.
const ORDERS: [(&str, &[&str]); 2] = [
    (
        "model/src/",
        &[
            "numbers",
            "random",
            "suggest",
            "choice",
            "columns",
            "name",
            "onnx",
            "runtime",
            "calibration",
            "metadata",
            "contract",
            "independence",
            "file",
            "describe",
            "matrix",
            "output",
            "pool",
            "model",
            "score",
            "registration",
            "extremes",
            "child",
            "trial",
        ],
    ),
    (
        "udfs/src/",
        &[
            "blocking",
            "temporary",
            "message",
            "explain",
            "keep_names",
            "store",
            "config",
            "catalog",
            "functions",
            "bind",
            "tables",
            "infer",
            "sql",
        ],
    ),
];

/// Uses of a module above, in one file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let Some((folder, order)) = ORDERS.iter().find(|(folder, _)| path.starts_with(folder)) else {
        return Vec::new();
    };
    let inside = path.trim_start_matches(folder).trim_end_matches(".rs");
    let module = inside.split('/').next().unwrap_or_default();
    if module == "lib" {
        return Vec::new();
    }
    let place = |module: &str| order.iter().position(|other| *other == module);
    let Some(own) = place(module) else {
        return vec![Finding::new(path, 1, "module-order", format!("the order of the modules lacks {module}"))];
    };
    // in a file beside lib.rs, `super` is the crate too
    let prefixes: &[&str] = if inside == module { &["crate::", "super::"] } else { &["crate::"] };
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let used = prefixes.iter().flat_map(|prefix| line.split(prefix).skip(1)).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            &rest[..end.unwrap_or(rest.len())]
        });
        if line.contains("crate::{") {
            findings.push(Finding::new(path, number + 1, "module-order", "write a `use` for each module"));
        }
        for above in used.filter(|used| place(used).is_some_and(|place| place > own)) {
            let text = format!("{module} uses {above}, which is above it; move the shared part below both");
            findings.push(Finding::new(path, number + 1, "module-order", text));
        }
    }
    findings
}

/// Whether the orders name modules that do not exist.
pub(super) fn check_names(root: &Path) -> Vec<Finding> {
    let missing = ORDERS.iter().flat_map(|(folder, order)| {
        order.iter().filter(move |module| !root.join(folder).join(format!("{module}.rs")).exists()).map(move |module| {
            Finding::new(&format!("{folder}lib.rs"), 1, "module-order", format!("there is no module {module}"))
        })
    });
    missing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(path, text).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_use_of_a_module_above_is_found() {
        let text = "use crate::matrix::Rows;\n// use crate::score::x;\nuse crate::score::verify;\n";
        assert_eq!(lines("model/src/output.rs", text), [3]);
        assert_eq!(lines("model/src/onnx.rs", "let x = super::runtime::run(super::numbers::dim(3));"), [1]);
        assert_eq!(lines("udfs/src/store/publish.rs", "use crate::{a, b};\nuse crate::catalog::Models;"), [1, 2]);
        assert_eq!(lines("udfs/src/other.rs", ""), [1]);
    }

    #[test]
    fn other_uses_are_not() {
        assert_eq!(lines("model/src/score.rs", "use crate::model::Model;\nuse crate::score::x;"), [0; 0]);
        assert_eq!(lines("model/src/onnx/cut.rs", "use super::runtime;"), [0; 0]);
        assert_eq!(lines("model/src/lib.rs", "pub use crate::trial::Trial;"), [0; 0]);
        assert_eq!(lines("train/src/fit.rs", "use crate::anything;"), [0; 0]);
    }
}
