//! A thin layer over ONNX's protobuf messages: nodes named after what they compute, outputs named after their node.

use std::collections::HashMap;

use crate::backbone::Tensor;
use crate::engine::onnx::{self, AttributeType, DataType};

const FLOAT: i32 = DataType::Float as i32;
const INT64: i32 = DataType::Int64 as i32;

/// A graph in the making.
#[derive(Default)]
pub(super) struct Builder {
    /// What the names of nodes and constants begin with, as they are written from now on.
    scope: String,
    /// Index of the newest constant of a name, its scope left out.
    newest: HashMap<String, usize>,
    nodes: Vec<onnx::NodeProto>,
    initializers: Vec<onnx::TensorProto>,
    inputs: Vec<onnx::ValueInfoProto>,
    outputs: Vec<onnx::ValueInfoProto>,
    properties: Vec<onnx::StringStringEntryProto>,
}

impl Builder {
    /// A constant; returns its name.
    pub(super) fn constant(&mut self, name: &str, tensor: &Tensor) -> String {
        let raw_data = tensor.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.initializer(name, FLOAT, tensor.shape.iter().map(|&d| d as i64).collect(), raw_data)
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.initializer(name, INT64, vec![values.len() as i64], raw_data)
    }

    /// Begins a part whose nodes and constants have names of their own: `scope/name`. A constant that equals its namesake in an
    /// earlier part is that one, so that what no factors touch is held once.
    pub(super) fn scope(&mut self, scope: &str) {
        self.scope = if scope.is_empty() { String::new() } else { format!("{scope}/") };
    }

    fn initializer(&mut self, name: &str, data_type: i32, dims: Vec<i64>, raw_data: Vec<u8>) -> String {
        if !self.scope.is_empty() {
            if let Some(namesake) = self.newest.get(name).map(|&index| &self.initializers[index])
                && (namesake.data_type, &namesake.dims, &namesake.raw_data) == (data_type, &dims, &raw_data)
            {
                return namesake.name.clone();
            }
            self.newest.insert(name.to_owned(), self.initializers.len());
        }
        let name = format!("{}{name}", self.scope);
        self.initializers.push(onnx::TensorProto {
            name: name.clone(),
            data_type,
            dims,
            raw_data,
            ..Default::default()
        });
        name
    }

    /// A node without attributes; returns the name of its one output.
    pub(super) fn node(&mut self, op: &str, name: &str, inputs: &[&str]) -> String {
        self.node_with(op, name, inputs, vec![])
    }

    fn node_with(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        attribute: Vec<onnx::AttributeProto>,
    ) -> String {
        let name = format!("{}{name}", self.scope);
        self.nodes.push(onnx::NodeProto {
            op_type: op.into(),
            name: name.clone(),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![name.clone()],
            attribute,
            ..Default::default()
        });
        name
    }

    pub(super) fn softmax(&mut self, name: &str, x: &str, axis: i64) -> String {
        self.node_with("Softmax", name, &[x], vec![integer("axis", axis)])
    }

    pub(super) fn transpose(&mut self, name: &str, x: &str, order: &[i64]) -> String {
        self.node_with("Transpose", name, &[x], vec![integers("perm", order)])
    }

