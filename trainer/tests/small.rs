//! The table of `docs/benchmarks/compare/small.json` comes out again: one probe in an ordinary run, with `SCANSIDE_LONG=1` every
//! method that it has a figure of. From the scans and the backbone in `target/assets` (`cargo xtask assets` fetches them).

mod common;

use std::path::Path;

use serde_json::Value;

use common::succeed;

/// AUROC of each method in a `compare.json` of one task.
fn areas(path: &Path) -> Vec<(String, f64)> {
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = json["methods"].as_array().unwrap().iter();
    rows.filter_map(|row| Some((row["method"].as_str()?.into(), row["entries"][0]["auroc"].as_f64()?)))
        .collect()
}

#[test]
fn the_kept_table_comes_out_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kept = areas(&root.join("docs/benchmarks/compare/small.json"));
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    let chosen: Vec<(String, f64)> =
        kept.into_iter().filter(|(method, _)| long || method == "probe-mean").collect();
    assert!(!chosen.is_empty(), "the kept table has no probe");
    let methods: Vec<&str> = chosen.iter().map(|(method, _)| method.as_str()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = |path: &Path| path.display().to_string();
    let told = succeed(&[
        "compare",
        "--suite",
        "small",
        "--threads",
        "2",
        "--methods",
        &methods.join(","),
        "--assets",
        &path(&root.join("target/assets/scans")),
        "--backbone",
        &path(&root.join("target/assets/backbone/vit_s_focus.onnx")),
        "--out",
        &path(folder.path()),
    ]);
    let found = areas(&folder.path().join("compare.json"));
    assert_eq!(found.len(), chosen.len(), "{told}");
    // The 10 positive and 10 negative test volumes make 100 pairs. Another processor rounds otherwise, which may turn one of the
    // probes' pairs about, and some of a network's after its steps.
    let most = if long { 0.1 } else { 0.011 };
    for ((method, kept), (_, found)) in chosen.iter().zip(&found) {
        assert!((kept - found).abs() < most, "{method}: {kept} in the kept table, {found} now\n{told}");
    }
}
