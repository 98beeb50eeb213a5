//! Looks at nodes, constants and inputs by the names of tensors.

use std::collections::HashMap;

use crate::engine::onnx::{AttributeProto, DataType, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// What reads the graph.
pub(super) struct Reader<'a> {
    /// By what they give.
    pub(super) nodes: HashMap<&'a str, &'a NodeProto>,
    pub(super) constants: HashMap<&'a str, &'a TensorProto>,
    /// What the nodes give that read a tensor; of an output of the graph an empty name.
    pub(super) readers: HashMap<&'a str, Vec<&'a str>>,
    /// Channels, height and width of the inputs that have them.
    pub(super) inputs: HashMap<&'a str, Option<[usize; 3]>>,
}

/// Collects what the nodes of a block give.
#[derive(Default)]
pub(super) struct Trail(pub(super) Vec<String>);

impl<'a> Reader<'a> {
    pub(super) fn new(graph: &'a GraphProto) -> Self {
        let mut readers: HashMap<&str, Vec<&str>> = HashMap::new();
        for node in &graph.node {
            for input in &node.input {
                readers.entry(input).or_default().extend(node.output.first().map(String::as_str));
            }
        }
        for output in &graph.output {
            readers.entry(&output.name).or_default().push("");
        }
        let nodes =
            graph.node.iter().filter_map(|node| Some((node.output.first()?.as_str(), node))).collect();
        let constants = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let inputs = graph.input.iter().map(|input| (input.name.as_str(), slice_shape(input))).collect();
        Self { nodes, constants, readers, inputs }
    }

    /// Input and new shape.
    pub(super) fn reshape(&self, trail: &mut Trail, name: &'a str) -> Option<(&'a str, Vec<i64>)> {
        let [x, shape] = self.op(trail, name, "Reshape")?;
        Some((x, self.constants.get(shape)?.integers()?))
    }

    pub(super) fn transpose(&self, trail: &mut Trail, name: &'a str, order: &[i64]) -> Option<&'a str> {
        let [x] = self.op(trail, name, "Transpose")?;
        (self.attribute(name, "perm")?.ints == order).then_some(x)
    }

    /// Input, start and end, and axis.
    pub(super) fn slice(&self, trail: &mut Trail, name: &'a str) -> Option<(&'a str, [i64; 2], i64)> {
        let [x, bounds @ ..] = self.op::<4>(trail, name, "Slice")?;
        let one = |name| self.constants.get(name)?.integers().filter(|v| v.len() == 1).map(|v| v[0]);
        let [start, end, axis] = bounds;
        Some((x, [one(start)?, one(end)?], one(axis)?))
    }

    /// What `name` is the first row of.
    pub(super) fn first_row(&self, trail: &mut Trail, name: &'a str) -> Option<&'a str> {
        let (x, bounds, axis) = self.slice(trail, name)?;
        (bounds == [0, 1] && axis == 1).then_some(x)
    }

    /// Inputs of the node `kind` that gives `name`.
    pub(super) fn op<const N: usize>(
        &self,
        trail: &mut Trail,
        name: &'a str,
        kind: &str,
    ) -> Option<[&'a str; N]> {
        let node = self.nodes.get(name).filter(|node| node.op_type == kind && node.domain.is_empty())?;
        let inputs: Vec<&str> = node.input.iter().map(String::as_str).collect();
        let inputs = inputs.try_into().ok()?;
        trail.0.push(name.to_owned());
        Some(inputs)
    }

    pub(super) fn attribute(&self, name: &str, attribute: &str) -> Option<&'a AttributeProto> {
        self.nodes.get(name)?.attribute(attribute)
    }

    pub(super) fn axis(&self, name: &str) -> Option<i64> {
        self.attribute(name, "axis").map(|attribute| attribute.i)
    }

    /// Of a constant of single precision; nothing of anything else.
    pub(super) fn shape(&self, name: &str) -> Vec<usize> {
        self.constants.get(name).and_then(|tensor| tensor.shape_of(DataType::Float)).unwrap_or_default()
    }

    pub(super) fn is_scalar(&self, name: &str, value: f32) -> bool {
        self.constants.get(name).is_some_and(|t| t.dims.is_empty() && t.raw_data == value.to_le_bytes())
    }

    /// Whether the constant `a` of that shape is `b` transposed.
    pub(super) fn is_transposed(&self, a: &str, b: &str, [rows, columns]: [usize; 2]) -> bool {
        if self.shape(a) != [rows, columns] || self.shape(b) != [columns, rows] {
            return false;
        }
        let [a, b] = [a, b].map(|name| self.constants[name].raw_data.as_chunks::<4>().0);
        (0..rows).all(|i| (0..columns).all(|j| a[i * columns + j] == b[j * rows + i]))
    }
}

/// Channels, height and width of `[S, 3, H, W]`.
fn slice_shape(input: &ValueInfoProto) -> Option<[usize; 3]> {
    let shape = input.shape()?;
    let (_, sides) = shape.split_first()?;
    sides.iter().copied().collect::<Option<Vec<_>>>()?.try_into().ok()
}
