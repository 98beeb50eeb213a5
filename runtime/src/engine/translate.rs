//! Task graphs, and parts of them, as models of tract.
//!
//! A part is what lies between some tensors, whose shapes are given, and others; only that is translated. Task graphs are of this product's
//! own making ([`crate::graph`]), so the operators here are those that they have. tract's own reader of ONNX knows all operators, and
//! brings so much into the program that it is a third larger (docs/decisions/0010).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tract_core::internal::{
    AxisOp, Datum, DatumExt, DimLike, OutletId, ShapeFact, SpecialOps, SymbolScope, TDim, TVec, Tensor,
    TractErrorContext, TractResult, TypedModel, TypedOp, bail, ensure, format_err, tensor0, tvec,
};
use tract_core::ops::array::{Pad, PadMode, Slice, TypedConcat};
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::change_axes::{perm_to_ops, to_axis_ops_with_tf_rules, wire_rank_broadcast};
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math;
use tract_core::ops::nn::{self, DataFormat, Reduce, Reducer, Softmax};

use super::onnx::{AttributeProto, DataType, ModelProto, NodeProto, TensorProto, ValueInfoProto};

/// Version of ONNX's operators that task graphs are written in.
const OPSET: i64 = 17;

/// A task graph whose constants are tract's already, so that parts of it share them.
pub(super) struct Graph {
    nodes: Vec<NodeProto>,
    constants: HashMap<String, Arc<Tensor>>,
    /// Names, and the lengths of axes that are not symbolic.
    pub(super) inputs: Vec<(String, Vec<Option<usize>>)>,
    pub(super) outputs: Vec<String>,
    symbols: SymbolScope,
}

impl Graph {
    /// Takes over a model; each constant is dropped there when it has been copied.
    pub(super) fn new(model: ModelProto) -> TractResult<Self> {
        let opset =
            model.opset_import.iter().find(|opset| opset.domain.is_empty()).map(|opset| opset.version);
        ensure!(opset == Some(OPSET), "its operators are not those of ONNX's version {OPSET}");
        let graph = model.graph.context("no graph")?;
        let constants = graph.initializer.into_iter();
        let constants = constants.map(|mut proto| {
            let name = std::mem::take(&mut proto.name);
            let tensor = constant(&proto).with_context(|| format!("constant {name}"))?;
            Ok((name, Arc::new(tensor)))
        });
        let constants = constants.collect::<TractResult<_>>()?;
        let input = |input: ValueInfoProto| {
            let shape = input.shape().unwrap_or_default();
            (input.name, shape)
        };
        Ok(Self {
            nodes: graph.node,
            constants,
            inputs: graph.input.into_iter().map(input).collect(),
            outputs: graph.output.into_iter().map(|output| output.name).collect(),
            symbols: SymbolScope::default(),
        })
    }

    /// A length that is known only when the part is run.
    pub(super) fn symbol(&self, name: &str) -> TDim {
        self.symbols.sym(name).into()
    }

    /// What gives `outputs` when it is given `inputs`, all in single precision.
    pub(super) fn part(&self, inputs: &[(&str, ShapeFact)], outputs: &[&str]) -> TractResult<TypedModel> {
        let mut model = TypedModel { symbols: self.symbols.clone(), ..TypedModel::default() };
        let mut wires = HashMap::new();
        for (name, shape) in inputs {
            wires.insert(*name, model.add_source(*name, f32::fact(shape.clone()))?);
        }

        let mut wanted: HashSet<&str> =
            outputs.iter().copied().filter(|name| !wires.contains_key(name)).collect();
        let mut nodes = Vec::new();
        for node in self.nodes.iter().rev() {
            if node.output.iter().any(|output| wanted.remove(output.as_str())) {
                let inputs = node.input.iter().map(String::as_str);
                wanted.extend(inputs.filter(|name| !wires.contains_key(name)));
                nodes.push(node);
            }
        }
        for node in nodes.into_iter().rev() {
            let wire = self.wire(&mut model, &mut wires, node);
            let wire = wire.with_context(|| format!("node {}, {}", node.name, node.op_type))?;
            wires.insert(&node.output[0], wire);
        }

        let outputs =
            outputs.iter().map(|name| wires.get(name).copied().with_context(|| format!("no tensor {name}")));
        model.select_output_outlets(&outputs.collect::<TractResult<Vec<_>>>()?)?;
        Ok(model)
    }

