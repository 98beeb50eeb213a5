//! A typed model → what tract runs, with the one rewrite that it lacks.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::{EngineError, failed};

pub(super) type Plan = Arc<TypedRunnableModel>;

pub(super) fn plan(model: TypedModel) -> Result<Plan, EngineError> {
    model
        .into_decluttered()
        .and_then(exchange_square_products)
        .and_then(TypedModel::into_optimized)
        .and_then(TypedModel::into_runnable)
        .map_err(|e| failed(&e))
}

/// Has tract compute a product of two activations that is as wide as it is high, which the attention scores are, with its operands
/// exchanged.
///
/// A kernel writes its tile along the rows of the first operand. With the keys there it writes along memory, not across it, which
/// takes 3 % off a ViT-S slice. Where the sides differ tract itself puts the longer first.
fn exchange_square_products(mut model: TypedModel) -> TractResult<TypedModel> {
    for id in 0..model.nodes.len() {
        if let Some(exchanged) = exchanged(&model, id)? {
            let node = model.node(id);
            let operands = [node.inputs[1], node.inputs[0]];
            let patch = TypedModelPatch::replace_single_op(&model, node, &operands, exchanged)?;
            patch.apply(&mut model)?;
        }
    }
    model.compact()?;
    Ok(model)
}

fn exchanged(model: &TypedModel, id: usize) -> TractResult<Option<EinSum>> {
    let Some(product) = model.node(id).op_as::<EinSum>() else { return Ok(None) };
    let (inputs, outputs) = (model.node_input_facts(id)?, model.node_output_facts(id)?);
    let [a, b] = inputs.as_slice() else { return Ok(None) };
    if a.konst.is_some() || b.konst.is_some() {
        return Ok(None);
    }
    // The axis of the output that comes from one operand alone.
    let free = |of: usize, other: usize| {
        let axis = product.axes.iter_all_axes().find(|axis| {
            axis.inputs[of].len() == 1 && axis.inputs[other].is_empty() && axis.outputs[0].len() == 1
        });
        axis.map(|axis| axis.outputs[0][0])
    };
    let (Some(m), Some(n)) = (free(0, 1), free(1, 0)) else { return Ok(None) };
    let shape = &outputs[0].shape;
    if n + 1 != shape.rank() || shape[m] != shape[n] {
        return Ok(None);
    }
    let mut exchanged = product.clone();
    exchanged.axes.iter_all_axes_mut().for_each(|axis| axis.inputs.swap(0, 1));
    Ok(Some(exchanged))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[2, rows, 3]` by `[2, columns, 3]`, and whether the operands were exchanged.
    fn product(rows: usize, columns: usize) -> (TypedModel, bool) {
        let mut model = TypedModel::default();
        let a = model.add_source("a", f32::fact([2, rows, 3])).unwrap();
        let b = model.add_source("b", f32::fact([2, columns, 3])).unwrap();
        let product = EinSum::new("hme,hne->hmn".parse().unwrap(), f32::datum_type());
        let out = model.wire_node("product", product, &[a, b]).unwrap();
        model.select_output_outlets(&out).unwrap();
        let model = exchange_square_products(model).unwrap();
        let out = model.output_outlets().unwrap()[0].node;
        let exchanged = model.node(model.node(out).inputs[0].node).name == "b";
        (model, exchanged)
    }

    #[test]
    fn square_products_are_exchanged_and_stay_what_they_are() {
        let (model, exchanged) = product(5, 5);
        assert!(exchanged && !product(5, 4).1);
        let values = |by: f32| (0..30).map(|i| (i as f32 * by).sin()).collect::<Vec<_>>();
        let (a, b) = (values(0.7), values(0.3));
        let tensor = |x: &[f32]| Tensor::from_shape(&[2, 5, 3], x).unwrap().into();
        let found = plan(model).unwrap().run(tvec![tensor(&a), tensor(&b)]).unwrap();
        let found = super::super::values(&found[0]).unwrap();
        for (i, found) in found.iter().enumerate() {
            let (head, row, column) = (i / 25, i / 5 % 5, i % 5);
            let expected: f32 =
                (0..3).map(|e| a[head * 15 + row * 3 + e] * b[head * 15 + column * 3 + e]).sum();
            assert!((found - expected).abs() < 1e-6, "{i}: {found} {expected}");
        }
    }
}
