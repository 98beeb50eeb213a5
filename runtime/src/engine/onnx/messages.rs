//! Of ONNX's protobuf messages (`onnx.proto3`) the fields that task graphs have and that backbones in ONNX files are read from. Whatever
//! else a file holds is passed over as protobuf has it.

#![expect(missing_docs, reason = "the names are ONNX's own")]

use prost::Message;

/// A file.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Which operators the nodes name.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A metadata property.
#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes in an order in which they can be computed, and their constants.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// An operator's use.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Empty for ONNX's own operators.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A node's attribute.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// An [`AttributeType`].
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// Which field of an attribute holds its value.
#[derive(Debug, Clone, Copy)]
pub enum AttributeType {
    /// `f`.
    Float = 1,
    /// `i`.
    Int = 2,
    /// `ints`.
    Ints = 7,
}

/// A constant.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// A [`DataType`], or one that no task graph has.
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// The values, where they are not in `raw_data`.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    pub name: String,
    /// The values, little-endian.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

/// Types of a constant's values.
#[derive(Debug, Clone, Copy)]
pub enum DataType {
    /// 32 bits.
    Float = 1,
    Int64 = 7,
}

/// An input or output of a graph.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// The type of an input or output; in a task graph a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// Type and shape of a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    /// As [`TensorProto::data_type`].
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// None where it may have any.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// One of a shape's lengths: a number or a name.
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

impl NodeProto {
    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }
}

impl ValueInfoProto {
    /// The lengths of its axes, of those that are not symbolic; `None` where it may have any shape.
    pub fn shape(&self) -> Option<Vec<Option<usize>>> {
        let shape = self.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()?;
        let known = |dim: &Dimension| dim.dim_value.and_then(|n| usize::try_from(n).ok());
        Some(shape.dim.iter().map(known).collect())
    }
}

impl TensorProto {
    /// The values that stand in `raw_data`, where they are of single precision.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let (whole, _) = self.raw_data.as_chunks::<4>();
        // In one go where that is how numbers lie in memory, since these are the weights.
        let values = || {
            if cfg!(target_endian = "little") {
                bytemuck::pod_collect_to_vec(whole)
            } else {
                whole.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
        };
        (self.data_type == DataType::Float as i32).then(values)
    }

    /// Its values, where they are 64-bit integers.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let (values, _) = self.raw_data.as_chunks::<8>();
        let values = values.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        (self.data_type == DataType::Int64 as i32).then_some(values)
    }

    /// The lengths of its axes.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(|&n| usize::try_from(n).ok()).collect()
    }

    /// As [`Self::shape`], where its values are of that type and `raw_data` holds as many as the shape says.
    pub fn shape_of(&self, kind: DataType) -> Option<Vec<usize>> {
        let size = match kind {
            DataType::Float => size_of::<f32>(),
            DataType::Int64 => size_of::<i64>(),
        };
        let shape = self.shape()?;
        let bytes = shape.iter().try_fold(size, |n, &d| n.checked_mul(d))?;
        (self.data_type == kind as i32 && self.raw_data.len() == bytes).then_some(shape)
    }
}
