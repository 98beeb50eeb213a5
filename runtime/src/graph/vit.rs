//! The vision transformer as ONNX nodes.

use super::builder::Builder;
use crate::backbone::{Arch, Backbone, Mlp, Tensor, Tensors};

/// Which tokens leave the encoder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    /// CLS and its attention row: the last block computes nothing else.
    ClsOnly,
    /// The patch tokens too.
    AllTokens,
}

/// Names of the encoder's outputs.
pub(super) struct Encoded {
    /// `[S, d]`.
    pub cls: String,
    /// `[S, N]`.
    pub cls_attention: String,
    /// `[S, N, d]`, where asked for.
    pub patch: Option<String>,
}

/// Writes the encoder for `slices` `[S, 3, H, W]`, taking the weights out of the backbone as they are written.
pub(super) fn encode(
    b: &mut Builder,
    backbone: &mut Backbone,
    size: [usize; 2],
    grid: [usize; 2],
    outputs: Outputs,
) -> Encoded {
    let arch = backbone.arch;
    let (d, patches) = (arch.dim, grid[0] * grid[1]);
    debug_assert_eq!(size, [grid[0] * arch.patch, grid[1] * arch.patch]);
    let before = 1 + arch.registers;
    let table = token_table(backbone, grid);
    let mut take = Take(&mut backbone.tensors);

    // Patches become tokens; CLS and registers are zero rows until the table is added.
    let conv =
        b.patch_convolution("patch_embedding", "slices", &take.get("patch.weight"), &take.get("patch.bias"));
    let flat = b.reshape("patch_embedding.flat", &conv, &[0, d as i64, patches as i64]);
    let tokens = b.transpose("patch_embedding.tokens", &flat, &[0, 2, 1]);
    let padded = b.pad_tokens("tokens.padded", &tokens, before);
    let table = b.constant("tokens.table", &table);
    let mut x = b.node("Add", "tokens", &[&padded, &table]);

    let mut attention = String::new();
    for n in 0..arch.depth {
        let last = n + 1 == arch.depth;
        let rows = if last && outputs == Outputs::ClsOnly { Rows::Cls } else { Rows::All };
        let block = Block { name: format!("blocks.{n}"), arch: &arch, tokens: before + patches, rows };
        (x, attention) = block.write(b, &mut take, &x);
    }
    let x = b.layer_norm("norm", &x, &take.get("norm.weight"), &take.get("norm.bias"), arch.norm_eps);

    // `attention` is [S, heads, rows, T]; CLS is row 0, and its own and the registers' columns are dropped.
    let row =
        if outputs == Outputs::ClsOnly { attention } else { b.slice("attention.row", &attention, 2, 0, 1) };
    let mean = b.mean("attention.mean", &row, 1);
    let columns = b.slice("attention.patches", &mean, 2, before, before + patches);
    let cls_attention = b.reshape("attention.flat", &columns, &[-1, patches as i64]);
    let (cls, patch) = match outputs {
        Outputs::ClsOnly => (x, None),
        Outputs::AllTokens => {
            (b.slice("norm.cls", &x, 1, 0, 1), Some(b.slice("norm.patch", &x, 1, before, before + patches)))
        }
    };
    let cls = b.reshape("norm.flat", &cls, &[-1, d as i64]);
    Encoded { cls, cls_attention, patch }
}

/// What is added to the tokens, `[1, 1 + registers + N, d]`: CLS with its position, the registers as they are (they get no
/// position), and the positions of the patches.
fn token_table(backbone: &Backbone, grid: [usize; 2]) -> Tensor {
    let (cls, position) = (backbone.tensor("cls"), backbone.tensor("position.cls"));
    let mut data: Vec<f32> = cls.data.iter().zip(&position.data).map(|(c, p)| c + p).collect();
    if backbone.arch.registers > 0 {
        data.extend(&backbone.tensor("registers").data);
    }
    data.extend(backbone.positions(grid).data);
    Tensor::new([1, data.len() / backbone.arch.dim, backbone.arch.dim], data)
}

/// Moves weights out of the backbone, so that they are held once.
struct Take<'a>(&'a mut Tensors);

impl Take<'_> {
    fn get(&mut self, name: &str) -> Tensor {
        self.0.remove(name).unwrap_or_else(|| panic!("a backbone has a tensor {name}, taken once"))
    }
}

/// Which rows of the token stream a block computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    All,
    Cls,
}

struct Block<'a> {
    name: String,
    arch: &'a Arch,
    tokens: usize,
    rows: Rows,
}

