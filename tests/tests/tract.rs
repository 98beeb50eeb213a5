//! What tract's own reader of ONNX makes of task graphs, and what this product's makes of them, to the bit.
#![cfg(target_arch = "x86_64")]

use runtime::backbone::Backbone;
use runtime::engine::run_graph;
use runtime::tensor::Tensor;
use tests::fixture::task_of_size;
use tests::reference::{cases, tensors};
use tract_onnx::prelude::*;

/// The outputs in the graph's order.
fn by_tract(graph: &[u8], input: &Tensor) -> Vec<Vec<u32>> {
    let mut model = tract_onnx::onnx().model_for_read(&mut &*graph).unwrap();
    model.set_input_fact(0, f32::fact(input.shape.as_slice()).into()).unwrap();
    let plan = model.into_typed().unwrap().into_decluttered().unwrap();
    let plan = plan.into_optimized().unwrap().into_runnable().unwrap();
    let input = tract_onnx::prelude::Tensor::from_shape(&input.shape, &input.data).unwrap();
    let out = plan.run(tvec![input.into()]).unwrap();
    out.iter().map(|t| bits(t.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap())).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_familys_task_graph_gives_the_same_bits() {
    for case in cases("backbones", "") {
        println!("{}", case.display());
        let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
        let input = tensors(&case.join("case.safetensors")).remove("input").unwrap();
        let (_, graph) = task_of_size(backbone, [input.shape[2], input.shape[3]]);
        let theirs = by_tract(&graph, &input);
        let ours = run_graph(graph, &input).unwrap();
        let outputs = ["logits", "slice_weights", "heatmap", "slice_embeddings"];
        assert_eq!((ours.len(), theirs.len()), (outputs.len(), outputs.len()));
        for (name, theirs) in outputs.into_iter().zip(theirs) {
            assert!(bits(&ours[name].data) == theirs, "{name}");
        }
    }
}
