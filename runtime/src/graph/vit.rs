//! The vision transformer as ONNX nodes.

use super::builder::Builder;
use super::layers::{Take, linear_scaled, mlp, norm};
use super::{Encoded, Part, SLICES, block_ends, pool};
use crate::backbone::{Arch, Backbone, Embedding, Rope, Tensor, Vit};

/// Writes the encoder for `slices`, the name of `[S, 3, H, W]`. Where CLS is the embedding and patches are not asked for, the last block
/// computes nothing but its row.
pub(super) fn encode(
    b: &mut Builder,
    backbone: &mut Backbone,
    vit: &Vit,
    slices: &str,
    grid: [usize; 2],
    part: Part<'_>,
) -> Encoded {
    let arch = backbone.arch.clone();
    let (d, count) = (arch.dim, grid[0] * grid[1]);
    let has_cls = vit.embedding == Embedding::Cls;
    let before = if has_cls { 1 + vit.registers } else { 0 };
    let tokens = before + count;
    let patches = part == Part::WithPatches;
    let [x, attention] = if let Part::AfterBlocks(symbol) = part {
        let ends = block_ends(slices);
        let rows = if has_cls { 1 } else { tokens };
        b.input(&ends[0], &[None, Some(rows), Some(d)], symbol);
        if has_cls {
            b.input(&ends[1], &[None, Some(vit.heads), Some(1), Some(tokens)], symbol);
        }
        ends
    } else {
        write_blocks(b, backbone, vit, slices, grid, patches)
    };
    let mut take = Take(&mut backbone.tensors);
    let x = norm(b, &mut take, "norm", &x, arch.norm_eps);
    if !has_cls {
        let (embedding, attention) = pool::write(b, &mut take, &arch, vit, &x, count);
        return Encoded { embedding, attention, patch: Some(x) };
    }

    // `attention` is [S, heads, rows, T]; CLS is row 0, and its own and the registers' columns are dropped.
    let row = if patches { b.slice("attention.row", &attention, 2, 0, 1) } else { attention };
    let mean = b.mean("attention.mean", &row, 1);
    let columns = b.slice("attention.patches", &mean, 2, before, tokens);
    let attention = b.reshape("attention.flat", &columns, &[-1, count as i64]);
    let (cls, patch) = if patches {
        (b.slice("norm.cls", &x, 1, 0, 1), Some(b.slice("norm.patch", &x, 1, before, tokens)))
    } else {
        (x, None)
    };
    let embedding = b.reshape("norm.flat", &cls, &[-1, d as i64]);
    Encoded { embedding, attention, patch }
}

/// Writes the blocks for `slices` as [`encode`] does, and makes outputs of what they give, see [`block_ends`].
pub(super) fn blocks(b: &mut Builder, backbone: &mut Backbone, vit: &Vit, slices: &str, grid: [usize; 2]) {
    let given = write_blocks(b, backbone, vit, slices, grid, false);
    let count = if vit.embedding == Embedding::Cls { 2 } else { 1 };
    for (given, end) in given.iter().zip(block_ends(slices)).take(count) {
        b.rename(given, &end);
        b.output(&end, &[None], SLICES);
    }
}

/// Patches to tokens, and all blocks: gives the names of the tokens, and of the last block's attention.
fn write_blocks(
    b: &mut Builder,
    backbone: &mut Backbone,
    vit: &Vit,
    slices: &str,
    grid: [usize; 2],
    patches: bool,
) -> [String; 2] {
    let arch = backbone.arch.clone();
    let (d, count) = (arch.dim, grid[0] * grid[1]);
    let has_cls = vit.embedding == Embedding::Cls;
    let table = backbone.token_table(grid).expect("a vision transformer has a table");
    let tokens = table.shape[0];
    let before = tokens - count;
    let rope = backbone.rope(grid).map(|rope| Rotation::new(b, &rope, before));
    let mut take = Take(&mut backbone.tensors);

    // Patches become tokens; CLS and registers are zero rows until the table is added.
    let (weight, bias) = take.layer("patch");
    let conv = b.patch_convolution("patch_embedding", slices, &weight, &bias);
    let flat = b.reshape("patch_embedding.flat", &conv, &[0, d as i64, count as i64]);
    let mut x = b.transpose("patch_embedding.tokens", &flat, &[0, 2, 1]);
    if before > 0 {
        x = b.pad("tokens.padded", &x, &[0, before as i64, 0, 0, 0, 0]);
    }
    let table = b.constant("tokens.table", &table.reshaped([1, tokens, d]));
    let mut x = b.node("Add", "tokens", &[&x, &table]);

    let mut attention = String::new();
    for n in 0..vit.depth {
        let last = n + 1 == vit.depth;
        let rows = if last && has_cls && !patches { Rows::Cls } else { Rows::All };
        let name = format!("blocks.{n}");
        let block = Block { name, arch: &arch, vit, tokens, rows, rope: rope.as_ref() };
        (x, attention) = block.write(b, &mut take, &x);
    }
    [x, attention]
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
    vit: &'a Vit,
    tokens: usize,
    rows: Rows,
    rope: Option<&'a Rotation>,
}

