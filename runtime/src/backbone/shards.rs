//! The files of a backbone: one, or several with an index as Hugging Face writes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{BackboneError, Tensors};
use crate::tensor::{SafetensorsFile, TensorError, read_safetensors_where, sha256};

/// The end of an index file's name.
const INDEX_END: &str = ".index.json";
/// What is looked for in a folder, in this order.
const IN_A_FOLDER: [&str; 2] = ["model.safetensors.index.json", "model.safetensors"];

/// What the files of a backbone hold.
pub(super) struct Files {
    /// The file, or the index of the files.
    pub path: PathBuf,
    pub tensors: Tensors,
    /// See [`super::Backbone::sha256`].
    pub sha256: String,
    /// `__metadata__.name`.
    pub label: Option<String>,
}

/// Reads a file, an index with its shards, or what stands in a folder. Tensors of a text tower are left out: it may be as
/// large as the image tower.
pub(super) fn read(path: &Path) -> Result<Files, BackboneError> {
    if path.is_dir() {
        let inside = IN_A_FOLDER.iter().map(|name| path.join(name)).find(|file| file.exists());
        let nothing = || BackboneError::Shards {
            path: path.into(),
            detail: format!("the folder holds neither {} nor {}", IN_A_FOLDER[0], IN_A_FOLDER[1]),
        };
        return read(&inside.ok_or_else(nothing)?);
    }
    if is_index(path) {
        return sharded(path);
    }
    let SafetensorsFile { tensors, metadata, sha256 } = read_safetensors_where(path, &is_of_images)?;
    Ok(Files { path: path.into(), tensors, sha256, label: metadata.get("name").cloned() })
}

/// Whether a file is by its name the index of a sharded backbone.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(INDEX_END))
}

fn is_of_images(name: &str) -> bool {
    let of_text =
        |part| matches!(part, "text_model" | "language_model" | "lang_encoder" | "text_encoder" | "lm_head");
    !name.split('.').any(of_text)
}

#[derive(Deserialize)]
struct Index {
    /// Which shard each tensor is in.
    weight_map: BTreeMap<String, String>,
}

fn sharded(path: &Path) -> Result<Files, BackboneError> {
    let wrong = |detail: String| BackboneError::Shards { path: path.into(), detail };
    let text =
        std::fs::read_to_string(path).map_err(|source| TensorError::Io { path: path.into(), source })?;
    let index: Index = serde_json::from_str(&text).map_err(|e| wrong(format!("it is no index ({e})")))?;
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in index.weight_map {
        by_file.entry(file).or_default().push(name);
    }
    if by_file.is_empty() {
        return Err(wrong("its weight_map names no tensors".into()));
    }
    let mut tensors = Tensors::new();
    let mut sums = String::new();
    for (file, names) in by_file {
        if Path::new(&file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(wrong(format!("it names the file {file}, expected one beside it")));
        }
        let shard = path.with_file_name(&file);
        if !shard.exists() {
            return Err(wrong(format!(
                "the file {file}, which holds {} of its tensors, is missing",
                names.len()
            )));
        }
        let mut read = read_safetensors_where(&shard, &is_of_images)?;
        for name in names.into_iter().filter(|name| is_of_images(name)) {
            let tensor = read.tensors.remove(&name);
            let tensor =
                tensor.ok_or_else(|| wrong(format!("it places {name} in {file}, which lacks it")))?;
            tensors.insert(name, tensor);
        }
        sums += &format!("{}  {file}\n", read.sha256);
    }
    Ok(Files { path: path.into(), tensors, sha256: sha256(sums.as_bytes()), label: None })
}
