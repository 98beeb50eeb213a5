//! Weights out of an ONNX file that was exported from Hugging Face transformers.
//!
//! The exporter folds the transposition of linear layers into anonymous initialisers, so those are named after
//! the MatMul node that uses them and transposed back; the position table comes as two constants that are
//! concatenated, CLS first.

use std::collections::HashMap;
use std::path::Path;

use super::{BackboneError, Tensor, Tensors};
use crate::engine::onnx::{self, DataType, ReadError, TensorProto};
use crate::tensor::TensorError;

/// The initialisers under their Hugging Face names, without prefix, and the SHA-256 of the file.
pub(super) fn read(path: &Path) -> Result<(Tensors, String), BackboneError> {
    let malformed = |detail: &str| BackboneError::Unknown {
        path: path.into(),
        detail: format!("not a usable ONNX file: {detail}"),
    };
    let (model, digest) = onnx::read(path).map_err(|error| match error {
        ReadError::Io(source) => TensorError::Io { path: path.into(), source }.into(),
        error @ ReadError::Malformed(_) => malformed(&error.to_string()),
    })?;
    let graph = model.graph.ok_or_else(|| malformed("it has no graph"))?;

    // Which node uses an anonymous matrix, and which two constants make the position table.
    let mut used_by: HashMap<&str, &str> = HashMap::new();
    for node in &graph.node {
        if node.op_type == "MatMul"
            && let Some(name) = node.name.rsplit_once("/MatMul").map(|(head, _)| head)
            && let [_, weight] = node.input.as_slice()
        {
            used_by.insert(weight, name.strip_prefix('/').unwrap_or(name));
        }
    }

    let mut tensors = Tensors::new();
    let mut position: [Option<Tensor>; 2] = [None, None];
    // Each is dropped when it was taken over, so that the weights are held once.
    for initializer in graph.initializer {
        if initializer.data_type != DataType::Float as i32 {
            continue;
        }
        let tensor =
            float(&initializer).ok_or_else(|| malformed(&format!("initialiser {}", initializer.name)))?;
        if let Some(user) = used_by.get(initializer.name.as_str()) {
            let name = user.strip_prefix("backbone/").unwrap_or(user).replace('/', ".");
            tensors.insert(format!("{name}.weight"), tensor.transposed());
        } else if let Some(name) = initializer.name.strip_prefix("backbone.") {
            tensors.insert(name.to_owned(), tensor);
        } else if let [1, n, _] = tensor.shape[..] {
            position[usize::from(n > 1)] = Some(tensor);
        }
    }
    if let [Some(cls), Some(patches)] = position
        && cls.shape[2] == patches.shape[2]
    {
        let shape = [1, 1 + patches.shape[1], cls.shape[2]];
        let data = [cls.data, patches.data].concat();
        tensors.insert("embeddings.position_embeddings".into(), Tensor::new(shape, data));
    }
    Ok((tensors, digest))
}

fn float(proto: &TensorProto) -> Option<Tensor> {
    let shape = proto.shape()?;
    let data = if proto.raw_data.is_empty() { proto.float_data.clone() } else { proto.floats()? };
    (shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(data.len()))
        .then(|| Tensor::new(shape, data))
}