    /// Adds a node to the model, and constants that it reads.
    fn wire<'a>(
        &'a self,
        model: &mut TypedModel,
        wires: &mut HashMap<&'a str, OutletId>,
        node: &'a NodeProto,
    ) -> TractResult<OutletId> {
        ensure!(node.domain.is_empty() && node.output.len() == 1, "no operator of task graphs");
        let mut wiring = Wiring { graph: self, model, wires, node };
        match node.op_type.as_str() {
            "Add" => wiring.binary(math::Add),
            "Sub" => wiring.binary(math::Sub),
            "Mul" => wiring.binary(math::Mul),
            "Div" => wiring.binary(math::Div),
            "Max" => wiring.binary(math::Max),
            "Erf" => wiring.unary(math::erf()),
            "Tanh" => wiring.unary(math::tanh()),
            "Sigmoid" => wiring.unary(nn::sigmoid()),
            "MatMul" => wiring.product(),
            "Softmax" => wiring.softmax(),
            "LayerNormalization" => wiring.layer_norm(),
            "ReduceMean" => wiring.mean(),
            "Conv" => wiring.convolution(),
            "Reshape" => wiring.reshape(),
            "Transpose" => wiring.transpose(),
            "Slice" => wiring.slice(),
            "Pad" => wiring.pad(),
            "Concat" => wiring.concat(),
            _ => bail!("no operator of task graphs"),
        }
    }
}

fn constant(proto: &TensorProto) -> TractResult<Tensor> {
    if let Some((shape, values)) = proto.shape_of(DataType::Float).zip(proto.floats()) {
        Tensor::from_shape(&shape, &values)
    } else if let Some((shape, values)) = proto.shape_of(DataType::Int64).zip(proto.integers()) {
        Tensor::from_shape(&shape, &values)
    } else {
        bail!("neither of single precision nor of 64-bit integers, or not as many as its shape says")
    }
}

/// One node on its way into a model.
struct Wiring<'w, 'a> {
    graph: &'a Graph,
    model: &'w mut TypedModel,
    wires: &'w mut HashMap<&'a str, OutletId>,
    node: &'a NodeProto,
}

impl Wiring<'_, '_> {
    /// The node's inputs as tensors of the model; it must have `N`.
    fn inputs<const N: usize>(&mut self) -> TractResult<[OutletId; N]> {
        let inputs = self.all_inputs()?;
        let found = inputs.len();
        <[OutletId; N]>::try_from(inputs).map_err(|_| format_err!("{found} inputs, not {N}"))
    }

    fn all_inputs(&mut self) -> TractResult<Vec<OutletId>> {
        let mut inputs = Vec::new();
        for name in &self.node.input {
            let wire = if let Some(wire) = self.wires.get(name.as_str()) {
                *wire
            } else {
                let tensor = self.graph.constants.get(name).with_context(|| format!("no tensor {name}"))?;
                let wire = self.model.add_const(name.as_str(), Arc::clone(tensor))?;
                self.wires.insert(name, wire);
                wire
            };
            inputs.push(wire);
        }
        Ok(inputs)
    }

    /// The node's first input; the others say what is to be done with it, as constants.
    fn subject(&mut self) -> TractResult<OutletId> {
        let name = self.node.input.first().context("no input")?;
        self.wires.get(name.as_str()).copied().with_context(|| format!("no tensor {name}"))
    }

    /// The constant integers that are input number `n`.
    fn integers(&self, n: usize) -> TractResult<&[i64]> {
        let name = self.node.input.get(n).with_context(|| format!("no input {n}"))?;
        let tensor = self.graph.constants.get(name).with_context(|| format!("no constant {name}"))?;
        tensor.try_as_plain_ram()?.as_slice::<i64>()
    }

    fn shape(&self, x: OutletId) -> TractResult<TVec<TDim>> {
        Ok(self.model.outlet_fact(x)?.shape.to_tvec())
    }

    fn attribute(&self, name: &str) -> TractResult<&AttributeProto> {
        self.node.attribute(name).with_context(|| format!("no {name}"))
    }

    /// The lengths in an attribute.
    fn lengths(&self, name: &str) -> TractResult<TVec<usize>> {
        let lengths = self.attribute(name)?.ints.iter().map(|&n| usize::try_from(n));
        lengths.collect::<Result<_, _>>().with_context(|| format!("{name} is negative"))
    }

    /// An axis of `x`, counted from the end where it is negative.
    fn axis(&self, x: OutletId, axis: i64) -> TractResult<usize> {
        let rank = self.model.outlet_fact(x)?.rank();
        let counted = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(counted).ok().filter(|&n| n < rank).with_context(|| format!("no axis {axis}"))
    }

