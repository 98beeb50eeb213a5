//! Finds transformer blocks in an ONNX graph, as [`crate::graph`] writes them.
//!
//! Each block is followed backwards from its last addition, node by node. Whatever is not exactly as expected is no block, and stays
//! with tract.

mod reader;

use std::collections::{HashMap, HashSet};

use self::reader::{Reader, Trail};
use crate::engine::onnx::{GraphProto, NodeProto, ValueInfoProto};

/// sqrt(2 / π), of the approximation by the hyperbolic tangent.
const GELU_ROOT: f32 = 0.797_884_6;

/// From slices `[S, 3, H, W]` through blocks that follow one another to tokens `[S, T, d]`, or `[S, 1, d]` where the last one computes CLS
/// only.
#[derive(Debug)]
pub(in crate::engine) struct Stack {
    /// The tensor that goes in.
    pub(in crate::engine) input: String,
    pub(super) embedding: Embedding,
    /// The tensor that comes out.
    pub(in crate::engine) output: String,
    /// The last block's attention `[S, heads, 1, T]`, where it computes CLS only.
    pub(in crate::engine) attention: Option<String>,
    pub(super) blocks: Vec<Found>,
}

impl Stack {
    /// What comes out: tokens, and attention where there is one.
    pub(in crate::engine) fn ends(&self) -> impl Iterator<Item = &str> {
        [Some(&self.output), self.attention.as_ref()].into_iter().flatten().map(String::as_str)
    }

    fn nodes(&self) -> impl Iterator<Item = &str> {
        let blocks = self.blocks.iter().flat_map(|block| &block.nodes);
        self.embedding.nodes.iter().chain(blocks).map(String::as_str)
    }
}

/// How patches become tokens.
#[derive(Debug)]
pub(super) struct Embedding {
    /// Channels, height and width of a slice.
    pub(super) slice: [usize; 3],
    /// Side of a patch.
    pub(super) patch: usize,
    /// Tokens before those of the patches.
    pub(super) before: usize,
    /// `[d, channels, patch, patch]`.
    pub(super) weight: String,
    /// `[d]`, for the patches' tokens.
    pub(super) bias: String,
    /// `[1, T, d]`, for all tokens.
    pub(super) table: String,
    /// Outputs of its nodes.
    nodes: Vec<String>,
}

/// A block by the names of its constants.
#[derive(Debug)]
pub(super) struct Found {
    input: String,
    output: String,
    attention: String,
    /// Tokens that go in.
    pub(super) tokens: usize,
    pub(super) heads: usize,
    /// Features of a head.
    pub(super) width: usize,
    /// Features inside the feed-forward part.
    pub(super) hidden: usize,
    /// Whether CLS alone comes out.
    pub(super) cls_only: bool,
    pub(super) norm1: Norm,
    pub(super) q: Layer,
    pub(super) k: Layer,
    pub(super) v: Layer,
    pub(super) o: Layer,
    pub(super) norm2: Norm,
    pub(super) mlp: Mlp,
    /// Cosines and sines `[width, T]` that queries and keys are rotated by.
    pub(super) rope: Option<[String; 2]>,
    /// Outputs of its nodes.
    nodes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: String,
    pub(super) bias: String,
    pub(super) epsilon: f32,
}

/// A linear layer; its weight is `[in, out]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Layer {
    pub(super) weight: String,
    pub(super) bias: String,
}

#[derive(Debug)]
pub(super) enum Mlp {
    Gelu { fc1: Layer, fc2: Layer },
    GeluTanh { fc1: Layer, fc2: Layer },
    SwiGlu { gate: Layer, up: Layer, down: Layer },
}

