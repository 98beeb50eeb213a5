//! The graph of a task of several views.

use firmware_config::MissingViews;

use super::builder::Builder;
use super::{CLS_ATTENTION, GRID_PROPERTY, GraphError, GraphMeta, Part, attend, classify, encode, grid};
use crate::backbone::{Backbone, Tensor, Tensors};
use crate::engine::onnx::ModelProto;

/// Input `[V]` of a graph that pools the views that are there: 1 for a view that is given, 0 for one that is not, whose slices
/// may then be anything, at least one.
pub const VIEW_MASK: &str = "view_mask";

/// What is taken from the score of a view that is not given, before the softmax: its weight is then exactly 0.
const FAR: f32 = 1e9;

/// The name of a graph's input or output for one of its views.
pub fn of_view(name: &str, view: &str) -> String {
    format!("{name}_{view}")
}

/// Writes the graph of a task of several views, view by view: each has an encoder with factors and a query of its own, and the
/// task's query pools what they give (late fusion).
///
/// Inputs are `slices_V` `[S_V, 3, H_V, W_V]` for each view V, outputs `logits` `[C]`, `view_weights` `[V]` and, for each view,
/// `slice_weights_V`, `heatmap_V` and `slice_embeddings_V` as in a graph of one view; the heat map is times the slice's weight in
/// its view. Weights that no factors touch are in the file once. A graph that pools the views that are there also has the input
/// [`VIEW_MASK`].
#[derive(Default)]
pub struct StudyGraph {
    b: Builder,
    backbone_sha256: String,
    dim: usize,
    pooled: Vec<String>,
    outputs: Vec<(String, Vec<Option<usize>>, String)>,
}

impl StudyGraph {
    /// Adds a view: its name, the backbone with its factors merged in, its query `[d]` and its slices' size.
    pub fn view(
        &mut self,
        name: &str,
        backbone: Backbone,
        query: &Tensor,
        size: [usize; 2],
    ) -> Result<(), GraphError> {
        self.write_view(name, backbone, query, size, false)
    }

    /// As [`Self::view`], without the blocks: see [`super::after_blocks`].
    pub fn view_after_blocks(
        &mut self,
        name: &str,
        backbone: Backbone,
        query: &Tensor,
        size: [usize; 2],
    ) -> Result<(), GraphError> {
        self.write_view(name, backbone, query, size, true)
    }

    fn write_view(
        &mut self,
        name: &str,
        mut backbone: Backbone,
        query: &Tensor,
        size: [usize; 2],
        after_blocks: bool,
    ) -> Result<(), GraphError> {
        let [gh, gw] = grid(&backbone.arch, size)?;
        let (n, symbol) = (|part: &str| of_view(part, name), format!("S{}", self.pooled.len()));
        let b = &mut self.b;
        let (slices, embeddings, attention) = (n("slices"), n("slice_embeddings"), n(CLS_ATTENTION));
        self.dim = backbone.arch.dim;
        self.backbone_sha256.clone_from(&backbone.sha256);
        b.scope(name);
        let part = if after_blocks { Part::AfterBlocks(&symbol) } else { Part::Encoder };
        let encoded = encode(b, &mut backbone, &slices, size, [gh, gw], part);
        b.rename(&encoded.embedding, &embeddings);
        b.rename(&encoded.attention, &attention);
        let [weights, pooled] = attend(b, "pool", query, &embeddings, None);
        self.pooled.push(pooled);
        let heat = b.node("Mul", "pool.heat", &[&attention, &weights]);
        b.scope("");
        b.reshape(&n("heatmap"), &heat, &[-1, gh as i64, gw as i64]);
        b.reshape(&n("slice_weights"), &weights, &[-1]);
        b.input(&slices, &[None, Some(3), Some(size[0]), Some(size[1])], &symbol);
        self.outputs.extend([
            (n("slice_weights"), vec![None], symbol.clone()),
            (n("heatmap"), vec![None, Some(gh), Some(gw)], symbol.clone()),
            (embeddings, vec![None, Some(self.dim)], symbol),
        ]);
        b.property(&format!("{GRID_PROPERTY}.{name}"), &format!("{gh},{gw}"));
        Ok(())
    }

    /// The whole; `content` has the task's query and the head.
    pub fn finish(mut self, content: &Tensors, missing: MissingViews, meta: &GraphMeta) -> ModelProto {
        let (b, count) = (&mut self.b, self.pooled.len());
        let pooled: Vec<&str> = self.pooled.iter().map(String::as_str).collect();
        let pooled = b.concat("fusion.views", &pooled, 0);
        let bias = (missing == MissingViews::Pool).then(|| {
            b.input(VIEW_MASK, &[Some(count)], "");
            // (mask - 1) * 1e9: exactly nothing where the view is there.
            let one = b.scalar("fusion.one", 1.0);
            let absent = b.node("Sub", "fusion.absent", &[VIEW_MASK, &one]);
            let far = b.scalar("fusion.far", FAR);
            let bias = b.node("Mul", "fusion.bias", &[&absent, &far]);
            b.reshape("fusion.bias.column", &bias, &[count as i64, 1])
        });
        let [weights, fused] = attend(b, "fusion", &content["query"], &pooled, bias.as_deref());
        let classes = classify(b, content, &fused);
        b.reshape("view_weights", &weights, &[count as i64]);
        b.output("logits", &[Some(classes)], "");
        b.output("view_weights", &[Some(count)], "");
        for (name, shape, symbol) in &self.outputs {
            b.output(name, shape, symbol);
        }
        meta.write(b, &self.backbone_sha256);
        self.b.finish("scanside-task")
    }
}
