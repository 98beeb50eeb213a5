//! Beside MONAI's, torchvision's and PyTorch's networks, filled with the same numbers by `trainer/benches/peer/networks.py`.
//!
//! What differs is rounding, as measured at most: 4e-6 of what is expected in logits (ResNet-50; 1e-6 and less in the others), 6e-6 in
//! single values that Swin's stages give, 5e-6 in norms of gradients, 1e-7 in running statistics. Other processors round otherwise.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Peers {
    networks: BTreeMap<String, Peer>,
}

/// Share of what is expected by which logits, losses and running statistics may be off.
const OFF: f64 = 2e-5;
/// The same of norms of gradients and of single values between layers.
const FURTHER_OFF: f64 = 5e-5;

/// What a peer gave.
#[derive(Deserialize)]
struct Peer {
    /// Shape of the input.
    input: Vec<i64>,
    logits: Vec<f64>,
    /// Some of the values that the encoder gives at each size.
    #[serde(default)]
    hidden: Vec<Vec<f64>>,
    /// Sum of the squares of the logits in training mode.
    loss: f64,
    /// Norms of the loss' gradients at some weights, and of all.
    gradients: BTreeMap<String, f64>,
    gradient: f64,
    /// Norms of some running statistics after that.
    running: BTreeMap<String, f64>,
}

/// Numbers from -1 to 1 that follow from a name and their places.
fn formula(name: &str, dims: &[i64]) -> Tensor {
    let seed =
        name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let number = |i: u32| {
        let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
        for _ in 0..2 {
            x = (x ^ (x >> 16)).wrapping_mul(73_244_475);
        }
        (f64::from(x) / f64::from(1u32 << 31) - 1.0) as f32
    };
    let count = dims.iter().product::<i64>() as u32;
    Tensor::from_slice(&(0..count).map(number).collect::<Vec<_>>()).view(dims)
}

/// Gives all weights and running statistics their numbers.
fn fill(weights: &Weights) {
    let _guard = tch::no_grad_guard();
    for (name, tensor) in weights.all() {
        let dims = tensor.size();
        let x = formula(name, &dims);
        let x = if name.ends_with("running_var") {
            x * 0.5 + 1.0
        } else if name.ends_with("bias") || name.ends_with("running_mean") || name.ends_with("cls_token") {
            x * 0.2
        } else if dims.len() == 1 {
            x * 0.3 + 1.0
        } else if name.ends_with("bias_table") {
            x
        } else {
            x * (6.0 * dims[0] as f64 / tensor.numel() as f64).sqrt()
        };
        tensor.shallow_clone().copy_(&x);
    }
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

/// Fails where a found number is off by more than `limit` of what is expected.
fn close(what: &str, found: &[f64], expected: &[f64], limit: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs() / expected.abs().max(1e-3);
        assert!(off < limit, "{what}: {found}, expected {expected}, off by {off:.1e}");
    }
}

/// Compares what `forward` gives in both modes, given the input.
fn compare(name: &str, peer: &Peer, weights: &Weights, forward: impl Fn(&Tensor, bool) -> Tensor) {
    fill(weights);
    let input = formula("input", &peer.input);
    close(&format!("{name}: logits"), &floats(&tch::no_grad(|| forward(&input, false))), &peer.logits, OFF);
    let loss = forward(&input, true).square().sum(Kind::Float);
    close(&format!("{name}: loss"), &floats(&loss.detach()), &[peer.loss], OFF);
    let (flat, _) = weights.gradients(&loss, &[]).unwrap();
    close(
        &format!("{name}: gradient"),
        &floats(&flat.to_kind(Kind::Double).norm()),
        &[peer.gradient],
        FURTHER_OFF,
    );
    let mut start = 0;
    for (part, tensor) in weights.named() {
        let count = tensor.numel() as i64;
        if let Some(&expected) = peer.gradients.get(part) {
            let norm = flat.narrow(0, start, count).norm();
            close(&format!("{name}: gradient of {part}"), &floats(&norm), &[expected], FURTHER_OFF);
        }
        start += count;
    }
    assert!(peer.gradients.keys().all(|part| weights.named().iter().any(|(name, _)| name == part)));
    for (part, &expected) in &peer.running {
        let (_, tensor) = weights.all().find(|(name, _)| name == part).unwrap();
        close(&format!("{name}: {part}"), &floats(&tensor.norm()), &[expected], OFF);
    }
}

/// Grey images `[B, 1, S, H, W]` → volumes `[B, S, 3, H, W]`.
fn grey(input: &Tensor) -> Tensor {
    input.transpose(1, 2).expand([-1, -1, 3, -1, -1], false)
}

#[test]
fn networks_give_what_those_they_follow_give() {
    let peers: Peers = serde_json::from_str(include_str!("parity.json")).unwrap();
    for method in NETWORKS {
        let peer = &peers.networks[method.name()];
        if method == Method::Mst {
            // The backbone has tests of its own.
            let mst = Mst::new(maker(), &backbone(), [28, 28], 1, 4).unwrap();
            let fuse = |input: &Tensor, _| mst.fuse(&input.flatten(0, 1), input.size()[0]).unwrap();
            compare(method.name(), peer, mst.weights(), fuse);
        } else {
            let rival = small(method);
            let forward = |input: &Tensor, train| rival.forward(&grey(input), train).unwrap();
            compare(method.name(), peer, rival.weights(), forward);
        }
    }
}

#[test]
fn a_swin_gives_what_monais_gives_at_each_size() {
    let peers: Peers = serde_json::from_str(include_str!("parity.json")).unwrap();
    let peer = &peers.networks["voco"];
    let mut make = maker();
    let swin = swin::Swin::new(&mut make, "swinViT", [1, 12]).unwrap();
    fill(&make.finish());
    let outputs = tch::no_grad(|| swin.apply(&formula("input", &peer.input)).unwrap());
    assert_eq!(outputs.len(), peer.hidden.len());
    for (n, (output, expected)) in outputs.iter().zip(&peer.hidden).enumerate() {
        let (flat, count) = (output.flatten(0, -1), output.numel() as i64);
        let found: Vec<f64> = (0..5).map(|k| flat.double_value(&[count * k / 5])).collect();
        close(&format!("stage {n}"), &found, expected, FURTHER_OFF);
    }
}