/// The stacks of a graph.
pub(super) fn stacks(graph: &GraphProto) -> Vec<Stack> {
    let reader = Reader::new(graph);
    let found: Vec<Found> = graph.node.iter().filter_map(|node| reader.block(node)).collect();
    let inputs: HashSet<String> = found.iter().map(|block| block.input.clone()).collect();
    let mut found: HashMap<String, Found> =
        found.into_iter().map(|block| (block.output.clone(), block)).collect();
    let mut ends: Vec<String> = found.keys().filter(|output| !inputs.contains(*output)).cloned().collect();
    ends.sort();
    let stack = |output: String| {
        let (mut input, mut blocks) = (output.clone(), Vec::new());
        while let Some(block) = found.remove(&input) {
            input.clone_from(&block.input);
            blocks.push(block);
        }
        blocks.reverse();
        let attention = blocks.last().filter(|block| block.cls_only).map(|block| block.attention.clone());
        let (slices, embedding) = reader.embedding(&input, &blocks[0])?;
        Some(Stack { input: slices.into(), embedding, output, attention, blocks })
    };
    // Only what stands last may compute CLS alone, and nothing else may look inside.
    let sound = |stack: &Stack| {
        let (_, before) = stack.blocks.split_last().expect("a stack ends with a block");
        before.iter().all(|block| !block.cls_only) && reader.is_closed(stack)
    };
    ends.into_iter().filter_map(stack).filter(sound).collect()
}

