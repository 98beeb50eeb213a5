//! Task plugins: read, write, check, and merge into a backbone.
//!
//! A plugin is one deterministic file, a plain tar that `tar tf` lists:
//!
//! | member | content |
//! | --- | --- |
//! | `manifest.json` | [`Manifest`] |
//! | `content.safetensors` | factors, query and head, f32 or f16 as the manifest says |
//! | `golden.safetensors` | input volumes `[nz, ny, nx]`, one a golden case; the manifest says where they come from |
//! | `card.md` | model card |
//! | `SHA256SUMS` | digests of the four, as `sha256sum -c` reads them |
//!
//! The same plugin always gives the same bytes, and reading refuses a file that is not byte for byte what writing
//! would give, so no flipped bit goes unnoticed. Who wrote it is a matter for signatures, not for the format.
//!
//! Content tensors (`r` rank, `d` width, `p` patch, `C` labels): `lora.patch.A` `[r, 3, p, p]`, `lora.patch.B` `[d, r]`;
//! `lora.blocks.N.qkv.A` `[r, d]`, `.B` `[3 d, r]` (fused) or `lora.blocks.N.{q,k,v}.A` `[r, d]`, `.B` `[d, r]` (separate);
//! `lora.blocks.N.o.{A,B}`; `query` `[d]`; `head.weight` `[C, d]`; `head.bias` `[C]`. On a DaViT there is no `lora.patch`, and
//! `d` of a block's factors is the width of its stage. With several views factors and query of view V stand under `views.V.`, and
//! `query` is the task's, over the views.

mod file;
mod merge;

use std::path::{Path, PathBuf};

use firmware_config::{LoraSpec, Manifest};

use crate::Error;
use crate::backbone::{Arch, Backbone, Tensors};
use crate::engine::onnx::{self, ModelProto};
use crate::graph::{GraphMeta, StudyGraph, after_blocks, task_model};
use crate::tensor::{TensorError, safetensors_bytes, sha256};

pub use file::MOST_BYTES;
pub(crate) use merge::side_factors;
pub use merge::{expected_content, merge, view_content};

/// A task plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Factors, query and head; see the module's docs for names and shapes.
    pub content: Tensors,
    /// Input volumes of the golden cases by name, `[nz, ny, nx]`.
    pub golden: Tensors,
    /// Model card, Markdown.
    pub card: String,
}

/// Why a plugin could not be read, written or merged.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The plugin file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The file is no plugin, or was damaged.
    #[error("{path} is not a sound task plugin ({detail}); fetch it again", path = path.display())]
    Malformed {
        /// The plugin file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The manifest states something that cannot be.
    #[error("{path}: in its manifest {invalid}; the plugin was written by a faulty or newer tool", path = path.display())]
    Manifest {
        /// The plugin file.
        path: PathBuf,
        /// The field.
        invalid: firmware_config::Invalid,
    },
    /// The backbone at hand is another one than the plugin was fitted on.
    #[error(
        "the plugin was fitted on {name} with SHA-256 {expected}, but this backbone has {found}; give that file"
    )]
    Backbone {
        /// The backbone that it wants.
        name: String,
        /// Its digest.
        expected: String,
        /// The digest of the one at hand.
        found: String,
    },
    /// A content tensor is missing, superfluous or misshapen for the backbone.
    #[error("the plugin's tensor {name} is {found}, expected {expected} for this backbone; export it again")]
    Content {
        /// The tensor.
        name: String,
        /// Its shape, or `missing`.
        found: String,
        /// The shape that the backbone implies, or `nothing of that name`.
        expected: String,
    },
    /// The graph at hand or just merged is not the one that the manifest names.
    #[error(
        "the task graph has SHA-256 {found}, but the plugin names {expected}; take the graph exported with this plugin, or merge it again"
    )]
    Graph {
        /// The digest that the manifest names.
        expected: String,
        /// The digest of the graph.
        found: String,
    },
}

impl PluginError {
    /// Whether the user's file or flag is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::files::names_no_file(source),
            _ => true,
        }
    }
}

