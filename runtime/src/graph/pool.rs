//! The head of a SigLIP tower, which pools its patch tokens, as ONNX nodes.

use super::builder::Builder;
use super::layers::{Take, linear, mlp, norm};
use crate::backbone::{Arch, Tensor, Vit};

/// Pools tokens `[S, N, d]`: returns the embedding `[S, d]` and the attention over the tokens, mean over heads, `[S, N]`.
pub(super) fn write(
    b: &mut Builder,
    take: &mut Take<'_>,
    arch: &Arch,
    vit: &Vit,
    x: &str,
    tokens: usize,
) -> (String, String) {
    let (d, heads) = (arch.dim, vit.heads);
    let keys = b.constant("pool.keys", &probe_on_keys(take, d, heads));
    let scores = b.node("MatMul", "pool.head.scores", &[x, &keys]);
    let scores = b.transpose("pool.head.scores.by_head", &scores, &[0, 2, 1]);
    let attention = b.softmax("pool.head.attention", &scores, 2);
    let rows = b.reshape("pool.head.attention.rows", &attention, &[0, heads as i64, 1, tokens as i64]);
    let v = linear(b, take, "pool.v", x);
    let v = b.reshape("pool.v.heads", &v, &[0, tokens as i64, heads as i64, (d / heads) as i64]);
    let v = b.transpose("pool.v.by_head", &v, &[0, 2, 1, 3]);
    let mixed = b.node("MatMul", "pool.mixed", &[&rows, &v]);
    let mixed = b.reshape("pool.mixed.flat", &mixed, &[-1, d as i64]);
    let pooled = linear(b, take, "pool.o", &mixed);
    let normed = norm(b, take, "pool.norm", &pooled, arch.norm_eps);
    let fed = mlp(b, take, "pool", vit.mlp, &normed);
    let embedding = b.node("Add", "pool.out", &[&pooled, &fed]);
    (embedding, b.mean("pool.head.attention.mean", &attention, 1))
}

/// The probe's queries multiplied into the key projection, `[d, heads]`: the probe is the same for every slice, so that a
/// token's score in a head is one product with it. The key's bias adds the same to all scores, which softmax takes away.
fn probe_on_keys(take: &mut Take<'_>, d: usize, heads: usize) -> Tensor {
    let probe = take.get("pool.probe");
    let (query, bias) = take.layer("pool.q");
    let (key, _) = take.layer("pool.k");
    let width = d / heads;
    let scale = 1.0 / (width as f64).sqrt();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let q = query.data.chunks_exact(d).zip(&bias.data);
    let q: Vec<f64> = q.map(|(row, bias)| (dot(row, &probe.data) + f64::from(*bias)) * scale).collect();
    let mut sums = vec![0.0f64; d * heads];
    for (row, (key, q)) in key.data.chunks_exact(d).zip(q).enumerate() {
        for (column, k) in key.iter().enumerate() {
            sums[column * heads + row / width] += f64::from(*k) * q;
        }
    }
    Tensor::new([d, heads], sums.into_iter().map(|x| x as f32).collect())
}
