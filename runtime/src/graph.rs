//! Canonical tensors → the task's ONNX graph.
//!
//! The graph is plain ONNX (opset 17, IR 8) and written deterministically: the same tensors give the same bytes
//! on every machine. Its input is `slices` f32 `[S, 3, H, W]` with S symbolic; its outputs are `logits` `[C]`,
//! `slice_weights` `[S]`, `heatmap` `[S, gh, gw]` and `slice_embeddings` `[S, d]`; with several views [`StudyGraph`]'s. Between the encoder and the
//! pooling stand exactly two tensors, `slice_embeddings` and [`CLS_ATTENTION`], so an engine can cut there and
//! encode each slice by itself.
//!
//! What can be computed once is computed here: positions are interpolated for the grid, rotations tabulated, LayerScale is
//! folded into the projection before it, `1 / sqrt(head width)` into the query projection, the probe of a pooling head into
//! its keys, and CLS and registers into the table that is added to the tokens. Where CLS is the embedding, the last block
//! computes its row alone, since nothing else leaves the encoder.

mod builder;
mod davit;
mod layers;
mod pool;
mod study;
mod vit;

pub use study::{StudyGraph, VIEW_MASK, of_view};

use crate::backbone::{Arch, Backbone, Body, Embedding, Tensor, Tensors, Vit};
use crate::engine::onnx::{self, ModelProto};
use builder::Builder;

/// Tensor `[S, N]`: last-block attention from CLS to the patches, mean over heads, not renormalised. On a backbone without
/// CLS the pooling head's attention, or each token's share in the pooled embedding: [`Arch::heatmap`] says which.
pub const CLS_ATTENTION: &str = "cls_attention";

/// Metadata property with the patch grid, `gh,gw`.
pub const GRID_PROPERTY: &str = "scanside.grid";

/// What a task graph says of itself in its metadata properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphMeta {
    /// Task name.
    pub task: String,
    /// Task version.
    pub version: String,
    /// SHA-256 of the plugin's canonical content.
    pub content_sha256: String,
}

/// Why a graph could not be written.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The slice size does not divide into patches.
    #[error(
        "slices of {height}x{width} pixels do not divide into patches of {patch}; choose multiples of {patch}"
    )]
    Size {
        /// Height of a slice.
        height: usize,
        /// Width of a slice.
        width: usize,
        /// Side of a patch.
        patch: usize,
    },
}

impl GraphError {
    /// Whether the user's file or flag is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        true
    }
}

/// Rows and columns of the token grid.
fn grid(arch: &Arch, size: [usize; 2]) -> Result<[usize; 2], GraphError> {
    let [height, width] = size;
    arch.grid(size).ok_or(GraphError::Size { height, width, patch: arch.patch })
}

/// Names of an encoder's outputs.
struct Encoded {
    /// `[S, d]`.
    embedding: String,
    /// `[S, N]`, see [`CLS_ATTENTION`].
    attention: String,
    /// `[S, N, d]`; where CLS is the embedding, only where asked for.
    patch: Option<String>,
}

/// What of a task's encoder is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    /// All of it; where CLS is the embedding, nothing else of the last block.
    Encoder,
    /// All of it, and all tokens of the last block.
    WithPatches,
    /// Of a vision transformer what comes after its blocks; what these give are inputs of the graph, see [`block_ends`]. With the
    /// symbol of the number of slices.
    AfterBlocks(&'a str),
}

/// Writes the encoder for `slices`, the name of `[S, 3, H, W]`, taking the weights out of the backbone as they are written.
fn encode(
    b: &mut Builder,
    backbone: &mut Backbone,
    slices: &str,
    size: [usize; 2],
    grid: [usize; 2],
    part: Part<'_>,
) -> Encoded {
    match backbone.arch.body.clone() {
        Body::Vit(vit) => vit::encode(b, backbone, &vit, slices, grid, part),
        Body::Davit(davit) => davit::encode(b, backbone, &davit, slices, size),
    }
}

/// The tensors between the blocks for `slices` and what comes after them, where the two are graphs of their own: the tokens
/// `[S, T, d]`, or where CLS is the embedding, its row `[S, 1, d]` and the last block's attention `[S, heads, 1, T]`.
pub fn block_ends(slices: &str) -> [String; 2] {
    ["tokens", "attention"].map(|end| format!("{slices}.{end}"))
}

