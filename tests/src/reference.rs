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

/// A PEFT adapter under the plugin's names, with a query and a one-label head of zeros.
///
/// # Panics
/// Where a name is none that PEFT writes.
pub fn adapter_content(adapter: &Tensors, dim: usize) -> Tensors {
    let mut content = Tensors::new();
    for (name, tensor) in adapter {
        let name = name.strip_prefix("base_model.model.").unwrap();
        let (module, factor) = name.strip_suffix(".weight").unwrap().rsplit_once(".lora_").unwrap();
        let module = module
            .replace("embeddings.patch_embeddings.projection", "patch")
            .replace("patch_embed.proj", "patch")
            .replace("encoder.layer.", "blocks.")
            .replace("attention.attention.query", "q")
            .replace("attention.attention.key", "k")
            .replace("attention.attention.value", "v")
            .replace("attention.output.dense", "o")
            .replace("attn.qkv", "qkv")
            .replace("attn.proj", "o");
        let mut shape = tensor.shape.clone();
        if module == "patch" && factor == "B" {
            shape.truncate(2);
        }
        content.insert(format!("lora.{module}.{factor}"), Tensor::new(shape, tensor.data.clone()));
    }
    content.insert("query".into(), Tensor::new([dim], vec![0.0; dim]));
    content.insert("head.weight".into(), Tensor::new([1, dim], vec![0.0; dim]));
    content.insert("head.bias".into(), Tensor::new([1], vec![0.0]));
    content
}
