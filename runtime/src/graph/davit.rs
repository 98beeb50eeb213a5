//! DaViT as ONNX nodes.
//!
//! The stream is kept as tokens `[S, N, d]`, so that every product has all tokens of a slice as its rows; images for the
//! convolutions are the same values transposed.

use super::Encoded;
use super::builder::Builder;
use super::layers::{Take, linear, mlp, norm};
use crate::backbone::{Backbone, Davit, Mlp, Stage, Tensor};

/// Writes the encoder for `slices`, the name of `[S, 3, H, W]` of `size`.
pub(super) fn encode(
    b: &mut Builder,
    backbone: &mut Backbone,
    davit: &Davit,
    slices: &str,
    size: [usize; 2],
) -> Encoded {
    let (d, epsilon) = (backbone.arch.dim, backbone.arch.norm_eps);
    let mut take = Take(&mut backbone.tensors);
    let (mut x, mut grid, mut channels, mut number) = (slices.to_owned(), size, 3, 0);
    for (s, stage) in davit.stages.iter().enumerate() {
        let name = format!("embed.{s}");
        if s > 0 {
            let normed = norm(b, &mut take, &format!("{name}.norm"), &x, epsilon);
            x = image(b, &format!("{name}.in"), &normed, channels, grid);
        }
        let (weight, bias) = take.layer(&name);
        x = b.convolution(&name, &x, &weight, &bias, stage.stride);
        grid = grid.map(|n| n.div_ceil(stage.stride));
        channels = stage.dim;
        x = tokens(b, &format!("{name}.out"), &x, channels, grid);
        if s == 0 {
            x = norm(b, &mut take, &format!("{name}.norm"), &x, epsilon);
        }
        for k in 0..2 * stage.depth {
            let block =
                Block { name: format!("blocks.{number}"), stage, grid, window: davit.window, epsilon };
            x = block.write(b, &mut take, &x, k % 2 == 0);
            number += 1;
        }
    }
    let final_norm = davit.final_norm.then(|| take.layer("norm"));
    let (embedding, attention) = pool(b, final_norm, epsilon, &x, d, grid[0] * grid[1]);
    Encoded { embedding, attention, patch: Some(x) }
}

/// Tokens `[S, N, c]` as an image `[S, c, h, w]`.
fn image(b: &mut Builder, name: &str, x: &str, channels: usize, [h, w]: [usize; 2]) -> String {
    let x = b.transpose(&format!("{name}.by_channel"), x, &[0, 2, 1]);
    b.reshape(&format!("{name}.image"), &x, &[0, channels as i64, h as i64, w as i64])
}

/// An image `[S, c, h, w]` as tokens `[S, N, c]`.
fn tokens(b: &mut Builder, name: &str, x: &str, channels: usize, [h, w]: [usize; 2]) -> String {
    let x = b.reshape(&format!("{name}.flat"), x, &[0, channels as i64, (h * w) as i64]);
    b.transpose(&format!("{name}.tokens"), &x, &[0, 2, 1])
}

/// Mean of the tokens `[S, N, d]`, normalised where there is a final norm: the embedding `[S, d]`. With it each token's
/// share in the embedding, `[S, N]`, which sums to 1: the part of the tokens' sum along the embedding `u` without the norm's bias.
///
/// The norm's statistics are the mean token's, so `u = w (m - mean(m)) / σ` is linear in the tokens; token `t` adds
/// `u · w (t - mean(t)) / (N σ)` to `u · u`, and that is `t · h` over the sum of all, with `h = w u - mean(w u)`.
fn pool(
    b: &mut Builder,
    final_norm: Option<(Tensor, Tensor)>,
    epsilon: f32,
    x: &str,
    d: usize,
    tokens: usize,
) -> (String, String) {
    let mean = b.mean("pool.mean", x, 1);
    let (embedding, direction) = match final_norm {
        None => (mean.clone(), mean),
        Some((weight, bias)) => {
            let (weight, bias) = (b.constant("norm.weight", &weight), b.constant("norm.bias", &bias));
            let pooled = b.layer_norm_of("norm", &mean, [&weight, &bias], epsilon);
            let u = b.node("Sub", "share.unbiased", &[&pooled, &bias]);
            let g = b.node("Mul", "share.weighted", &[&u, &weight]);
            let centre = b.mean_kept("share.centre", &g, 1);
            (pooled, b.node("Sub", "share.direction", &[&g, &centre]))
        }
    };
    let column = b.reshape("share.column", &direction, &[0, d as i64, 1]);
    let parts = b.node("MatMul", "share.parts", &[x, &column]);
    let mean = b.mean_kept("share.mean", &parts, 1);
    // The sum is positive; this keeps a slice whose embedding is zero from dividing by zero.
    let least = b.scalar("share.least", f32::MIN_POSITIVE);
    let mean = b.node("Max", "share.mean.positive", &[&mean, &least]);
    let count = b.scalar("share.count", tokens as f32);
    let sum = b.node("Mul", "share.sum", &[&mean, &count]);
    let shares = b.node("Div", "share.of_sum", &[&parts, &sum]);
    (embedding, b.reshape("share.flat", &shares, &[-1, tokens as i64]))
}

struct Block<'a> {
    name: String,
    stage: &'a Stage,
    grid: [usize; 2],
    window: usize,
    epsilon: f32,
}