/// Removes the nodes of the stacks, and makes inputs of what they give.
pub(super) fn remove<'s>(graph: &mut GraphProto, stacks: impl Iterator<Item = &'s Stack>) {
    let mut gone = HashSet::new();
    for stack in stacks {
        gone.extend(stack.nodes());
        // Of a shape that whoever computes them says.
        let inputs = stack.ends().map(|name| ValueInfoProto { name: name.into(), r#type: None });
        graph.input.extend(inputs);
    }
    graph.node.retain(|node| !node.output.iter().any(|output| gone.contains(output.as_str())));
}

/// Removes the constants that no node reads.
pub(super) fn remove_unread(graph: &mut GraphProto) {
    let read: HashSet<&str> = graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
    graph.initializer.retain(|tensor| read.contains(tensor.name.as_str()));
}

impl Found {
    /// Its linear layers.
    pub(super) fn layers(&self) -> Vec<&Layer> {
        let mlp = match &self.mlp {
            Mlp::Gelu { fc1, fc2 } | Mlp::GeluTanh { fc1, fc2 } => vec![fc1, fc2],
            Mlp::SwiGlu { gate, up, down } => vec![gate, up, down],
        };
        [&self.q, &self.k, &self.v, &self.o].into_iter().chain(mlp).collect()
    }
}

/// Patterns of nodes.
impl<'a> Reader<'a> {
    /// Whether nothing but its end is looked at from outside.
    fn is_closed(&self, stack: &Stack) -> bool {
        let inside: HashSet<&str> = stack.nodes().collect();
        let closed = |name: &&str| {
            stack.ends().any(|end| end == *name)
                || self
                    .readers
                    .get(name)
                    .is_none_or(|readers| readers.iter().all(|reader| inside.contains(reader)))
        };
        inside.iter().all(closed)
    }

    /// The block that ends with `node`.
    fn block(&self, node: &'a NodeProto) -> Option<Found> {
        let mut trail = Trail::default();
        let output = node.output.first()?;
        let [attended, fed] = self.op(&mut trail, output, "Add")?;
        let (normed, mlp, hidden) = self.mlp(&mut trail, fed)?;
        let (after, norm2) = self.norm(&mut trail, normed)?;
        let [residual, projected] = self.op(&mut trail, attended, "Add")?;
        let (mixed, o) = self.linear(&mut trail, projected)?;
        let (by_token, _) = self.reshape(&mut trail, mixed)?;
        let by_head = self.transpose(&mut trail, by_token, &[0, 2, 1, 3])?;
        let [attention, v] = self.op(&mut trail, by_head, "MatMul")?;
        let [scores] = self.op(&mut trail, attention, "Softmax")?;
        let [q, k] = self.op(&mut trail, scores, "MatMul")?;
        let (q, queries_rope) = self.rotation(&mut trail, q, 3)?;
        let (k, rope) = self.rotation(&mut trail, k, 2)?;
        let (queried, q, [rows, heads, width]) = self.by_head(&mut trail, q, &[0, 2, 1, 3])?;
        let (keyed, k, [tokens, ..]) = self.by_head(&mut trail, k, &[0, 2, 3, 1])?;
        let (valued, v, v_shape) = self.by_head(&mut trail, v, &[0, 2, 1, 3])?;
        let (input, norm1) = self.norm(&mut trail, keyed)?;

        let cls_only = rows == 1;
        let (residual, queried) = if cls_only {
            (self.first_row(&mut trail, residual)?, self.first_row(&mut trail, queried)?)
        } else {
            (residual, queried)
        };
        let wired = after == attended && valued == keyed && queried == keyed && residual == input;

        let d = heads.checked_mul(width).filter(|d| *d > 0 && hidden > 0 && tokens > 0)?;
        let sized = |layer: &Layer, shape: [usize; 2]| {
            self.shape(&layer.weight) == shape && self.shape(&layer.bias) == [shape[1]]
        };
        let mlp_fits = match &mlp {
            Mlp::Gelu { fc1, fc2 } | Mlp::GeluTanh { fc1, fc2 } => {
                sized(fc1, [d, hidden]) && sized(fc2, [hidden, d])
            }
            Mlp::SwiGlu { gate, up, down } => {
                sized(gate, [d, hidden]) && sized(up, [d, hidden]) && sized(down, [hidden, d])
            }
        };
        let fits = mlp_fits
            && self.axis(attention) == Some(3)
            && v_shape == [tokens, heads, width]
            && (cls_only || rows == tokens)
            && [&q, &k, &v, &o].iter().all(|layer| sized(layer, [d, d]))
            && [&norm1, &norm2].iter().all(|n| self.shape(&n.weight) == [d] && self.shape(&n.bias) == [d]);
        let turned = match (&rope, &queries_rope) {
            (None, None) => true,
            // CLS is not rotated.
            (Some(keys), None) => cls_only && keys.iter().all(|table| self.shape(table) == [width, tokens]),
            (Some(keys), Some(queries)) => {
                keys.iter().zip(queries).all(|(k, q)| self.is_transposed(k, q, [width, tokens]))
            }
            (None, Some(_)) => false,
        };
        (wired && fits && turned).then(|| Found {
            input: input.into(),
            output: output.clone(),
            attention: attention.into(),
            tokens,
            heads,
            width,
            hidden,
            cls_only,
            norm1,
            q,
            k,
            v,
            o,
            norm2,
            mlp,
            rope,
            nodes: trail.0,
        })
    }

    /// Slices, and how they become the tokens `name` of `block`.
    fn embedding(&self, name: &str, block: &Found) -> Option<(&'a str, Embedding)> {
        let mut trail = Trail::default();
        let name = self.nodes.get_key_value(name)?.0;
        let [tokens, table] = self.op(&mut trail, name, "Add")?;
        let (tokens, pads) = match self.op(&mut trail, tokens, "Pad") {
            Some([tokens, pads]) => (tokens, self.constants.get(pads)?.integers()?),
            None => (tokens, vec![0; 6]),
        };
        let columns = self.transpose(&mut trail, tokens, &[0, 2, 1])?;
        let (convolved, shape) = self.reshape(&mut trail, columns)?;
        let [slices, weight, bias] = self.op(&mut trail, convolved, "Conv")?;
        let before = usize::try_from(*pads.get(1)?).ok()?;
        let [d, channels, patch, across] = self.shape(weight)[..] else { return None };
        let strides = self.attribute(convolved, "strides")?;
        let plain = ["kernel_shape", "strides"];
        let apart = strides.ints == [patch as i64; 2] && across == patch;
        let only = self.nodes[convolved].attribute.iter().all(|a| plain.contains(&a.name.as_str()));
        let slice = self.inputs.get(slices)?.filter(|slice| slice[0] == channels && patch > 0)?;
        let patches = (slice[1] / patch).checked_mul(slice[2] / patch)?;
        let fits = d == block.heads * block.width
            && self.shape(bias) == [d]
            && self.shape(table) == [1, block.tokens, d]
            && before.checked_add(patches) == Some(block.tokens)
            && slice[1..].iter().all(|side| side % patch == 0)
            && pads == [0, before as i64, 0, 0, 0, 0]
            && shape == [0, d as i64, patches as i64];
        (apart && only && fits).then(|| {
            let [weight, bias, table] = [weight, bias, table].map(str::to_owned);
            (slices, Embedding { slice, patch, before, weight, bias, table, nodes: trail.0 })
        })
    }

    /// Input, layers and width of a feed-forward part.
    fn mlp(&self, trail: &mut Trail, name: &'a str) -> Option<(&'a str, Mlp, usize)> {
        let (hidden, last) = self.linear(trail, name)?;
        let width = *self.shape(&last.weight).first()?;
        let [first, second] = self.op(trail, hidden, "Mul")?;
        if self.is_scalar(second, 0.5) {
            let [x, sum] = self.op(trail, first, "Mul")?;
            let [function, one] = self.op(trail, sum, "Add")?;
            let (input, fc1) = self.linear(trail, x)?;
            if !self.is_scalar(one, 1.0) {
                return None;
            }
            if let Some([scaled]) = self.op(trail, function, "Erf") {
                let [again, root] = self.op(trail, scaled, "Div")?;
                let exact = again == x && self.is_scalar(root, std::f32::consts::SQRT_2);
                return exact.then_some((input, Mlp::Gelu { fc1, fc2: last }, width));
            }
            let [argument] = self.op(trail, function, "Tanh")?;
            let [again, factor] = self.op(trail, argument, "Mul")?;
            let [square, root] = self.op(trail, factor, "Add")?;
            let [square, cubic] = self.op(trail, square, "Mul")?;
            let squared = self.op(trail, square, "Mul")?;
            let exact = again == x
                && squared == [x, x]
                && self.is_scalar(root, GELU_ROOT)
                && self.is_scalar(cubic, GELU_ROOT * 0.044_715);
            return exact.then_some((input, Mlp::GeluTanh { fc1, fc2: last }, width));
        }
        let [x, sigmoid] = self.op(trail, first, "Mul")?;
        let [again] = self.op(trail, sigmoid, "Sigmoid")?;
        let (input, gate) = self.linear(trail, x)?;
        let (input_too, up) = self.linear(trail, second)?;
        let exact = again == x && input == input_too;
        exact.then_some((input, Mlp::SwiGlu { gate, up, down: last }, width))
    }

    /// Input, layer, and rows, heads and width of what is `[S, rows, heads width]` and is then turned by `order`.
    fn by_head(
        &self,
        trail: &mut Trail,
        name: &'a str,
        order: &[i64],
    ) -> Option<(&'a str, Layer, [usize; 3])> {
        let turned = self.transpose(trail, name, order)?;
        let (product, shape) = self.reshape(trail, turned)?;
        let (input, layer) = self.linear(trail, product)?;
        match shape[..] {
            [0, rows, heads, width] => {
                Some((input, layer, [rows, heads, width].map(|n| usize::try_from(n).unwrap_or(0))))
            }
            _ => None,
        }
    }

    /// What is rotated, and cosines and sines; or `name` itself.
    fn rotation(
        &self,
        trail: &mut Trail,
        name: &'a str,
        axis: i64,
    ) -> Option<(&'a str, Option<[String; 2]>)> {
        let Some([straight, crossed]) = self.op(trail, name, "Add") else { return Some((name, None)) };
        let [x, cos] = self.op(trail, straight, "Mul")?;
        let [exchanged, sin] = self.op(trail, crossed, "Mul")?;
        let halves = self.op::<2>(trail, exchanged, "Concat")?;
        let width = self.shape(cos).get(usize::from(axis == 3)).copied()? as i64;
        for (half, bounds) in halves.into_iter().zip([[width / 2, width], [0, width / 2]]) {
            if self.slice(trail, half)? != (x, bounds, axis) {
                return None;
            }
        }
        let exact = self.axis(exchanged) == Some(axis);
        exact.then(|| (x, Some([cos.to_owned(), sin.to_owned()])))
    }

    /// Input and constants of `x weight + bias`.
    fn linear(&self, trail: &mut Trail, name: &'a str) -> Option<(&'a str, Layer)> {
        let [product, bias] = self.op(trail, name, "Add")?;
        let [x, weight] = self.op(trail, product, "MatMul")?;
        let layer = Layer { weight: weight.into(), bias: bias.into() };
        (self.shape(weight).len() == 2 && self.shape(bias).len() == 1).then_some((x, layer))
    }

    fn norm(&self, trail: &mut Trail, name: &'a str) -> Option<(&'a str, Norm)> {
        let [x, weight, bias] = self.op(trail, name, "LayerNormalization")?;
        let epsilon = self.attribute(name, "epsilon")?.f;
        (self.axis(name) == Some(-1)).then(|| (x, Norm { weight: weight.into(), bias: bias.into(), epsilon }))
    }
}