    /// Adds a step of the node under a name of its own.
    fn step(
        &mut self,
        name: &str,
        op: impl Into<Box<dyn TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        let outputs = self.model.wire_node(format!("{}.{name}", self.node.name), op, inputs)?;
        Ok(outputs[0])
    }

    /// Adds steps one after another.
    fn steps(&mut self, mut x: OutletId, ops: impl IntoIterator<Item = AxisOp>) -> TractResult<OutletId> {
        for (n, op) in ops.into_iter().enumerate() {
            x = self.step(&n.to_string(), op, &[x])?;
        }
        Ok(x)
    }

    fn scalar(&mut self, name: &str, value: f32, rank: usize) -> TractResult<OutletId> {
        let value = tensor0(value).broadcast_into_rank(rank)?;
        self.model.add_const(format!("{}.{name}", self.node.name), value)
    }

    fn unary(&mut self, op: impl Into<Box<dyn TypedOp>>) -> TractResult<OutletId> {
        let inputs = self.inputs::<1>()?;
        self.step("each", op, &inputs)
    }

    fn binary(&mut self, op: impl BinMiniOp) -> TractResult<OutletId> {
        let inputs = self.inputs::<2>()?;
        self.joined("each", op, inputs)
    }

    /// Both inputs, the one of fewer axes along the last ones of the other.
    fn joined(&mut self, name: &str, op: impl BinMiniOp, inputs: [OutletId; 2]) -> TractResult<OutletId> {
        let inputs = wire_rank_broadcast(format!("{}.{name}", self.node.name), self.model, &inputs)?;
        self.step(name, TypedBinOp(Box::new(op), None), &inputs)
    }

    /// Of the last two axes; what is before them is broadcast.
    fn product(&mut self) -> TractResult<OutletId> {
        let inputs = self.inputs::<2>()?;
        let [a, b] = [self.model.outlet_fact(inputs[0])?.rank(), self.model.outlet_fact(inputs[1])?.rank()];
        ensure!(a >= 2 && b >= 2, "not of matrices");
        let before: String = ('a'..='j').take(a.max(b) - 2).collect();
        ensure!(before.len() == a.max(b) - 2, "too many axes");
        let of = |rank: usize| &before[before.len() - (rank - 2)..];
        let axes = format!("{}mk,{}kn->{before}mn", of(a), of(b)).parse()?;
        self.step("product", EinSum { axes, operating_dt: f32::datum_type(), q_params: None }, &inputs)
    }

    fn softmax(&mut self) -> TractResult<OutletId> {
        let inputs = self.inputs::<1>()?;
        let axis = self.axis(inputs[0], self.attribute("axis")?.i)?;
        self.step("softmax", Softmax { axes: tvec![axis], ..Softmax::default() }, &inputs)
    }

    /// Over the last axis.
    fn layer_norm(&mut self) -> TractResult<OutletId> {
        let [x, weight, bias] = self.inputs()?;
        let rank = self.model.outlet_fact(x)?.rank();
        let axis = self.axis(x, self.attribute("axis")?.i)?;
        ensure!(axis + 1 == rank, "not over the last axis");
        let epsilon = self.attribute("epsilon")?.f;
        let mean = self.mean_over("mean", x, axis)?;
        let centred = self.joined("centred", math::Sub, [x, mean])?;
        let squares = self.step("squares", math::square(), &[centred])?;
        let variance = self.mean_over("variance", squares, axis)?;
        let epsilon = self.scalar("epsilon", epsilon, rank)?;
        let variance = self.joined("sum", math::Add, [variance, epsilon])?;
        let inverse = self.step("inverse", math::rsqrt(), &[variance])?;
        let normal = self.joined("normal", math::Mul, [centred, inverse])?;
        let scaled = self.joined("scaled", math::Mul, [normal, weight])?;
        self.joined("shifted", math::Add, [scaled, bias])
    }

    fn mean(&mut self) -> TractResult<OutletId> {
        let [x] = self.inputs()?;
        let &[axis] = self.attribute("axes")?.ints.as_slice() else { bail!("not over one axis") };
        let axis = self.axis(x, axis)?;
        let mean = self.mean_over("mean", x, axis)?;
        if self.attribute("keepdims")?.i == 1 {
            Ok(mean)
        } else {
            self.step("gone", AxisOp::Rm(axis), &[mean])
        }
    }