impl Block<'_> {
    /// Returns the token stream after the block and the attention probabilities.
    fn write(&self, b: &mut Builder, take: &mut Take<'_>, x: &str) -> (String, String) {
        let n = |part: &str| format!("{}.{part}", self.name);
        let normed = norm(b, take, &n("norm1"), x, self.arch.norm_eps);
        let (residual, queries, rows) = match self.rows {
            Rows::All => (x.to_owned(), normed.clone(), self.tokens),
            Rows::Cls => (b.slice(&n("cls"), x, 1, 0, 1), b.slice(&n("norm1.cls"), &normed, 1, 0, 1), 1),
        };
        let (attended, attention) = self.attention(b, take, &normed, &queries, rows);
        let x = b.node("Add", &n("attended"), &[&residual, &attended]);
        let normed = norm(b, take, &n("norm2"), &x, self.arch.norm_eps);
        let fed = mlp(b, take, &self.name, self.vit.mlp, &normed);
        (b.node("Add", &n("out"), &[&x, &fed]), attention)
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
        let (d, heads) = (self.arch.dim, self.vit.heads);
        let width = d / heads;
        let scale = 1.0 / (width as f32).sqrt();
        let mut project = |b: &mut Builder, part: &str, x: &str, rows: usize, scale: f32, order: &[i64]| {
            let (weight, bias) = take.scaled(&n(part), scale);
            let y = b.linear(&n(part), x, &weight, &bias);
            let y =
                b.reshape(&n(&format!("{part}.heads")), &y, &[0, rows as i64, heads as i64, width as i64]);
            b.transpose(&n(&format!("{part}.by_head")), &y, order)
        };
        let mut q = project(b, "q", queries, rows, scale, &[0, 2, 1, 3]);
        let mut k = project(b, "k", x, self.tokens, 1.0, &[0, 2, 3, 1]);
        let v = project(b, "v", x, self.tokens, 1.0, &[0, 2, 1, 3]);
        if let Some(rope) = self.rope {
            // CLS is not rotated.
            if self.rows == Rows::All {
                q = rope.queries.write(b, &n("q.rotated"), &q, width);
            }
            k = rope.keys.write(b, &n("k.rotated"), &k, width);
        }
        let scores = b.node("MatMul", &n("scores"), &[&q, &k]);
        let attention = b.softmax(&n("attention"), &scores, 3);
        let mixed = b.node("MatMul", &n("mixed"), &[&attention, &v]);
        let mixed = b.transpose(&n("mixed.by_token"), &mixed, &[0, 2, 1, 3]);
        let mixed = b.reshape(&n("mixed.flat"), &mixed, &[0, rows as i64, d as i64]);
        (linear_scaled(b, take, &n("o"), &n("scale1"), &mixed), attention)
    }
}

/// Rotary positions, as tables for queries `[S, heads, T, e]` and for keys `[S, heads, e, T]`.
struct Rotation {
    queries: Tables,
    keys: Tables,
}

/// Names of the tables, and the axis of a head's width.
struct Tables {
    cos: String,
    sin: String,
    axis: i64,
}

impl Rotation {
    /// Tables for all tokens: the `before` that stand before the patches are not rotated.
    fn new(b: &mut Builder, rope: &Rope, before: usize) -> Self {
        let width = rope.cos.shape[1];
        let whole = |table: &Tensor, value: f32, sign: &dyn Fn(usize) -> f32| {
            let mut data = vec![value; before * width];
            data.extend(table.data.iter().enumerate().map(|(i, x)| x * sign(i % width)));
            Tensor::new([data.len() / width, width], data)
        };
        let cos = whole(&rope.cos, 1.0, &|_| 1.0);
        // The halves are exchanged without a sign, which the first half of the sines has instead.
        let sin = whole(&rope.sin, 0.0, &|i| if i < width / 2 { -1.0 } else { 1.0 });
        let queries = Tables {
            cos: b.constant("rope.queries.cos", &cos),
            sin: b.constant("rope.queries.sin", &sin),
            axis: 3,
        };
        let keys = Tables {
            cos: b.constant("rope.keys.cos", &cos.transposed()),
            sin: b.constant("rope.keys.sin", &sin.transposed()),
            axis: 2,
        };
        Self { queries, keys }
    }
}

impl Tables {
    /// `x cos + exchange_halves(x) sin`.
    fn write(&self, b: &mut Builder, name: &str, x: &str, width: usize) -> String {
        let n = |part: &str| format!("{name}.{part}");
        let first = b.slice(&n("first"), x, self.axis, 0, width / 2);
        let second = b.slice(&n("second"), x, self.axis, width / 2, width);
        let exchanged = b.concat(&n("exchanged"), &[&second, &first], self.axis);
        let straight = b.node("Mul", &n("straight"), &[x, &self.cos]);
        let crossed = b.node("Mul", &n("crossed"), &[&exchanged, &self.sin]);
        b.node("Add", name, &[&straight, &crossed])
    }
}
