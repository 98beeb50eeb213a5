//! On tiny backbones of every family: what is recognized, and that neither instructions nor threads change what is computed.

use std::path::Path;

use blocks::{Blocks, Crew, Factors, Isa, LayerFactors};

use super::recognize::Stack;
use super::{Layers, take_blocks_for};
use crate::backbone::Backbone;
use crate::engine::Precision;
use crate::engine::onnx::{self, GraphProto};
use crate::graph::{GraphMeta, task_graph};
use crate::tensor::{Tensor, Tensors};

/// The graph of a reference case, and a slice of it.
fn case(name: &str) -> (GraphProto, Vec<f32>) {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/reference/backbones").join(name);
    let backbone = Backbone::open(&folder.join("weights.safetensors")).unwrap();
    let input = crate::tensor::read_safetensors(&folder.join("case.safetensors"))
        .unwrap()
        .tensors
        .remove("input")
        .unwrap();
    let size = [input.shape[2], input.shape[3]];
    let d = backbone.arch.dim;
    let content = Tensors::from([
        ("query".into(), Tensor::new([d], vec![0.1; d])),
        ("head.weight".into(), Tensor::new([1, d], vec![0.1; d])),
        ("head.bias".into(), Tensor::new([1], vec![0.0])),
    ]);
    let meta = GraphMeta { task: "tiny".into(), version: "1.0.0".into(), content_sha256: "0".repeat(64) };
    let graph = onnx::decode(&task_graph(backbone, &content, size, &meta).unwrap()).unwrap().graph.unwrap();
    (graph, input.data[..input.data.len() / input.shape[0]].to_vec())
}

fn run(blocks: &Blocks, slice: &[f32], threads: usize) -> Vec<f32> {
    let (mut space, crew) = (blocks.workspace(threads), Crew::new(threads).unwrap());
    let once = |space: &mut _| {
        let (mut tokens, attention) = blocks.run(slice, space, &crew);
        tokens.extend(attention.into_iter().flatten());
        tokens
    };
    let first = once(&mut space);
    // Nothing of a slice is left for the next one.
    assert_eq!(once(&mut space), first);
    first
}

#[test]
fn every_vision_transformer_is_recognized() {
    for (name, blocks, cls) in [
        ("dinov2reg4_timm_42x56", 3, true),
        ("dinov3_fb_96x64", 3, true),
        ("vit_hf_96x80", 3, true),
        ("siglip_hf_98x84", 3, false),
    ] {
        let (mut graph, _) = case(name);
        let stacks = take_blocks_for(Isa::here(), Precision::F32, &mut graph, &mut Layers::default());
        let [(stack, _)] = &stacks[..] else { panic!("{name}: {} stacks", stacks.len()) };
        assert_eq!((stack.blocks.len(), stack.attention.is_some()), (blocks, cls), "{name}");
        assert!(graph.initializer.iter().all(|constant| !constant.name.starts_with("blocks.")), "{name}");
        let given: Vec<&str> = graph.input.iter().skip(1).map(|input| input.name.as_str()).collect();
        assert_eq!(given, stack.ends().collect::<Vec<_>>(), "{name}");
    }
}

type Change = fn(&mut GraphProto);

#[test]
fn no_other_network_is_recognized() {
    let (mut graph, _) = case("davit_timm_48x48");
    let before = graph.clone();
    assert!(take_blocks_for(Isa::here(), Precision::F32, &mut graph, &mut Layers::default()).is_empty());
    assert_eq!(graph.node, before.node);

    // A block that does one thing otherwise, or that something else looks into, is none, and no chain goes on across it.
    let changes: [(&str, Change); 7] = [
        ("another epsilon's attribute", |graph| {
            let norm = graph.node.iter_mut().find(|n| n.name == "blocks.1.norm1").unwrap();
            norm.attribute.retain(|attribute| attribute.name != "epsilon");
        }),
        ("another activation", |graph| {
            graph.node.iter_mut().find(|n| n.name == "blocks.1.gelu.erf").unwrap().op_type = "Tanh".into();
        }),
        ("other heads", |graph| {
            let transposed = graph.node.iter_mut().find(|n| n.name == "blocks.1.v.by_head").unwrap();
            transposed.attribute[0].ints = vec![0, 1, 2, 3];
        }),
        ("a weight of another type", |graph| {
            graph.initializer.iter_mut().find(|t| t.name == "blocks.1.o.weight").unwrap().data_type = 10;
        }),
        ("sizes that no memory has", |graph| {
            let shape = graph.initializer.iter_mut().find(|t| t.name == "blocks.1.q.heads.shape").unwrap();
            shape.raw_data = [0, i64::MAX, i64::MAX, i64::MAX].iter().flat_map(|n| n.to_le_bytes()).collect();
        }),
        ("patches of no size", |graph| {
            let weight = graph.initializer.iter_mut().find(|t| t.name == "patch_embedding.weight").unwrap();
            weight.dims[2..].fill(0);
            weight.raw_data.clear();
        }),
        ("an output inside", |graph| {
            let mut output = graph.output[0].clone();
            output.name = "blocks.1.attention".into();
            graph.output.push(output);
        }),
    ];
    for (what, change) in changes {
        let (mut graph, _) = case("dinov2reg4_timm_42x56");
        change(&mut graph);
        let stacks = take_blocks_for(Isa::here(), Precision::F32, &mut graph, &mut Layers::default());
        let all: usize = stacks.iter().map(|(stack, _)| stack.blocks.len()).sum();
        assert!(all < 3, "{what}: {all} blocks");
    }
}

/// Factors of rank 3 for each layer; those of queries, keys and values are separate.
fn factors(stack: &Stack) -> Factors {
    const RANK: usize = 3;
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.61).sin() * 0.1).collect::<Vec<f32>>();
    let layer = |parts: usize, inputs: usize, outputs: usize| LayerFactors {
        rank: RANK,
        a: vec![wave(RANK * inputs); parts],
        b: wave(outputs * RANK),
    };
    let (first, embedding) = (&stack.blocks[0], &stack.embedding);
    let d = first.heads * first.width;
    let patch = layer(1, embedding.slice[0] * embedding.patch * embedding.patch, d);
    Factors { patch, blocks: stack.blocks.iter().map(|_| [layer(3, d, 3 * d), layer(1, d, d)]).collect() }
}

#[test]
fn instructions_and_threads_do_not_change_what_is_computed() {
    let names = ["dinov2reg4_timm_42x56", "dinov3_fb_96x64", "vit_hf_96x80", "siglip_hf_98x84"];
    for (name, beside) in names.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (graph, slice) = case(name);
        let blocks = |isa: Isa| -> Blocks {
            let (stack, blocks) =
                take_blocks_for(isa, Precision::F32, &mut graph.clone(), &mut Layers::default()).remove(0);
            if beside { blocks.beside(&factors(&stack)) } else { blocks }
        };
        let found: Vec<(Isa, Vec<f32>)> =
            Isa::all().into_iter().map(|isa| (isa, run(&blocks(isa), &slice, 1))).collect();
        for (isa, values) in &found {
            assert!(values.iter().all(|x| x.is_finite()));
            let off = values.iter().zip(&found[0].1).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            // But for instructions that do not fuse products with sums, to the last bit.
            let most = if format!("{isa:?}") == "Plain" { 1e-4 } else { 0.0 };
            assert!(off <= most, "{name} by {isa:?}: off by {off}");
        }
        let blocks = blocks(Isa::here());
        for threads in [2, 5] {
            assert_eq!(run(&blocks, &slice, threads), found[0].1, "{name} on {threads} threads");
        }
    }
}
