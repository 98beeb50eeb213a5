//! Vision transformers' blocks out of a graph, packed for this machine's kernels.
//!
//! The graph file knows nothing of this: blocks are recognized when it is loaded ([`recognize`]), and what is not recognized is left to
//! tract.

mod recognize;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use blocks::{Block, Blocks, Embedding, Format, Isa, Layout, Linear, Mlp, NormWeights, Shape};

use self::recognize::{Found, Layer, Norm, Stack};
use super::Precision;
use super::onnx::{GraphProto, TensorProto};
use crate::tensor::Tensor;

/// Packed layers by the names of their constants.
#[derive(Default)]
pub(super) struct Layers(HashMap<Vec<Layer>, Arc<Linear>>);

/// Takes what is recognized out of the graph, to be computed by this machine's instructions. What it gives is an input of the graph then.
/// Those of the layers that are in `layers` already, from another graph that has them under the same names, are not packed again.
pub(super) fn take_blocks(
    precision: Precision,
    graph: &mut GraphProto,
    layers: &mut Layers,
) -> Vec<(Stack, Blocks)> {
    take_blocks_for(Isa::here(), precision, graph, layers)
}

/// As [`take_blocks`], for instructions that this machine has.
fn take_blocks_for(
    isa: Isa,
    precision: Precision,
    graph: &mut GraphProto,
    layers: &mut Layers,
) -> Vec<(Stack, Blocks)> {
    let stacks: Vec<_> = recognize::stacks(graph)
        .into_iter()
        .filter_map(|stack| Some((Plan::of(isa, &stack)?, stack)))
        .collect();
    recognize::remove(graph, stacks.iter().map(|(_, stack)| stack));
    let format = format(precision, isa);
    let mut pack = Pack::new(graph, stacks.iter().map(|(_, stack)| stack), layers, format);
    let packed = stacks.into_iter().map(|(plan, stack)| {
        let chain = stack.blocks.iter().map(|block| pack.block(plan.layout, block)).collect();
        let Plan { shape, layout } = plan;
        let embedding = pack.embedding(layout, &stack.embedding);
        (stack, Blocks::new(shape, layout, format, embedding, chain))
    });
    let packed = packed.collect();
    recognize::remove_unread(graph);
    packed
}

/// What the weights are packed in for a precision: none for values as they are, and where this machine has no instructions for it.
pub(super) fn format(precision: Precision, isa: Isa) -> Option<Format> {
    let format = match precision {
        Precision::F32 => return None,
        Precision::Bf16 => Format::Bf16,
        Precision::Int8 => Format::Int8,
    };
    format.is_there(isa).then_some(format)
}

/// How a stack is computed on this machine.
#[derive(Clone, Copy)]
struct Plan {
    shape: Shape,
    layout: Layout,
}

impl Plan {
    fn of(isa: Isa, stack: &Stack) -> Option<Self> {
        let shape = |block: &Found| Shape {
            tokens: block.tokens,
            heads: block.heads,
            width: block.width,
            hidden: block.hidden,
        };
        let first = shape(stack.blocks.first()?);
        let layout = Layout::new(isa, first.tokens);
        let alike = stack.blocks.iter().all(|block| shape(block) == first);
        let fits = [first.width, first.hidden].iter().all(|n| n % layout.columns() == 0);
        (alike && fits).then_some(Self { shape: first, layout })
    }
}

/// Packs the constants of a graph, each of which is dropped when it has been packed for the last time. What several views share is
/// packed once.
struct Pack<'a> {
    graph: &'a mut GraphProto,
    /// How often each constant will be asked for, yet.
    uses: HashMap<String, usize>,
    layers: &'a mut Layers,
    format: Option<Format>,
    ropes: HashMap<[String; 2], Arc<[Vec<f32>; 2]>>,
}

