//! Canonical tensors → the task's ONNX graph.
//!
//! The graph is plain ONNX (opset 17, IR 8) and written deterministically: the same tensors give the same bytes
//! on every machine. Its input is `slices` f32 `[S, 3, H, W]` with S symbolic; its outputs are `logits` `[C]`,
//! `slice_weights` `[S]`, `heatmap` `[S, gh, gw]` and `slice_embeddings` `[S, d]`. Between the encoder and the
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
mod vit;

use crate::backbone::{Arch, Backbone, Body, Embedding, Tensor, Tensors, Vit};
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

/// Writes the encoder for `slices` `[S, 3, H, W]`, taking the weights out of the backbone as they are written.
fn encode(
    b: &mut Builder,
    backbone: &mut Backbone,
    size: [usize; 2],
    grid: [usize; 2],
    patches: bool,
) -> Encoded {
    match backbone.arch.body.clone() {
        Body::Vit(vit) => vit::encode(b, backbone, &vit, grid, patches),
        Body::Davit(davit) => davit::encode(b, backbone, &davit, size),
    }
}

/// The task graph of a backbone with the factors merged in ([`crate::plugin::merge`]) and of `content`'s query and head.
///
/// The backbone is consumed, so that its weights are never held twice.
pub fn task_graph(
    mut backbone: Backbone,
    content: &Tensors,
    size: [usize; 2],
    meta: &GraphMeta,
) -> Result<Vec<u8>, GraphError> {
    let [gh, gw] = grid(&backbone.arch, size)?;
    let d = backbone.arch.dim;
    let mut b = Builder::default();
    let encoded = encode(&mut b, &mut backbone, size, [gh, gw], false);
    b.rename(&encoded.embedding, "slice_embeddings");
    b.rename(&encoded.attention, CLS_ATTENTION);

    let classes = pool(&mut b, content, d);
    let heat = b.node("Mul", "pool.heat", &[CLS_ATTENTION, WEIGHTS]);
    b.reshape("heatmap", &heat, &[-1, gh as i64, gw as i64]);

    b.input("slices", &[None, Some(3), Some(size[0]), Some(size[1])]);
    b.output("logits", &[Some(classes)]);
    b.output("slice_weights", &[None]);
    b.output("heatmap", &[None, Some(gh), Some(gw)]);
    b.output("slice_embeddings", &[None, Some(d)]);
    b.property("scanside.task", &meta.task);
    b.property("scanside.version", &meta.version);
    b.property("scanside.backbone_sha256", &backbone.sha256);
    b.property("scanside.content_sha256", &meta.content_sha256);
    b.property(GRID_PROPERTY, &format!("{gh},{gw}"));
    Ok(b.finish("scanside-task"))
}

/// Name of the slice weights as `[S, 1]`.
const WEIGHTS: &str = "pool.weights";

/// Attention pooling and head on `slice_embeddings` `[S, d]`: writes `logits` and `slice_weights`, returns the number of
/// logits. Eq. of the paper: `a = softmax(H q / sqrt(d))`, `v = aᵀ H`; then one linear layer.
fn pool(b: &mut Builder, content: &Tensors, d: usize) -> usize {
    let scale = 1.0 / (d as f32).sqrt();
    let query = content["query"].data.iter().map(|q| q * scale).collect();
    let query = b.constant("query", &Tensor::new([d, 1], query));
    let scores = b.node("MatMul", "pool.scores", &["slice_embeddings", &query]);
    let weights = b.softmax(WEIGHTS, &scores, 0);
    let row = b.transpose("pool.row", &weights, &[1, 0]);
    let pooled = b.node("MatMul", "pool.pooled", &[&row, "slice_embeddings"]);
    let head = &content["head.weight"];
    let classes = head.shape[0];
    let weight = b.constant("head.weight", &builder::transposed(head));
    let logits = b.node("MatMul", "head.product", &[&pooled, &weight]);
    let bias = b.constant("head.bias", &content["head.bias"]);
    let logits = b.node("Add", "head.sum", &[&logits, &bias]);
    b.reshape("logits", &logits, &[classes as i64]);
    b.reshape("slice_weights", &weights, &[-1]);
    classes
}

/// Pooling and head alone: `slice_embeddings` `[S, d]` → `logits` `[C]`, `slice_weights` `[S]`.
pub fn pooling_graph(content: &Tensors, d: usize) -> Vec<u8> {
    let mut b = Builder::default();
    let classes = pool(&mut b, content, d);
    b.input("slice_embeddings", &[None, Some(d)]);
    b.output("logits", &[Some(classes)]);
    b.output("slice_weights", &[None]);
    b.finish("scanside-pooling")
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
    let encoded = encode(&mut b, &mut backbone, size, grid, true);
    b.rename(&encoded.embedding, embedding);
    b.rename(&encoded.attention, &attention);
    if let Some(patch) = encoded.patch {
        b.rename(&patch, "patch");
    }
    b.input("slices", &[None, Some(3), Some(size[0]), Some(size[1])]);
    b.output(embedding, &[None, Some(d)]);
    b.output("patch", &[None, Some(n), Some(d)]);
    b.output(&attention, &[None, Some(n)]);
    b.property("scanside.backbone_sha256", &backbone.sha256);
    Ok(b.finish("scanside-backbone"))
}
