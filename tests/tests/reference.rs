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

/// The tolerance of each output that a case may hold.
const OUTPUTS: [(&str, f32); 5] = [
    ("cls", TOKENS),
    ("pooled", TOKENS),
    ("patch", TOKENS),
    ("cls_attention", ATTENTION),
    ("pool_attention", ATTENTION),
];

#[test]
fn every_backbone_case_matches() {
    let mut families = std::collections::BTreeSet::new();
    for case in cases("backbones", "") {
        let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
        families.insert(backbone.arch.family.to_string());
        let mut expected = tensors(&case.join("case.safetensors"));
        let found = run(backbone, &expected.remove("input").unwrap());
        for (name, expected) in expected {
            let (_, tolerance) = OUTPUTS.into_iter().find(|(n, _)| *n == name).unwrap();
            let difference = difference(&found[&name], &expected);
            assert!(difference <= tolerance, "{}: {name} differs by {difference:e}", case.display());
        }
    }
    assert_eq!(families.into_iter().collect::<Vec<_>>(), ["DINOv2", "DINOv3", "DaViT", "SigLIP", "ViT"]);
}

/// Without an independent number for it, what a share is: the shares of a slice's tokens sum to 1, and a change of one token
/// along the embedding's direction changes its share alone.
#[test]
fn the_shares_of_a_davits_tokens_sum_to_one() {
    for case in cases("backbones", "davit") {
        let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
        let found = run(backbone.clone(), &tensors(&case.join("case.safetensors"))["input"]);
        let (shares, pooled, patch) = (&found["pooled_similarity"], &found["pooled"], &found["patch"]);
        let [slices, count, d] = patch.shape[..] else { panic!("{:?}", patch.shape) };
        for s in 0..slices {
            let shares = &shares.data[s * count..][..count];
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{shares:?}");
            // In float64 from the outputs: u · w (t - mean t) / (N σ), over u · u.
            let get = |name: &str| backbone.tensors.get(name).map(|t| t.data.clone());
            let (w, bias) = (get("norm.weight"), get("norm.bias"));
            let tokens = patch.data[s * count * d..][..count * d].chunks_exact(d);
            let mean = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>() / d as f64;
            let centre: Vec<f64> = (0..d)
                .map(|c| {
                    tokens
                        .clone()
                        .map(|t| f64::from(t[c]) - if w.is_some() { mean(t) } else { 0.0 })
                        .sum::<f64>()
                })
                .map(|sum| sum / count as f64)
                .collect();
            let sigma = match w {
                Some(_) => (centre.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-5).sqrt(),
                None => 1.0,
            };
            let weight = |c: usize| w.as_ref().map_or(1.0, |w| f64::from(w[c]));
            let u: Vec<f64> = centre.iter().enumerate().map(|(c, x)| weight(c) * x / sigma).collect();
            for (c, u) in u.iter().enumerate() {
                let b = bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
                assert!(
                    (u + b - f64::from(pooled.data[s * d + c])).abs() < 5e-5,
                    "the embedding is u and the bias"
                );
            }
            let square: f64 = u.iter().map(|u| u * u).sum();
            for (token, share) in tokens.zip(shares) {
                let centre = if w.is_some() { mean(token) } else { 0.0 };
                let part: f64 =
                    (0..d).map(|c| u[c] * weight(c) * (f64::from(token[c]) - centre)).sum::<f64>();
                let expected = part / (count as f64 * sigma) / square;
                assert!((expected - f64::from(*share)).abs() < 1e-5, "{expected} and {share}");
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
