//! Where the numbers of the public implementations are.

use std::path::{Path, PathBuf};

use runtime::tensor::{Tensor, Tensors, read_safetensors};

/// The folders that hold reference cases: the repository's own fixtures, and the whole collection where it is at hand
/// (`SCANSIDE_REFERENCE`, or `../shared/reference` beside the checkout).
pub fn roots() -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = match std::env::var_os("SCANSIDE_REFERENCE") {
        Some(folder) => PathBuf::from(folder),
        None => tests.join("../../shared/reference"),
    };
    let mut roots = vec![tests.join("fixtures/reference")];
    if whole.is_dir() {
        roots.push(whole);
    }
    roots
}

/// Every case folder `ROOT/under/PREFIX*`.
///
/// # Panics
/// Where there is none: the fixtures are part of the repository.
pub fn cases(under: &str, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = roots()
        .iter()
        .filter_map(|root| std::fs::read_dir(root.join(under)).ok())
        .flatten()
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no reference case {under}/{prefix}* in {:?}", roots());
    found
}

/// The tensors of a safetensors file.
///
/// # Panics
/// Where it cannot be read.
pub fn tensors(path: &Path) -> Tensors {
    read_safetensors(path).unwrap_or_else(|e| panic!("{e}")).tensors
}

/// Largest absolute difference.
///
/// # Panics
/// Where the tensors differ in size or hold no numbers.
pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.data.len(), b.data.len(), "{:?} against {:?}", a.shape, b.shape);
    assert!(!a.data.is_empty());
    a.data
        .iter()
        .zip(&b.data)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}