impl Block<'_> {
    /// Returns the token stream after the block and the attention probabilities.
    fn write(&self, b: &mut Builder, take: &mut Take<'_>, x: &str) -> (String, String) {
        let n = |part: &str| format!("{}.{part}", self.name);
        let normed = self.norm(b, take, "norm1", x);
        let (residual, queries, rows) = match self.rows {
            Rows::All => (x.to_owned(), normed.clone(), self.tokens),
            Rows::Cls => (b.slice(&n("cls"), x, 1, 0, 1), b.slice(&n("norm1.cls"), &normed, 1, 0, 1), 1),
        };
        let (attended, attention) = self.attention(b, take, &normed, &queries, rows);
        let x = b.node("Add", &n("attended"), &[&residual, &attended]);
        let normed = self.norm(b, take, "norm2", &x);
        let fed = self.mlp(b, take, &normed);
        (b.node("Add", &n("out"), &[&x, &fed]), attention)
    }

    fn norm(&self, b: &mut Builder, take: &mut Take<'_>, part: &str, x: &str) -> String {
        let name = format!("{}.{part}", self.name);
        let (weight, bias) = (take.get(&format!("{name}.weight")), take.get(&format!("{name}.bias")));
        b.layer_norm(&name, x, &weight, &bias, self.arch.norm_eps)
    }

    fn attention(
        &self,
        b: &mut Builder,
        take: &mut Take<'_>,
        x: &str,
        queries: &str,
        rows: usize,
    ) -> (String, String) {
        let n = |part: &str| format!("{}.{part}", self.name);
        let (d, heads) = (self.arch.dim, self.arch.heads);
        let width = d / heads;
        let scale = 1.0 / (width as f32).sqrt();
        let mut project = |b: &mut Builder, part: &str, x: &str, rows: usize, scale: f32, order: &[i64]| {
            let (mut weight, mut bias) =
                (take.get(&n(&format!("{part}.weight"))), take.get(&n(&format!("{part}.bias"))));
            weight.data.iter_mut().chain(&mut bias.data).for_each(|w| *w *= scale);
            let y = b.linear(&n(part), x, &weight, &bias);
            let y =
                b.reshape(&n(&format!("{part}.heads")), &y, &[0, rows as i64, heads as i64, width as i64]);
            b.transpose(&n(&format!("{part}.by_head")), &y, order)
        };
        let q = project(b, "q", queries, rows, scale, &[0, 2, 1, 3]);
        let k = project(b, "k", x, self.tokens, 1.0, &[0, 2, 3, 1]);
        let v = project(b, "v", x, self.tokens, 1.0, &[0, 2, 1, 3]);
        let scores = b.node("MatMul", &n("scores"), &[&q, &k]);
        let attention = b.softmax(&n("attention"), &scores, 3);
        let mixed = b.node("MatMul", &n("mixed"), &[&attention, &v]);
        let mixed = b.transpose(&n("mixed.by_token"), &mixed, &[0, 2, 1, 3]);
        let mixed = b.reshape(&n("mixed.flat"), &mixed, &[0, rows as i64, d as i64]);
        let (weight, bias) = self.scaled(take, "o", "scale1");
        (b.linear(&n("o"), &mixed, &weight, &bias), attention)
    }

    fn mlp(&self, b: &mut Builder, take: &mut Take<'_>, x: &str) -> String {
        let n = |part: &str| format!("{}.{part}", self.name);
        let mut project = |b: &mut Builder, part: &str| {
            let (weight, bias) =
                (take.get(&n(&format!("{part}.weight"))), take.get(&n(&format!("{part}.bias"))));
            b.linear(&n(part), x, &weight, &bias)
        };
        let (hidden, out) = match self.arch.mlp {
            Mlp::Gelu { .. } => {
                let x = project(b, "fc1");
                (gelu(b, &n("gelu"), &x), "fc2")
            }
            Mlp::SwiGlu { .. } => {
                let (gate, up) = (project(b, "gate"), project(b, "up"));
                let sigmoid = b.node("Sigmoid", &n("gate.sigmoid"), &[&gate]);
                let silu = b.node("Mul", &n("gate.silu"), &[&gate, &sigmoid]);
                (b.node("Mul", &n("gated"), &[&silu, &up]), "down")
            }
        };
        let (weight, bias) = self.scaled(take, out, "scale2");
        b.linear(&n(out), &hidden, &weight, &bias)
    }

    /// A projection with the LayerScale after it folded in.
    fn scaled(&self, take: &mut Take<'_>, part: &str, scale: &str) -> (Tensor, Tensor) {
        let n = |part: &str| format!("{}.{part}", self.name);
        let (mut weight, mut bias) =
            (take.get(&n(&format!("{part}.weight"))), take.get(&n(&format!("{part}.bias"))));
        let scale = take.get(&n(scale));
        for ((row, bias), s) in
            weight.data.chunks_exact_mut(weight.shape[1]).zip(&mut bias.data).zip(&scale.data)
        {
            for w in row.iter_mut() {
                *w *= s;
            }
            *bias *= s;
        }
        (weight, bias)
    }
}

/// `x * 0.5 * (1 + erf(x / sqrt 2))` in the operators that engines fuse.
fn gelu(b: &mut Builder, name: &str, x: &str) -> String {
    let n = |part: &str| format!("{name}.{part}");
    let root = b.scalar(&n("sqrt2"), std::f32::consts::SQRT_2);
    let one = b.scalar(&n("one"), 1.0);
    let half = b.scalar(&n("half"), 0.5);
    let scaled = b.node("Div", &n("scaled"), &[x, &root]);
    let erf = b.node("Erf", &n("erf"), &[&scaled]);
    let sum = b.node("Add", &n("sum"), &[&erf, &one]);
    let product = b.node("Mul", &n("product"), &[x, &sum]);
    b.node("Mul", name, &[&product, &half])
}
