//! Factors beside the weights: a task's low-rank change of a layer, computed with each product instead of merged into the weight.
//!
//! `y = W x + b + B (A x)`: so one packed backbone serves any number of tasks, each of which holds its factors alone. `A x` has as many
//! features as the rank, and its product with `B` goes on in the registers in which `W x` was summed.

use super::Linear;
use super::kernel::Aligned;
use super::layout::Layout;

/// A task's factors on a vision transformer, everything folded in that is folded into the weights.
#[derive(Debug, Clone)]
pub struct Factors {
    /// On the patches' projection.
    pub patch: LayerFactors,
    /// Of each block, on queries, keys and values together, and on the projection after the attention.
    pub blocks: Vec<[LayerFactors; 2]>,
}

/// The factors of a layer: of one, or, with as many outputs each, of several that have the same input.
#[derive(Debug, Clone)]
pub struct LayerFactors {
    /// Rank r, of each.
    pub rank: usize,
    /// `A` `[r, in]` of each.
    pub a: Vec<Vec<f32>>,
    /// `B` `[out, r]` of all, one after another.
    pub b: Vec<f32>,
}

/// [`Factors`], packed.
pub(super) struct Branches {
    pub(super) patch: Branch,
    pub(super) blocks: Vec<[Branch; 2]>,
}

/// [`LayerFactors`], packed.
pub(super) struct Branch {
    /// All `A`, each with as many outputs as fill a kernel's columns.
    pub(super) down: Linear,
    /// `B` as right operand `[out / columns, r, columns]`.
    up: Aligned,
    rank: usize,
    /// How many of the layer's outputs have the same `A`.
    outputs: usize,
}

impl Branches {
    pub(super) fn new(layout: Layout, factors: &Factors) -> Self {
        let pack = |layer: &LayerFactors| Branch::new(layout, layer);
        let blocks = factors.blocks.iter().map(|layers| layers.each_ref().map(pack)).collect();
        Self { patch: pack(&factors.patch), blocks }
    }

    /// The most features between a layer's factors.
    pub(super) fn width(&self) -> usize {
        let all = self.blocks.iter().flatten().chain([&self.patch]);
        all.map(|branch| branch.down.bias.len()).max().unwrap_or(0)
    }
}

impl Branch {
    fn new(layout: Layout, LayerFactors { rank, a, b }: &LayerFactors) -> Self {
        let rank = *rank;
        let (inputs, padded) = (a[0].len() / rank, rank.next_multiple_of(layout.columns()));
        let width = a.len() * padded;
        let mut weight = vec![0.0; inputs * width];
        for (n, a) in a.iter().enumerate() {
            for (r, row) in a.chunks_exact(inputs).enumerate() {
                let column = weight[n * padded + r..].iter_mut().step_by(width);
                column.zip(row).for_each(|(out, x)| *out = *x);
            }
        }
        let down = Linear::pack(layout, None, [inputs, width], std::iter::once((weight, vec![0.0; width])));
        let outputs = b.len() / rank;
        let transposed: Vec<f32> = (0..rank).flat_map(|r| b[r..].iter().copied().step_by(rank)).collect();
        let mut up = Aligned::new(b.len());
        layout.pack(&transposed, rank, up.values_mut());
        Self { down, up, rank, outputs: outputs / a.len() }
    }

    /// What is multiplied for the layer's outputs from `feature` on: `A x` of a panel, and their part of `B`.
    pub(super) fn operands<'a>(
        &'a self,
        layout: Layout,
        panel: usize,
        low: &'a Aligned,
        feature: usize,
    ) -> (&'a [f32], &'a [f32]) {
        let (lanes, columns) = (layout.kernel(panel).lanes, layout.columns());
        let width = self.down.bias.len();
        let first = feature / self.outputs * self.rank.next_multiple_of(columns);
        let low = &low.values()[layout.start(panel, width) + first * lanes..][..self.rank * lanes];
        (low, &self.up.values()[feature * self.rank..][..columns * self.rank])
    }
}