impl<'a> Pack<'a> {
    fn new<'s>(
        graph: &'a mut GraphProto,
        stacks: impl Iterator<Item = &'s Stack>,
        layers: &'a mut Layers,
        format: Option<Format>,
    ) -> Self {
        let mut uses = HashMap::new();
        for layer in stacks.flat_map(|stack| &stack.blocks).flat_map(Found::layers) {
            *uses.entry(layer.weight.clone()).or_default() += 1;
        }
        for input in graph.node.iter().flat_map(|node| &node.input) {
            uses.entry(input.clone()).and_modify(|uses| *uses += 1);
        }
        Self { graph, uses, layers, format, ropes: HashMap::new() }
    }

    fn block(&mut self, layout: Layout, found: &Found) -> Block {
        let mut one = |layer: &Layer| self.linear(layout, &[layer]);
        let mlp = match &found.mlp {
            recognize::Mlp::Gelu { fc1, fc2 } => Mlp::Gelu { fc1: one(fc1), fc2: one(fc2) },
            recognize::Mlp::GeluTanh { fc1, fc2 } => Mlp::GeluTanh { fc1: one(fc1), fc2: one(fc2) },
            recognize::Mlp::SwiGlu { gate, up, down } => {
                Mlp::SwiGlu { gate: one(gate), up: one(up), down: one(down) }
            }
        };
        Block {
            cls_only: found.cls_only,
            o: one(&found.o),
            qkv: self.linear(layout, &[&found.q, &found.k, &found.v]),
            rope: found.rope.as_ref().map(|tables| self.rope(layout, tables, found.width)),
            norm1: self.norm(&found.norm1),
            norm2: self.norm(&found.norm2),
            mlp,
        }
    }

    fn constant(&mut self, name: &str) -> &mut TensorProto {
        let tensor = self.graph.initializer.iter_mut().find(|tensor| tensor.name == name);
        tensor.expect("the constant that was recognized")
    }

    fn floats(&mut self, name: &str) -> Vec<f32> {
        self.constant(name).floats().expect("the constant that was recognized")
    }

    fn matrix(&mut self, name: &str, rows: usize) -> Tensor {
        let values = self.floats(name);
        Tensor::new([rows, values.len() / rows], values)
    }

    fn embedding(&mut self, layout: Layout, found: &recognize::Embedding) -> Embedding {
        let bias = self.floats(&found.bias);
        let d = bias.len();
        let mut rows = self.floats(&found.table);
        for row in rows.chunks_exact_mut(d).skip(found.before) {
            row.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias);
        }
        let table = layout.panels_of(&rows, d);
        let projection = self.projection(layout, found, d);
        let recognize::Embedding { slice, patch, before, .. } = *found;
        Embedding { slice, patch, before, projection, table }
    }

    /// As a linear layer; its bias goes into the table, since the tokens before the patches' have none.
    fn projection(&mut self, layout: Layout, found: &recognize::Embedding, d: usize) -> Arc<Linear> {
        let name = vec![Layer { weight: found.weight.clone(), bias: found.bias.clone() }];
        if let Some(known) = self.layers.0.get(&name) {
            return Arc::clone(known);
        }
        let weight = self.matrix(&found.weight, d).transposed();
        let inputs = weight.shape[0];
        let one = std::iter::once((weight.data, vec![0.0; d]));
        let projection = Arc::new(Linear::pack(layout, None, [inputs, d], one));
        self.layers.0.insert(name, Arc::clone(&projection));
        projection
    }

    fn norm(&mut self, norm: &Norm) -> NormWeights {
        let [weight, bias] = [&norm.weight, &norm.bias].map(|name| self.floats(name));
        NormWeights { weight, bias, epsilon: norm.epsilon }
    }

    /// Layers of one input, their outputs one after another.
    fn linear(&mut self, layout: Layout, layers: &[&Layer]) -> Arc<Linear> {
        let name: Vec<Layer> = layers.iter().map(|&layer| layer.clone()).collect();
        let known = self.layers.0.get(&name).cloned();
        let linear = known.unwrap_or_else(|| {
            let outputs = layers.iter().map(|layer| self.constant(&layer.bias).dims[0] as usize).sum();
            let inputs = self.constant(&layers[0].weight).dims[0] as usize;
            let format = self.format;
            let parts = layers.iter().map(|layer| (self.floats(&layer.weight), self.floats(&layer.bias)));
            Arc::new(Linear::pack(layout, format, [inputs, outputs], parts))
        });
        for layer in layers {
            let uses = self.uses.get_mut(&layer.weight).expect("the uses were counted");
            *uses -= 1;
            if *uses == 0 {
                self.constant(&layer.weight).raw_data = Vec::new();
            }
        }
        self.layers.0.entry(name).or_insert(linear).clone()
    }

    /// The tables `[width, T]` in panels of `width` features.
    fn rope(&mut self, layout: Layout, tables: &[String; 2], width: usize) -> Arc<[Vec<f32>; 2]> {
        if let Some(rope) = self.ropes.get(tables) {
            return Arc::clone(rope);
        }
        let rope = Arc::new(tables.each_ref().map(|name| {
            let table = self.matrix(name, width);
            layout.panels_of(&table.transposed().data, width)
        }));
        self.ropes.insert(tables.clone(), Arc::clone(&rope));
        rope
    }
}