/// The blocks of a vision transformer alone: `slices` → [`block_ends`]. `None` for any other backbone.
pub fn blocks_model(mut backbone: Backbone, size: [usize; 2]) -> Result<Option<ModelProto>, GraphError> {
    let grid = grid(&backbone.arch, size)?;
    let Body::Vit(vit) = backbone.arch.body.clone() else { return Ok(None) };
    let mut b = Builder::default();
    vit::blocks(&mut b, &mut backbone, &vit, "slices", grid);
    b.input("slices", &[None, Some(3), Some(size[0]), Some(size[1])], SLICES);
    Ok(Some(b.finish("scanside-blocks")))
}

/// Of a backbone what [`after_blocks`] and [`crate::plugin::side_factors`] need: what is after the blocks, and their LayerScales.
pub fn without_blocks(backbone: &Backbone) -> Backbone {
    let Backbone { arch, naming, sha256, tensors, label } = backbone;
    let stays =
        |name: &str| name.starts_with("norm.") || name.starts_with("pool.") || name.contains(".scale");
    let tensors = tensors.iter().filter(|(name, _)| stays(name));
    Backbone {
        arch: arch.clone(),
        naming: *naming,
        sha256: sha256.clone(),
        tensors: tensors.map(|(name, tensor)| (name.clone(), tensor.clone())).collect(),
        label: label.clone(),
    }
}

/// The task graph without the blocks of its vision transformer: its inputs are [`block_ends`] beside `slices`, which nothing reads.
pub fn after_blocks(
    backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
) -> Result<ModelProto, GraphError> {
    write_task(backbone, content, size, meta, Part::AfterBlocks(SLICES))
}

/// The bytes of [`task_model`].
pub fn task_graph(
    backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
) -> Result<Vec<u8>, GraphError> {
    Ok(onnx::encode(&task_model(backbone, content, size, meta)?))
}

/// As [`task_graph`], but the last block computes all tokens, as in the graphs that other exporters write: for comparisons.
pub fn full_task_graph(
    backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
) -> Result<Vec<u8>, GraphError> {
    Ok(onnx::encode(&write_task(backbone, content, size, meta, Part::WithPatches)?))
}

/// The task graph of a backbone with the factors merged in ([`crate::plugin::merge`]) and of `content`'s query and head.
///
/// The backbone is consumed, so that its weights are never held twice.
pub fn task_model(
    backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
) -> Result<ModelProto, GraphError> {
    write_task(backbone, content, size, meta, Part::Encoder)
}

fn write_task(
    mut backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
    part: Part<'_>,
) -> Result<ModelProto, GraphError> {
    let [gh, gw] = grid(&backbone.arch, size)?;
    let d = backbone.arch.dim;
    let mut b = Builder::default();
    let encoded = encode(&mut b, &mut backbone, "slices", size, [gh, gw], part);
    b.rename(&encoded.embedding, "slice_embeddings");
    b.rename(&encoded.attention, CLS_ATTENTION);

    let classes = pool(&mut b, content);
    let heat = b.node("Mul", "pool.heat", &[CLS_ATTENTION, WEIGHTS]);
    b.reshape("heatmap", &heat, &[-1, gh as i64, gw as i64]);

    b.input("slices", &[None, Some(3), Some(size[0]), Some(size[1])], SLICES);
    b.output("logits", &[Some(classes)], SLICES);
    b.output("slice_weights", &[None], SLICES);
    b.output("heatmap", &[None, Some(gh), Some(gw)], SLICES);
    b.output("slice_embeddings", &[None, Some(d)], SLICES);
    meta.write(&mut b, &backbone.sha256);
    b.property(GRID_PROPERTY, &format!("{gh},{gw}"));
    Ok(b.finish("scanside-task"))
}

impl GraphMeta {
    fn write(&self, b: &mut Builder, backbone_sha256: &str) {
        b.property("scanside.task", &self.task);
        b.property("scanside.version", &self.version);
        b.property("scanside.backbone_sha256", backbone_sha256);
        b.property("scanside.content_sha256", &self.content_sha256);
    }
}

/// The symbol of the number of slices.
const SLICES: &str = "S";

/// Name of the slice weights as `[S, 1]`.
const WEIGHTS: &str = "pool.weights";