/// SHA-256 of a plugin's canonical content: the bytes of `content.safetensors`, then the manifest's LoRA scaling and recipe, and
/// where there are views these and what is done where one is missing, as JSON, a line each. The rest of the manifest is not in
/// it, because it names the graph, which names this.
pub fn content_sha256(content: &Tensors, manifest: &Manifest) -> String {
    let mut bytes = safetensors_bytes(content, None);
    let mut lines = vec![serde_json::to_vec(&manifest.lora), serde_json::to_vec(&manifest.recipe)];
    if !manifest.views.is_empty() {
        lines.extend([serde_json::to_vec(&manifest.views), serde_json::to_vec(&manifest.missing_views)]);
    }
    for json in lines {
        bytes.extend(json.expect("plain data serialises"));
        bytes.push(b'\n');
    }
    sha256(&bytes)
}

impl Plugin {
    /// Reads and checks a plugin file; returns it with the file's SHA-256.
    pub fn read(path: &Path) -> Result<(Self, String), PluginError> {
        file::read(path)
    }

    /// Checks the bytes of a plugin file that were read from `path`.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, PluginError> {
        file::parse(bytes, path)
    }

    /// The bytes of a plugin file; refused where there are more than any plugin has.
    pub fn read_bytes(path: &Path) -> Result<Vec<u8>, PluginError> {
        file::read_bytes(path)
    }

    /// Writes the plugin file atomically; returns its SHA-256.
    pub fn write(&self, path: &Path) -> Result<String, PluginError> {
        let bytes = file::encode(self);
        crate::files::write_atomically(path, &bytes)
            .map_err(|source| PluginError::Io { path: path.into(), source })?;
        Ok(sha256(&bytes))
    }

    /// Builds the task graph from the plugin and its backbone, and checks that it is the one that the manifest names.
    pub fn graph(&self, backbone: Backbone) -> Result<ModelProto, Error> {
        self.check_backbone(&backbone)?;
        let graph = build_model(backbone, &self.manifest, &self.content)?;
        self.check_graph(&onnx::sha256(&graph))?;
        Ok(graph)
    }

    /// Checks that a backbone is the one that it was fitted on.
    pub fn check_backbone(&self, backbone: &Backbone) -> Result<(), PluginError> {
        let wanted = &self.manifest.backbone;
        if backbone.sha256 == wanted.sha256 {
            return Ok(());
        }
        let (name, expected) = (wanted.name.clone(), wanted.sha256.clone());
        Err(PluginError::Backbone { name, expected, found: backbone.sha256.clone() })
    }

    /// The task graph without its blocks, and the factors beside these, for each input. `backbone` as [`crate::graph::without_blocks`]
    /// leaves it, of as many blocks as the plugin uses; `None` where it is no vision transformer.
    pub(crate) fn beside(
        &self,
        backbone: &Backbone,
    ) -> Result<Option<(ModelProto, Vec<blocks::Factors>)>, Error> {
        let Self { manifest, content, .. } = self;
        let meta = meta(manifest);
        if manifest.views.is_empty() {
            let Some(factors) = side_factors(backbone, content, &manifest.lora)? else { return Ok(None) };
            let graph = after_blocks(backbone.clone(), content, manifest.recipe.size, &meta)?;
            return Ok(Some((graph, vec![factors])));
        }
        check_views(&backbone.arch, manifest, content)?;
        let (mut graph, mut all) = (StudyGraph::default(), Vec::new());
        for (view, recipe) in manifest.inputs() {
            let view = view.unwrap_or_default();
            let content = view_content(content, view);
            let Some(factors) = side_factors(backbone, &content, &manifest.lora)? else { return Ok(None) };
            all.push(factors);
            graph.view_after_blocks(view, backbone.clone(), &content["query"], recipe.size)?;
        }
        Ok(Some((graph.finish(content, manifest.missing_views, &meta), all)))
    }

    /// Checks that a graph is the one that the manifest names.
    pub fn check_graph(&self, found: &str) -> Result<(), PluginError> {
        let expected = self.manifest.graph_sha256.clone();
        if found == expected { Ok(()) } else { Err(PluginError::Graph { expected, found: found.into() }) }
    }
}