impl Block<'_> {
    fn write(&self, b: &mut Builder, take: &mut Take<'_>, x: &str, in_windows: bool) -> String {
        let n = |part: &str| format!("{}.{part}", self.name);
        let x = self.depthwise(b, take, "conv1", x);
        let normed = norm(b, take, &n("norm1"), &x, self.epsilon);
        let attended = if in_windows {
            self.window_attention(b, take, &normed)
        } else {
            self.channel_attention(b, take, &normed)
        };
        let x = b.node("Add", &n("attended"), &[&x, &attended]);
        let x = self.depthwise(b, take, "conv2", &x);
        let normed = norm(b, take, &n("norm2"), &x, self.epsilon);
        let fed = mlp(b, take, &self.name, Mlp::Gelu { hidden: self.stage.hidden }, &normed);
        b.node("Add", &n("out"), &[&x, &fed])
    }

    /// A depthwise convolution beside the stream: what tells tokens where they are.
    fn depthwise(&self, b: &mut Builder, take: &mut Take<'_>, part: &str, x: &str) -> String {
        let name = format!("{}.{part}", self.name);
        let (weight, bias) = take.layer(&name);
        let y = image(b, &name, x, self.stage.dim, self.grid);
        let y = b.convolution(&name, &y, &weight, &bias, 1);
        let y = tokens(b, &name, &y, self.stage.dim, self.grid);
        b.node("Add", &format!("{name}.added"), &[x, &y])
    }

    /// Attention among the tokens of each window. The grid is filled up with zeros to whole windows, and these take part.
    fn window_attention(&self, b: &mut Builder, take: &mut Take<'_>, x: &str) -> String {
        let n = |part: &str| format!("{}.{part}", self.name);
        let (d, heads) = (self.stage.dim as i64, self.stage.heads as i64);
        let side = self.window as i64;
        let [h, w] = self.grid.map(|n| n as i64);
        let [rows, columns] = self.grid.map(|n| n.div_ceil(self.window) as i64);
        let (windows, inside) = (rows * columns, side * side);
        let padded = [rows * side - h, columns * side - w];

        let mut x = b.reshape(&n("plane"), x, &[0, h, w, d]);
        if padded != [0, 0] {
            x = b.pad(&n("padded"), &x, &[0, 0, 0, 0, 0, padded[0], padded[1], 0]);
        }
        let x = b.reshape(&n("cells"), &x, &[0, rows, side, columns, side, d]);
        let x = b.transpose(&n("windows"), &x, &[0, 1, 3, 2, 4, 5]);
        let x = b.reshape(&n("windows.flat"), &x, &[0, windows * inside, d]);
        let mut project = |part: &str, factor: f32, order: &[i64]| {
            let (weight, bias) = take.scaled(&n(part), factor);
            let y = b.linear(&n(part), &x, &weight, &bias);
            let y = b.reshape(&n(&format!("{part}.heads")), &y, &[0, windows, inside, heads, d / heads]);
            b.transpose(&n(&format!("{part}.by_head")), &y, order)
        };
        let q = project("q", 1.0 / ((d / heads) as f32).sqrt(), &[0, 1, 3, 2, 4]);
        let k = project("k", 1.0, &[0, 1, 3, 4, 2]);
        let v = project("v", 1.0, &[0, 1, 3, 2, 4]);
        let scores = b.node("MatMul", &n("scores"), &[&q, &k]);
        let attention = b.softmax(&n("attention"), &scores, 4);
        let mixed = b.node("MatMul", &n("mixed"), &[&attention, &v]);
        let mixed = b.transpose(&n("mixed.by_token"), &mixed, &[0, 1, 3, 2, 4]);
        let mixed = b.reshape(&n("mixed.flat"), &mixed, &[0, windows * inside, d]);
        let y = linear(b, take, &n("o"), &mixed);
        let y = b.reshape(&n("o.windows"), &y, &[0, rows, columns, side, side, d]);
        let y = b.transpose(&n("o.cells"), &y, &[0, 1, 3, 2, 4, 5]);
        let mut y = b.reshape(&n("o.plane"), &y, &[0, rows * side, columns * side, d]);
        for (axis, (length, extra)) in [(1, (h, padded[0])), (2, (w, padded[1]))] {
            if extra > 0 {
                y = b.slice(&n(&format!("o.cropped{axis}")), &y, axis, 0, length as usize);
            }
        }
        b.reshape(&n("o.tokens"), &y, &[0, h * w, d])
    }

    /// Attention among the channels of each group: every channel attends to every other by their products over all tokens.
    fn channel_attention(&self, b: &mut Builder, take: &mut Take<'_>, x: &str) -> String {
        let n = |part: &str| format!("{}.{part}", self.name);
        let (d, groups) = (self.stage.dim as i64, self.stage.groups as i64);
        let count = self.grid[0] * self.grid[1];
        let mut project = |part: &str, factor: f32, order: &[i64]| {
            let (weight, bias) = take.scaled(&n(part), factor);
            let y = b.linear(&n(part), x, &weight, &bias);
            let y = b.reshape(&n(&format!("{part}.groups")), &y, &[0, count as i64, groups, d / groups]);
            b.transpose(&n(&format!("{part}.by_group")), &y, order)
        };
        let q = project("q", 1.0 / (count as f32).sqrt(), &[0, 2, 3, 1]);
        let k = project("k", 1.0, &[0, 2, 1, 3]);
        let v = project("v", 1.0, &[0, 2, 3, 1]);
        let scores = b.node("MatMul", &n("scores"), &[&q, &k]);
        let attention = b.softmax(&n("attention"), &scores, 3);
        let mixed = b.node("MatMul", &n("mixed"), &[&attention, &v]);
        let mixed = b.transpose(&n("mixed.by_token"), &mixed, &[0, 3, 1, 2]);
        let mixed = b.reshape(&n("mixed.flat"), &mixed, &[0, count as i64, d]);
        linear(b, take, &n("o"), &mixed)
    }
}