    /// The mean along an axis, which stays with length 1.
    fn mean_over(&mut self, name: &str, x: OutletId, axis: usize) -> TractResult<OutletId> {
        let shape = self.shape(x)?;
        let count = shape[axis].to_usize().context("a mean over the slices")?;
        let sum = Reduce { axes: tvec![axis], reducer: Reducer::Sum };
        let sum = self.step(&format!("{name}.sum"), sum, &[x])?;
        let count = self.scalar(&format!("{name}.count"), count as f32, shape.len())?;
        self.joined(name, math::Div, [sum, count])
    }

    fn convolution(&mut self) -> TractResult<OutletId> {
        let inputs = self.inputs::<3>()?;
        let weight = self.model.outlet_fact(inputs[1])?.shape.clone();
        let weight = weight.as_concrete().context("a weight of unknown shape")?;
        let &[outputs, channels, ..] = weight else { bail!("a weight that is no kernel") };
        let kernel = self.lengths("kernel_shape")?;
        ensure!(kernel[..] == weight[2..], "a weight of another shape than its kernel");
        let groups = self.node.attribute("group").map_or(Ok(1), |group| usize::try_from(group.i))?;
        let input_channels = channels.checked_mul(groups).filter(|&n| n > 0).context("no such channels")?;
        let strides = self.lengths("strides")?;
        ensure!(strides.len() == kernel.len() && !strides.contains(&0), "strides that lead nowhere");
        let padding = if self.node.attribute("pads").is_some() {
            let pads = self.lengths("pads")?;
            ensure!(pads.len() == 2 * kernel.len(), "pads of other axes");
            let (before, after) = pads.split_at(kernel.len());
            PaddingSpec::Explicit(before.into(), after.into())
        } else {
            PaddingSpec::Valid
        };
        let pool_spec = PoolSpec {
            data_format: DataFormat::NCHW,
            kernel_shape: kernel,
            padding,
            dilations: None,
            strides: Some(strides),
            input_channels,
            output_channels: outputs,
        };
        self.step("convolution", Conv::new(pool_spec, KernelFormat::OIHW, groups, None), &inputs)
    }

    fn reshape(&mut self) -> TractResult<OutletId> {
        let x = self.subject()?;
        let shape: TVec<TDim> = self.integers(1)?.iter().map(|&n| n.into()).collect();
        let ops = to_axis_ops_with_tf_rules(&self.shape(x)?, &shape)?;
        self.steps(x, ops)
    }

    fn transpose(&mut self) -> TractResult<OutletId> {
        let x = self.subject()?;
        let order = self.lengths("perm")?;
        let mut axes = order.to_vec();
        axes.sort_unstable();
        ensure!(axes.into_iter().eq(0..self.model.outlet_fact(x)?.rank()), "an order of other axes");
        self.steps(x, perm_to_ops(&order))
    }

    /// Of one axis.
    fn slice(&mut self) -> TractResult<OutletId> {
        let x = self.subject()?;
        let (&[start], &[end], &[axis]) = (self.integers(1)?, self.integers(2)?, self.integers(3)?) else {
            bail!("not of one axis")
        };
        let axis = self.axis(x, axis)?;
        let [start, end] = [usize::try_from(start)?, usize::try_from(end)?];
        let length = self.shape(x)?[axis].to_usize().context("a part of the slices")?;
        ensure!(start < end && end <= length, "{start} to {end} of {length}");
        self.step("slice", Slice::new(axis, start, end), &[x])
    }

    /// With zeros.
    fn pad(&mut self) -> TractResult<OutletId> {
        let x = self.subject()?;
        let pads = self.integers(1)?.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>()?;
        ensure!(pads.len() == 2 * self.model.outlet_fact(x)?.rank(), "pads of other axes");
        let (before, after) = pads.split_at(pads.len() / 2);
        let pads = before.iter().copied().zip(after.iter().copied()).collect();
        let zero = PadMode::Constant(Arc::new(Tensor::from(0.0_f32)));
        self.step("pad", Pad { pads, mode: zero }, &[x])
    }

    fn concat(&mut self) -> TractResult<OutletId> {
        let inputs = self.all_inputs()?;
        let first = *inputs.first().context("no input")?;
        let axis = self.axis(first, self.attribute("axis")?.i)?;
        self.step("concat", TypedConcat::new(axis), &inputs)
    }
}

#[cfg(test)]
mod tests {
    use tract_core::model::IntoRunnable;

    use super::*;
    use crate::engine::onnx::{GraphProto, OperatorSetIdProto};