    /// `shape` may hold one -1 (what is left) and 0 (as in `x`).
    pub(super) fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.integers(&format!("{name}.shape"), shape);
        self.node("Reshape", name, &[x, &shape])
    }

    /// Entries `start..end` of `axis`.
    pub(super) fn slice(&mut self, name: &str, x: &str, axis: i64, start: usize, end: usize) -> String {
        let mut part = |what: &str, value: i64| self.integers(&format!("{name}.{what}"), &[value]);
        let (start, end, axis) = (part("start", start as i64), part("end", end as i64), part("axis", axis));
        self.node("Slice", name, &[x, &start, &end, &axis])
    }

    /// `x` with zeros around it: `pads` holds how many before it along each axis, then how many after it.
    pub(super) fn pad(&mut self, name: &str, x: &str, pads: &[i64]) -> String {
        let pads = self.integers(&format!("{name}.pads"), pads);
        self.node("Pad", name, &[x, &pads])
    }

    /// Over `axis`, which goes.
    pub(super) fn mean(&mut self, name: &str, x: &str, axis: i64) -> String {
        self.node_with("ReduceMean", name, &[x], vec![integers("axes", &[axis]), integer("keepdims", 0)])
    }

    /// Over `axis`, which stays with length 1.
    pub(super) fn mean_kept(&mut self, name: &str, x: &str, axis: i64) -> String {
        self.node_with("ReduceMean", name, &[x], vec![integers("axes", &[axis]), integer("keepdims", 1)])
    }

    /// Over the last axis, affine.
    pub(super) fn layer_norm(
        &mut self,
        name: &str,
        x: &str,
        weight: &Tensor,
        bias: &Tensor,
        epsilon: f32,
    ) -> String {
        let weight = self.constant(&format!("{name}.weight"), weight);
        let bias = self.constant(&format!("{name}.bias"), bias);
        self.layer_norm_of(name, x, [&weight, &bias], epsilon)
    }

    /// As [`Self::layer_norm`], with weight and bias by their constants' names.
    pub(super) fn layer_norm_of(
        &mut self,
        name: &str,
        x: &str,
        [weight, bias]: [&str; 2],
        epsilon: f32,
    ) -> String {
        let attributes = vec![integer("axis", -1), float("epsilon", epsilon)];
        self.node_with("LayerNormalization", name, &[x, weight, bias], attributes)
    }

    /// `x weightᵀ + bias` with `weight` `[out, in]`.
    pub(super) fn linear(&mut self, name: &str, x: &str, weight: &Tensor, bias: &Tensor) -> String {
        let weight = self.constant(&format!("{name}.weight"), &weight.transposed());
        let product = self.node("MatMul", &format!("{name}.product"), &[x, &weight]);
        let bias = self.constant(&format!("{name}.bias"), bias);
        self.node("Add", name, &[&product, &bias])
    }

    /// Convolution with stride = kernel size, no padding.
    pub(super) fn patch_convolution(
        &mut self,
        name: &str,
        x: &str,
        weight: &Tensor,
        bias: &Tensor,
    ) -> String {
        let p = weight.shape[2] as i64;
        let attributes = vec![integers("kernel_shape", &[p, p]), integers("strides", &[p, p])];
        self.convolution_with(name, x, weight, bias, attributes)
    }

    /// Convolution of an odd kernel, padded by half of it with zeros; depthwise where the weight has one input channel.
    pub(super) fn convolution(
        &mut self,
        name: &str,
        x: &str,
        weight: &Tensor,
        bias: &Tensor,
        stride: usize,
    ) -> String {
        let (k, stride) = (weight.shape[2] as i64, stride as i64);
        let groups = if weight.shape[1] == 1 { weight.shape[0] as i64 } else { 1 };
        let attributes = vec![
            integers("kernel_shape", &[k, k]),
            integers("strides", &[stride, stride]),
            integers("pads", &[k / 2; 4]),
            integer("group", groups),
        ];
        self.convolution_with(name, x, weight, bias, attributes)
    }

    fn convolution_with(
        &mut self,
        name: &str,
        x: &str,
        weight: &Tensor,
        bias: &Tensor,
        attributes: Vec<onnx::AttributeProto>,
    ) -> String {
        let weight = self.constant(&format!("{name}.weight"), weight);
        let bias = self.constant(&format!("{name}.bias"), bias);
        self.node_with("Conv", name, &[x, &weight, &bias], attributes)
    }

    pub(super) fn concat(&mut self, name: &str, parts: &[&str], axis: i64) -> String {
        self.node_with("Concat", name, parts, vec![integer("axis", axis)])
    }

    /// A scalar constant.
    pub(super) fn scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, &Tensor { shape: vec![], data: vec![value] })
    }

    /// Gives the output of the newest node of that name another name, whatever the scope.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            let names = node.input.iter_mut().chain(&mut node.output).chain(std::iter::once(&mut node.name));
            for name in names.filter(|n| *n == from) {
                to.clone_into(name);
            }
        }
    }

    /// A graph input; `None` is the number of slices, of which `symbol` is the name.
    pub(super) fn input(&mut self, name: &str, shape: &[Option<usize>], symbol: &str) {
        self.inputs.push(value(name, shape, symbol));
    }

    /// A graph output; as [`Self::input`].
    pub(super) fn output(&mut self, name: &str, shape: &[Option<usize>], symbol: &str) {
        self.outputs.push(value(name, shape, symbol));
    }

    /// A metadata property.
    pub(super) fn property(&mut self, key: &str, value: &str) {
        self.properties.push(onnx::StringStringEntryProto { key: key.into(), value: value.into() });
    }

    /// The whole.
    pub(super) fn finish(self, name: &str) -> onnx::ModelProto {
        let graph = onnx::GraphProto {
            name: name.into(),
            node: self.nodes,
            initializer: self.initializers,
            input: self.inputs,
            output: self.outputs,
        };
        onnx::ModelProto {
            ir_version: 8,
            producer_name: "scanside".into(),
            opset_import: vec![onnx::OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(graph),
            metadata_props: self.properties,
        }
    }
}

fn integer(name: &str, i: i64) -> onnx::AttributeProto {
    onnx::AttributeProto { name: name.into(), i, r#type: AttributeType::Int as i32, ..Default::default() }
}

fn integers(name: &str, ints: &[i64]) -> onnx::AttributeProto {
    onnx::AttributeProto {
        name: name.into(),
        ints: ints.into(),
        r#type: AttributeType::Ints as i32,
        ..Default::default()
    }
}

fn float(name: &str, f: f32) -> onnx::AttributeProto {
    onnx::AttributeProto { name: name.into(), f, r#type: AttributeType::Float as i32, ..Default::default() }
}

fn value(name: &str, shape: &[Option<usize>], symbol: &str) -> onnx::ValueInfoProto {
    let dim = |d: &Option<usize>| onnx::Dimension {
        dim_value: d.map(|n| n as i64),
        dim_param: d.is_none().then(|| symbol.into()),
    };
    let shape = onnx::TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = onnx::TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
    let r#type = onnx::TypeProto { tensor_type: Some(tensor) };
    onnx::ValueInfoProto { name: name.into(), r#type: Some(r#type) }
}
