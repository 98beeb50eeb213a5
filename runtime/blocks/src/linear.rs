//! Linear layers: packed weights, and their products with panels of tokens.

use super::branch::Branch;
use super::kernel::{Aligned, Kernel, TILE};
use super::layout::Layout;
use super::math::{Join, Joined};
use super::narrow::{Format, Narrow, Words};

/// A linear layer, packed.
pub struct Linear {
    pub(super) weight: Weight,
    pub(super) bias: Vec<f32>,
    pub(super) inputs: usize,
}

pub(super) enum Weight {
    /// As a product's right operand `[out / columns, in, columns]`.
    Whole(Aligned),
    Narrow(Narrow),
}

/// A layer's input, with what its weight or its branch makes of it.
pub(super) struct Input<'a> {
    pub(super) tokens: &'a Aligned,
    pub(super) words: Option<&'a Words>,
    pub(super) beside: Option<(&'a Branch, &'a Aligned)>,
}

/// For products to which no bias is added.
pub(super) const NONE: [f32; 16] = [0.0; 16];

impl Linear {
    /// Packs layers of one input, their outputs one after another: of each a weight `[in, out]` and a bias. They are asked for one by one,
    /// so that no more than one is held beside what is packed. `outputs` are those of all.
    pub fn pack(
        layout: Layout,
        format: Option<Format>,
        [inputs, outputs]: [usize; 2],
        layers: impl Iterator<Item = (Vec<f32>, Vec<f32>)>,
    ) -> Self {
        let mut bias = Vec::with_capacity(outputs);
        let weight = match format {
            None => {
                let mut packed = Aligned::new(inputs * outputs);
                let mut rest = packed.values_mut();
                for (weight, of_layer) in layers {
                    let (here, after) = rest.split_at_mut(weight.len());
                    layout.pack(&weight, inputs, here);
                    rest = after;
                    bias.extend(of_layer);
                }
                Weight::Whole(packed)
            }
            Some(format) => {
                let parts = layers.map(|(weight, of_layer)| {
                    let part = Narrow::new(format, layout.columns(), &weight, &of_layer);
                    bias.extend(of_layer);
                    part
                });
                Weight::Narrow(parts.reduce(Narrow::and).expect("a layer"))
            }
        };
        assert_eq!(bias.len(), outputs, "outputs of all layers");
        Self { weight, bias, inputs }
    }

    /// The layer's input of a panel's tokens.
    #[inline]
    pub(super) fn panel<'a>(&self, layout: Layout, panel: usize, tokens: &'a Aligned) -> &'a [f32] {
        &tokens.values()[layout.start(panel, self.inputs)..][..self.inputs * layout.kernel(panel).lanes]
    }

    /// A panel's products with the outputs from `feature` on.
    #[inline]
    pub(super) fn multiply(
        &self,
        kernel: Kernel,
        layout: Layout,
        panel: usize,
        input: &Input<'_>,
        feature: usize,
        tile: &mut [f32],
    ) {
        let Kernel { lanes, columns, .. } = kernel;
        let bias = &self.bias[feature..][..columns];
        let beside = input.beside.map(|(branch, low)| branch.operands(layout, panel, low, feature));
        let tokens = || self.panel(layout, panel, input.tokens);
        let weights = feature * self.inputs..(feature + columns) * self.inputs;
        match (&self.weight, beside, input.words) {
            (Weight::Whole(packed), None, _) => {
                kernel.multiply([(tokens(), &packed.values()[weights])], bias, tile);
            }
            (Weight::Whole(packed), Some(beside), _) => {
                kernel.multiply([(tokens(), &packed.values()[weights]), beside], bias, tile);
            }
            (Weight::Narrow(narrow), beside, words) => {
                let words = words.expect("what Blocks::read has made");
                let words = narrow.panel(layout, panel, words);
                narrow.multiply(kernel.isa, lanes, words, feature, bias, tile);
                if let Some(beside) = beside {
                    let mut more = [0.0; TILE];
                    let more = &mut more[..kernel.tile()];
                    kernel.multiply([beside], &NONE[..columns], more);
                    kernel.isa.with_vector(lanes, Joined { join: Join::Add, x: tile, other: more });
                }
            }
        }
    }
}