    /// `y` of `x` `[S, 4]` and the constants `c` `[4]` and `i`.
    fn model(op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> ModelProto {
        let constant = |name: &str, kind: DataType, dims: &[i64], raw_data: Vec<u8>| TensorProto {
            name: name.into(),
            data_type: kind as i32,
            dims: dims.into(),
            raw_data,
            ..Default::default()
        };
        let node = NodeProto {
            op_type: op.into(),
            name: "y".into(),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec!["y".into()],
            attribute,
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![node],
            initializer: vec![
                constant("c", DataType::Float, &[4], bytemuck::cast_slice(&[1.0_f32, 2.0, 3.0, 4.0]).into()),
                constant("i", DataType::Int64, &[2], bytemuck::cast_slice(&[2_i64, 2]).into()),
            ],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { domain: String::new(), version: OPSET };
        ModelProto { graph: Some(graph), opset_import: vec![opset], ..Default::default() }
    }

    fn integers(name: &str, ints: &[i64]) -> AttributeProto {
        AttributeProto { name: name.into(), ints: ints.into(), ..Default::default() }
    }

    fn integer(name: &str, i: i64) -> AttributeProto {
        AttributeProto { name: name.into(), i, ..Default::default() }
    }

    fn run(model: ModelProto) -> TractResult<Vec<f32>> {
        let part = Graph::new(model)?.part(&[("x", [2_usize, 4].as_slice().into())], &["y"])?;
        let x = Tensor::from_shape(&[2, 4], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])?;
        let y = part.into_runnable()?.run(tvec![x.into()])?;
        Ok(y[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }

    #[test]
    fn a_constant_of_fewer_axes_lies_along_the_last() {
        let sum = run(model("Add", &["x", "c"], vec![])).unwrap();
        assert_eq!(sum, [1.0, 3.0, 5.0, 7.0, 5.0, 7.0, 9.0, 11.0]);
        let mean = run(model("ReduceMean", &["x"], vec![integers("axes", &[-1]), integer("keepdims", 0)]));
        assert_eq!(mean.unwrap(), [1.5, 5.5]);
    }

    #[test]
    fn what_no_task_graph_has_is_refused_in_a_sentence() {
        let perm = |axes: &[i64]| vec![integers("perm", axes)];
        let cases = [
            (model("Relu", &["x"], vec![]), "node y, Relu: no operator of task graphs"),
            (model("Add", &["x"], vec![]), "1 inputs, not 2"),
            (model("Add", &["x", "z"], vec![]), "no tensor z"),
            (model("Softmax", &["x"], vec![]), "no axis"),
            (model("Softmax", &["x"], vec![integer("axis", 2)]), "no axis 2"),
            (model("Concat", &["x", "x"], vec![integer("axis", -3)]), "no axis -3"),
            (model("MatMul", &["x", "c"], vec![]), "not of matrices"),
            (model("Transpose", &["x"], perm(&[1, 1])), "an order of other axes"),
            (model("Transpose", &["x"], perm(&[0, -1])), "perm is negative"),
            (model("Reshape", &["x", "c"], vec![]), "y, Reshape"),
            (model("Reshape", &["x", "i"], vec![]), "y, Reshape"),
            (model("Pad", &["x", "i"], vec![]), "pads of other axes"),
            (model("Slice", &["x", "i", "i", "i"], vec![]), "not of one axis"),
            (model("ReduceMean", &["x"], vec![integers("axes", &[0, 1])]), "not over one axis"),
            (
                model("LayerNormalization", &["x", "c", "c"], vec![integer("axis", 0)]),
                "not over the last axis",
            ),
        ];
        for (model, expected) in cases {
            let error = format!("{:#}", run(model).unwrap_err());
            assert!(error.contains(expected), "{error}: expected {expected}");
        }

        let mut newer = model("Add", &["x", "c"], vec![]);
        newer.opset_import[0].version = 18;
        let mut short = model("Add", &["x", "c"], vec![]);
        short.graph.as_mut().unwrap().initializer[0].dims = vec![3];
        let mut huge = model("Add", &["x", "c"], vec![]);
        huge.graph.as_mut().unwrap().initializer[0].dims = vec![i64::MAX, i64::MAX];
        for (model, expected) in [
            (newer, "not those of ONNX's version 17"),
            (short, "constant c: neither"),
            (huge, "constant c: neither"),
        ] {
            let error = format!("{:#}", run(model).unwrap_err());
            assert!(error.contains(expected), "{error}: expected {expected}");
        }
    }
}
