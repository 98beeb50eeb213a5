//! From the constants of a graph to weights as the kernels read them.

use std::collections::HashMap;
use std::sync::Arc;

use super::kernel::{Aligned, Kernels};
use super::layout::Layout;
use super::narrow::{Format, Narrow};
use super::recognize::{self, Found, Layer, Norm, Stack};
use super::vector::Isa;
use super::{Block, Blocks, Embedding, Linear, Mlp, NormWeights, Shape, Weight};
use crate::engine::Precision;
use crate::engine::onnx::{GraphProto, TensorProto};
use crate::tensor::Tensor;

/// Packed layers by the names of their constants.
#[derive(Default)]
pub(in crate::engine) struct Layers(HashMap<Vec<Layer>, Arc<Linear>>);

/// Takes what is recognized out of the graph, to be computed by this machine's instructions. What it gives is an input of the graph then.
/// Those of the layers that are in `layers` already, from another graph that has them under the same names, are not packed again.
pub(in crate::engine) fn take_blocks(
    precision: Precision,
    graph: &mut GraphProto,
    layers: &mut Layers,
) -> Vec<(Stack, Blocks)> {
    take_blocks_for(Isa::here(), precision, graph, layers)
}

/// As [`take_blocks`], for instructions that this machine has.
pub(super) fn take_blocks_for(
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
    let format = Format::of(precision, isa);
    let mut pack = Pack::new(graph, stacks.iter().map(|(_, stack)| stack), layers, format);
    let packed = stacks.into_iter().map(|(plan, stack)| {
        let chain = stack.blocks.iter().map(|block| pack.block(plan.layout, block)).collect();
        let Plan { shape, layout } = plan;
        let embedding = Arc::new(pack.embedding(layout, &stack.embedding));
        (stack, Blocks { shape, layout, isa, format, embedding, chain, branches: None })
    });
    let packed = packed.collect();
    recognize::remove_unread(graph);
    packed
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
        let kernels = Kernels::new(isa, first.tokens);
        let alike = stack.blocks.iter().all(|block| shape(block) == first);
        let fits = [first.width, first.hidden].iter().all(|n| n % kernels.main.columns == 0);
        (alike && fits).then_some(Self { shape: first, layout: Layout { tokens: first.tokens, kernels } })
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
        recognize::floats(self.constant(name))
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
        let mut table = vec![0.0; layout.lanes() * d];
        layout.fill(&rows, d, &mut table);
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
        let mut packed = Aligned::new(weight.data.len());
        layout.pack(&weight.data, inputs, packed.values_mut());
        let projection = Arc::new(Linear { weight: Weight::Whole(packed), bias: vec![0.0; d], inputs });
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
            let bias: Vec<f32> = layers.iter().flat_map(|layer| self.floats(&layer.bias)).collect();
            let inputs = self.constant(&layers[0].weight).dims[0] as usize;
            let weight = match self.format {
                // One after another, so that no more than one is held beside what is packed.
                None => {
                    let mut packed = Aligned::new(inputs * bias.len());
                    let mut rest = packed.values_mut();
                    for layer in layers {
                        let weight = self.floats(&layer.weight);
                        let (here, after) = rest.split_at_mut(weight.len());
                        layout.pack(&weight, inputs, here);
                        rest = after;
                    }
                    Weight::Whole(packed)
                }
                Some(format) => {
                    let columns = layout.kernels.main.columns;
                    let parts = layers.iter().map(|layer| {
                        let [weight, bias] = [&layer.weight, &layer.bias].map(|name| self.floats(name));
                        Narrow::new(format, columns, &weight, &bias)
                    });
                    Weight::Narrow(parts.reduce(Narrow::and).expect("a layer"))
                }
            };
            Arc::new(Linear { weight, bias, inputs })
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
            let mut panels = vec![0.0; layout.lanes() * width];
            layout.fill(&table.transposed().data, width, &mut panels);
            panels
        }));
        self.ropes.insert(tables.clone(), Arc::clone(&rope));
        rope
    }
}