/// Attention pooling by one query. Eq. of the paper: `a = softmax(H q / sqrt(d))`, `v = aᵀ H`, of `rows` `[S, d]`. Gives the names
/// of `a` `[S, 1]` and `v` `[1, d]`. With `bias`, the name of `[S, 1]`, that is added to the scores.
fn attend(b: &mut Builder, part: &str, query: &Tensor, rows: &str, bias: Option<&str>) -> [String; 2] {
    let n = |name: &str| format!("{part}.{name}");
    let d = query.data.len();
    let scale = 1.0 / (d as f32).sqrt();
    let query = query.data.iter().map(|q| q * scale).collect();
    let constant = if part == "pool" { "query".into() } else { n("query") };
    let query = b.constant(&constant, &Tensor::new([d, 1], query));
    let mut scores = b.node("MatMul", &n("scores"), &[rows, &query]);
    if let Some(bias) = bias {
        scores = b.node("Add", &n("scores.biased"), &[&scores, bias]);
    }
    let weights = b.softmax(&n("weights"), &scores, 0);
    let row = b.transpose(&n("row"), &weights, &[1, 0]);
    let pooled = b.node("MatMul", &n("pooled"), &[&row, rows]);
    [weights, pooled]
}

/// The linear head on `pooled` `[1, d]`: writes `logits`, returns their number.
fn classify(b: &mut Builder, content: &Tensors, pooled: &str) -> usize {
    let head = &content["head.weight"];
    let classes = head.shape[0];
    let weight = b.constant("head.weight", &head.transposed());
    let logits = b.node("MatMul", "head.product", &[pooled, &weight]);
    let bias = b.constant("head.bias", &content["head.bias"]);
    let logits = b.node("Add", "head.sum", &[&logits, &bias]);
    b.reshape("logits", &logits, &[classes as i64]);
    classes
}

/// Attention pooling and head on `slice_embeddings` `[S, d]`: writes `logits` and `slice_weights`, returns the number of
/// logits.
fn pool(b: &mut Builder, content: &Tensors) -> usize {
    let [weights, pooled] = attend(b, "pool", &content["query"], "slice_embeddings", None);
    let classes = classify(b, content, &pooled);
    b.reshape("slice_weights", &weights, &[-1]);
    classes
}

/// Pooling and head alone: `slice_embeddings` `[S, d]` → `logits` `[C]`, `slice_weights` `[S]`.
pub fn pooling_graph(content: &Tensors, d: usize) -> Vec<u8> {
    let mut b = Builder::default();
    let classes = pool(&mut b, content);
    b.input("slice_embeddings", &[None, Some(d)], SLICES);
    b.output("logits", &[Some(classes)], SLICES);
    b.output("slice_weights", &[None], SLICES);
    onnx::encode(&b.finish("scanside-pooling"))
}

/// The bare backbone: `slices` → `cls` `[S, d]` (`pooled` where there is no CLS), `patch` `[S, N, d]` (both after the final norm,
/// registers removed; a DaViT's patch tokens are before it) and `[S, N]` what the heat map is made of: `cls_attention`,
/// `pool_attention` or `pooled_similarity`.
pub fn backbone_graph(mut backbone: Backbone, size: [usize; 2]) -> Result<Vec<u8>, GraphError> {
    let grid = grid(&backbone.arch, size)?;
    let (d, n) = (backbone.arch.dim, grid[0] * grid[1]);
    let has_cls = matches!(backbone.arch.body, Body::Vit(Vit { embedding: Embedding::Cls, .. }));
    let (embedding, attention) =
        (if has_cls { "cls" } else { "pooled" }, backbone.arch.heatmap().replace('-', "_"));
    let mut b = Builder::default();
    let encoded = encode(&mut b, &mut backbone, "slices", size, grid, Part::WithPatches);
    b.rename(&encoded.embedding, embedding);
    b.rename(&encoded.attention, &attention);
    if let Some(patch) = encoded.patch {
        b.rename(&patch, "patch");
    }
    b.input("slices", &[None, Some(3), Some(size[0]), Some(size[1])], SLICES);
    b.output(embedding, &[None, Some(d)], SLICES);
    b.output("patch", &[None, Some(n), Some(d)], SLICES);
    b.output(&attention, &[None, Some(n)], SLICES);
    b.property("scanside.backbone_sha256", &backbone.sha256);
    Ok(onnx::encode(&b.finish("scanside-backbone")))
}
