//! Files of the published models' real shapes, in memory: their values are zeros that nobody touches, so that they cost nothing.

use std::path::Path;

use firmware_config::AttentionLora::{Fused, Separate};
use firmware_config::{AttentionLora, LoraSpec};

use super::*;
use crate::plugin::parameters;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::new(shape, vec![0.0; shape.iter().product()])
}

/// Puts the weight and bias of layers, each of an output and an input width.
fn layers(out: &mut Tensors, at: &str, layers: &[(&str, usize, usize)]) {
    for &(name, outputs, inputs) in layers {
        out.insert(format!("{at}{name}.weight"), zeros(&[outputs, inputs]));
        out.insert(format!("{at}{name}.bias"), zeros(&[outputs]));
    }
}

fn norms(out: &mut Tensors, at: &str, names: &[&str], d: usize) {
    for (name, part) in names.iter().flat_map(|name| [(name, "weight"), (name, "bias")]) {
        out.insert(format!("{at}{name}.{part}"), zeros(&[d]));
    }
}

/// DINOv2 (patch 14, 37 × 37 positions) in Hugging Face's names.
fn dinov2(d: usize, depth: usize) -> Tensors {
    let mut out = Tensors::new();
    out.insert("embeddings.cls_token".into(), zeros(&[1, 1, d]));
    out.insert("embeddings.mask_token".into(), zeros(&[1, d]));
    out.insert("embeddings.position_embeddings".into(), zeros(&[1, 1370, d]));
    out.insert("embeddings.patch_embeddings.projection.weight".into(), zeros(&[d, 3, 14, 14]));
    out.insert("embeddings.patch_embeddings.projection.bias".into(), zeros(&[d]));
    norms(&mut out, "", &["layernorm"], d);
    for n in 0..depth {
        let at = format!("encoder.layer.{n}.");
        norms(&mut out, &at, &["norm1", "norm2"], d);
        for part in ["query", "key", "value"].map(|part| format!("attention.attention.{part}")) {
            layers(&mut out, &at, &[(&part, d, d)]);
        }
        layers(
            &mut out,
            &at,
            &[("attention.output.dense", d, d), ("mlp.fc1", 4 * d, d), ("mlp.fc2", d, 4 * d)],
        );
        for scale in ["layer_scale1", "layer_scale2"] {
            out.insert(format!("{at}{scale}.lambda1"), zeros(&[d]));
        }
    }
    out
}

/// DINOv3 (patch 16) in Hugging Face's names.
fn dinov3(d: usize, depth: usize, gated: bool) -> Tensors {
    let mut out = Tensors::new();
    out.insert("embeddings.cls_token".into(), zeros(&[1, 1, d]));
    out.insert("embeddings.mask_token".into(), zeros(&[1, 1, d]));
    out.insert("embeddings.register_tokens".into(), zeros(&[1, 4, d]));
    out.insert("embeddings.patch_embeddings.weight".into(), zeros(&[d, 3, 16, 16]));
    out.insert("embeddings.patch_embeddings.bias".into(), zeros(&[d]));
    norms(&mut out, "", &["norm"], d);
    for n in 0..depth {
        let at = format!("layer.{n}.");
        norms(&mut out, &at, &["norm1", "norm2"], d);
        let part = |part: &str| format!("attention.{part}_proj");
        layers(&mut out, &at, &[(&part("q"), d, d), (&part("v"), d, d), (&part("o"), d, d)]);
        out.insert(format!("{at}attention.k_proj.weight"), zeros(&[d, d]));
        layers(&mut out, &at, &[("mlp.up_proj", 4 * d, d), ("mlp.down_proj", d, 4 * d)]);
        if gated {
            layers(&mut out, &at, &[("mlp.gate_proj", 4 * d, d)]);
        }
        for scale in ["layer_scale1", "layer_scale2"] {
            out.insert(format!("{at}{scale}.lambda1"), zeros(&[d]));
        }
    }
    out
}

/// MedSigLIP's image tower: 27 blocks of 1152, MLP 4304, 448 pixels.
fn medsiglip() -> Tensors {
    let (d, hidden) = (1152, 4304);
    let mut out = Tensors::new();
    let at = "vision_model.";
    out.insert(format!("{at}embeddings.position_embedding.weight"), zeros(&[1024, d]));
    out.insert(format!("{at}embeddings.patch_embedding.weight"), zeros(&[d, 3, 14, 14]));
    out.insert(format!("{at}embeddings.patch_embedding.bias"), zeros(&[d]));
    norms(&mut out, at, &["post_layernorm", "head.layernorm"], d);
    out.insert(format!("{at}head.probe"), zeros(&[1, 1, d]));
    out.insert(format!("{at}head.attention.in_proj_weight"), zeros(&[3 * d, d]));
    out.insert(format!("{at}head.attention.in_proj_bias"), zeros(&[3 * d]));
    layers(
        &mut out,
        at,
        &[("head.attention.out_proj", d, d), ("head.mlp.fc1", hidden, d), ("head.mlp.fc2", d, hidden)],
    );
    for n in 0..27 {
        let at = format!("{at}encoder.layers.{n}.");
        norms(&mut out, &at, &["layer_norm1", "layer_norm2"], d);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"].map(|part| format!("self_attn.{part}")) {
            layers(&mut out, &at, &[(&part, d, d)]);
        }
        layers(&mut out, &at, &[("mlp.fc1", hidden, d), ("mlp.fc2", d, hidden)]);
    }
    out
}

#[test]
fn the_published_models_are_known_and_have_the_papers_numbers_of_parameters() {
    let check = |tensors: Tensors, name: &str, labels: usize, counts: &[(AttentionLora, usize)]| {
        let backbone =
            load::canonical(tensors, None, String::new(), None, Path::new("nowhere/model.safetensors"))
                .unwrap();
        assert_eq!((backbone.name().as_str(), backbone.naming), (name, Naming::HuggingFace));
        for &(attention, count) in counts {
            let lora = LoraSpec { rank: 8, alpha: 16.0, attention };
            assert_eq!(parameters(&backbone.arch, &lora, labels, &[]), count, "{name} {attention:?}");
        }
        backbone
    };
    check(dinov2(384, 12), "DINOv2 ViT-S/14", 1, &[(Fused, 229_729)]);
    check(dinov2(768, 12), "DINOv2 ViT-B/14", 18, &[(Fused, 467_826)]);
    check(dinov3(384, 12, false), "DINOv3 ViT-S/16", 1, &[(Fused, 231_169)]);
    check(dinov3(384, 12, true), "DINOv3 ViT-S+/16", 1, &[(Fused, 231_169)]);
    check(dinov3(768, 12, false), "DINOv3 ViT-B/16", 1, &[(Fused, 456_193)]);
    let large =
        check(dinov3(1024, 24, false), "DINOv3 ViT-L/16", 1, &[(Fused, 1_196_033), (Separate, 1_589_249)]);
    assert_eq!((large.licence(), large.arch.norm_eps), ("DINOv3 License", 1e-5));
    let siglip = check(medsiglip(), "MedSigLIP SO400M/14", 1, &[(Fused, 1_509_217), (Separate, 2_006_881)]);
    assert!(siglip.licence().contains("Health AI Developer Foundations"));
    let Body::Vit(vit) = siglip.arch.body else { panic!("{:?}", siglip.arch) };
    assert_eq!((vit.heads, vit.depth, vit.mlp), (16, 27, Mlp::GeluTanh { hidden: 4304 }));
}