/// The bytes of the task graph of `manifest` and `content` on `backbone`, before the manifest can know its hash: what an exporter
/// calls. Of the manifest it uses task, backbone.blocks, lora, recipe, views and content_sha256.
pub fn build_graph(backbone: Backbone, manifest: &Manifest, content: &Tensors) -> Result<Vec<u8>, Error> {
    Ok(onnx::encode(&build_model(backbone, manifest, content)?))
}

fn build_model(mut backbone: Backbone, manifest: &Manifest, content: &Tensors) -> Result<ModelProto, Error> {
    if let Some(blocks) = manifest.backbone.blocks {
        backbone.truncate(blocks)?;
    }
    let meta = meta(manifest);
    if manifest.views.is_empty() {
        merge(&mut backbone, content, &manifest.lora)?;
        return Ok(task_model(backbone, content, manifest.recipe.size, &meta)?);
    }
    check_views(&backbone.arch, manifest, content)?;
    let mut graph = StudyGraph::default();
    for (view, recipe) in manifest.inputs() {
        let view = view.unwrap_or_default();
        let content = view_content(content, view);
        let mut merged = backbone.clone();
        merge(&mut merged, &content, &manifest.lora)?;
        graph.view(view, merged, &content["query"], recipe.size)?;
    }
    Ok(graph.finish(content, manifest.missing_views, &meta))
}

/// What the graph says of itself.
fn meta(manifest: &Manifest) -> GraphMeta {
    GraphMeta {
        task: manifest.task.name.clone(),
        version: manifest.task.version.clone(),
        content_sha256: manifest.content_sha256.clone(),
    }
}

/// Checks every name and shape of a task of several views.
fn check_views(arch: &Arch, manifest: &Manifest, content: &Tensors) -> Result<(), PluginError> {
    let views: Vec<&str> = manifest.views.keys().map(String::as_str).collect();
    let labels = content.get("head.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0);
    merge::check(arch, content, &manifest.lora, labels, &views)
}

/// Number of trainable parameters of a plugin on a backbone of this shape; `views` as in [`expected_content`].
pub fn parameters(arch: &Arch, lora: &LoraSpec, labels: usize, views: &[&str]) -> usize {
    expected_content(arch, lora, labels, views).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

fn tensor_error(error: &TensorError, path: &Path) -> PluginError {
    PluginError::Malformed { path: path.into(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{Body, Davit, Family, Stage};
    use firmware_config::AttentionLora::Fused;

    #[test]
    fn a_davit_has_factors_of_each_stages_width_and_none_on_its_convolutions() {
        let stage =
            |dim, depth| Stage { dim, depth, heads: 1, groups: 1, kernel: 3, stride: 2, hidden: 4 * dim };
        let davit = Davit { stages: vec![stage(24, 1), stage(48, 2)], window: 4, final_norm: true };
        let arch =
            Arch { family: Family::Davit, dim: 48, patch: 8, norm_eps: 1e-5, body: Body::Davit(davit) };
        let lora = LoraSpec { rank: 2, alpha: 4.0, attention: Fused };
        let content = expected_content(&arch, &lora, 1, &[]);
        let of = |name: &str| content.iter().find(|(n, _)| n == name).map(|(_, shape)| shape.clone());
        assert_eq!(of("lora.blocks.1.qkv.B"), Some(vec![72, 2]));
        assert_eq!(of("lora.blocks.2.o.A"), Some(vec![2, 48]));
        assert_eq!(of("lora.blocks.5.o.B"), Some(vec![48, 2]));
        // Two blocks of width 24 and four of 48, each with A and B of qkv and o; query and head.
        let width = 2 * 24 + 4 * 48;
        assert_eq!(parameters(&arch, &lora, 1, &[]), 2 * width * (1 + 3 + 1 + 1) + 48 + 49);
        assert!(content.iter().all(|(name, _)| !name.contains("patch")));

        // A view has factors and a query of its own; the task's query and head are there once.
        let views = expected_content(&arch, &lora, 1, &["t1", "flair"]);
        assert_eq!(views.len(), 2 * (content.len() - 2) + 3);
        assert!(views.iter().any(|(name, shape)| name == "views.flair.query" && *shape == [48]));
        let view = parameters(&arch, &lora, 1, &[]) - 49;
        assert_eq!(parameters(&arch, &lora, 1, &["t1", "flair"]), 2 * view + 48 + 49);
    }
}
