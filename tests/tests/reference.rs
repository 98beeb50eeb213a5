//! The public implementations' numbers through the ONNX graph and tract.

use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::Backbone;
use runtime::engine::run_graph;
use runtime::graph::{backbone_graph, pooling_graph};
use runtime::plugin::merge;
use runtime::tensor::{Tensor, Tensors};
use tests::reference::{adapter_content, cases, difference, tensors};

/// A tenth of what the smallest mistake listed beside the cases would change, ten times the rounding.
const TOKENS: f32 = 5e-5;
const ATTENTION: f32 = 2e-6;

fn run(backbone: Backbone, input: &Tensor) -> Tensors {
    let [_, 3, h, w] = input.shape[..] else { panic!("input {:?}", input.shape) };
    let graph = backbone_graph(backbone, [h, w]).unwrap();
    run_graph(graph, input).unwrap()
}

#[test]
fn every_dinov2_case_matches() {
    for case in cases("backbones", "dinov2") {
        let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
        let expected = tensors(&case.join("case.safetensors"));
        let found = run(backbone, &expected["input"]);
        for (name, tolerance) in [("cls", TOKENS), ("patch", TOKENS), ("cls_attention", ATTENTION)] {
            let difference = difference(&found[name], &expected[name]);
            assert!(difference <= tolerance, "{}: {name} differs by {difference:e}", case.display());
        }
    }
}

#[test]
fn other_families_are_refused_by_name() {
    for family in ["vit", "siglip", "dinov3", "davit"] {
        let root = tests::reference::roots().pop().unwrap();
        for case in
            [root.join("backbones")].iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten()
        {
            if case.file_name().to_string_lossy().starts_with(family) {
                let error = Backbone::open(&case.path().join("weights.safetensors")).unwrap_err();
                assert!(error.is_bad_input() && error.to_string().contains("DINOv2"), "{error}");
            }
        }
    }
}

#[test]
fn merged_lora_matches_peft() {
    for (folder, attention) in [("lora", AttentionLora::Separate), ("lora_fused", AttentionLora::Fused)] {
        for root in tests::reference::roots() {
            let case = root.join(folder);
            let mut backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
            let expected = tensors(&case.join("case.safetensors"));
            let adapter =
                adapter_content(&tensors(&case.join("adapter_model.safetensors")), backbone.arch.dim);
            let base = run(backbone.clone(), &expected["input"]);
            assert!(difference(&base["cls"], &expected["base_cls"]) <= TOKENS);
            merge(&mut backbone, &adapter, &LoraSpec { rank: 4, alpha: 8.0, attention }).unwrap();
            let found = run(backbone, &expected["input"]);
            for name in ["cls", "patch", "cls_attention"] {
                let difference = difference(&found[name], &expected[name]);
                assert!(difference <= 1e-4, "{folder}: {name} differs by {difference:e}");
            }
        }
    }
}

/// Pools `h` with query `q` and applies `w`, `b`.
fn pool(h: &Tensor, q: &Tensor, w: &Tensor, b: &Tensor) -> Tensors {
    let content =
        [("query", q), ("head.weight", w), ("head.bias", b)].map(|(n, t)| (n.to_owned(), t.clone())).into();
    run_graph(pooling_graph(&content, q.shape[0]), h).unwrap()
}

/// The rows that the mask keeps.
fn unmasked(h: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let d = h.shape[1];
    let keep = |s: &usize| mask.is_none_or(|m| m.data[*s] != 0.0);
    let rows: Vec<usize> = (0..h.shape[0]).filter(keep).collect();
    Tensor::new([rows.len(), d], rows.iter().flat_map(|&s| h.data[s * d..][..d].to_vec()).collect())
}

#[test]
fn pooling_matches() {
    for case in cases("pooling", "single") {
        let t = tensors(&case);
        let mask = t.get("mask");
        let found = pool(&unmasked(&t["H"], mask), &t["q"], &t["W"], &t["b"]);
        let a = unmasked(&t["a"].clone().into_column(), mask);
        assert!(difference(&found["slice_weights"], &a) <= 2e-6, "{}", case.display());
        assert!(difference(&found["logits"], &t["logits"]) <= 1e-5, "{}", case.display());
    }
}

#[test]
fn pooling_of_views_matches() {
    for case in cases("pooling", "multiview") {
        let t = tensors(&case);
        let d = t["q_task"].shape[0];
        let identity =
            Tensor::new([d, d], (0..d * d).map(|i| if i % (d + 1) == 0 { 1.0 } else { 0.0 }).collect());
        let zero = Tensor::new([d], vec![0.0; d]);
        let views: Vec<f32> = (0..3)
            .flat_map(|i| {
                let h = unmasked(&t[&format!("H_{i}")], t.get(&format!("mask_{i}")));
                let found = pool(&h, &t[&format!("q_{i}")], &identity, &zero);
                assert!(difference(&found["logits"], &t[&format!("v_{i}")]) <= 1e-5, "{}", case.display());
                found["logits"].data.clone()
            })
            .collect();
        let found = pool(&Tensor::new([3, d], views), &t["q_task"], &t["W"], &t["b"]);
        assert!(difference(&found["slice_weights"], &t["a_views"]) <= 2e-6, "{}", case.display());
        assert!(difference(&found["logits"], &t["logits"]) <= 1e-5, "{}", case.display());
    }
}

/// `[n]` as `[n, 1]`.
trait IntoColumn {
    fn into_column(self) -> Tensor;
}

impl IntoColumn for Tensor {
    fn into_column(self) -> Tensor {
        Tensor::new([self.data.len(), 1], self.data)
    }
}
