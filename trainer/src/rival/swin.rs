//! A Swin transformer in three dimensions (Liu et al., arXiv 2103.14030) as the encoder of MONAI's Swin UNETR has it (Hatamizadeh et
//! al., arXiv 2201.01266), in its second version: a residual convolution block opens each stage.

use tch::{Device, Kind, TchError, Tensor};

use super::layers::{Conv, Kernel, LayerNorm, Linear};
use super::unet::Residual;
use super::weights::Maker;
use crate::random::Draw;

/// Tokens along an axis of a window.
const WINDOW: i64 = 7;
/// Blocks of a stage, of which every other one shifts its windows.
const DEPTH: usize = 2;
/// Heads of each stage.
const HEADS: [i64; 4] = [3, 6, 12, 24];
/// Hidden units of a block for each of its channels.
const EXPANSION: i64 = 4;
/// What tokens of different regions that a shift brought into one window see of each other.
const APART: f64 = -100.0;

/// Which of 2³ neighbours patch merging takes, by their places along the axes. Two come twice and two never: so it was in MONAI to
/// version 1.4, with which the published weights were made. Later versions take each neighbour once, in an order of their own.
const MERGED: [[i64; 3]; 8] =
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]];

/// The encoder.
pub(super) struct Swin {
    embed: Conv,
    stages: Vec<Stage>,
}

struct Stage {
    residual: Residual,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// From eight neighbours to twice the channels, `[2 C, 8 C]`.
    reduction: Tensor,
}

struct Block {
    norm1: LayerNorm,
    /// Bias of each head by the distance of two tokens, `[(2 WINDOW - 1)³, heads]`.
    table: Tensor,
    /// Query, key and value.
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

/// How a stage's grid of tokens is cut into windows.
struct Windows {
    /// Tokens along each axis, and with those that fill up the last windows.
    size: [i64; 3],
    padded: [i64; 3],
    window: [i64; 3],
    shift: [i64; 3],
    /// Rows of the blocks' tables for two tokens of a window, `[n n]`.
    places: Tensor,
    /// Of the shifted windows, `[windows, 1, n, n]`; `None` where the grid is one window.
    mask: Option<Tensor>,
}

impl Swin {
    /// For images of so many channels; `width` channels after the patch embedding, twice as many after each stage.
    pub(super) fn new(make: &mut Maker, name: &str, [channels, width]: [i64; 2]) -> Result<Self, TchError> {
        let kernel = Kernel::new(3, 2).stride(2).biased().uniform();
        let embed = Conv::new(make, &format!("{name}.patch_embed.proj"), [channels, width], kernel)?;
        let mut stages = Vec::new();
        for (n, heads) in (1..).zip(HEADS) {
            let of = |part: &str| format!("{name}.layers{n}{part}");
            stages.push(Stage::new(make, of, width << (n - 1), heads)?);
        }
        Ok(Self { embed, stages })
    }

    /// Images `[B, C, S, H, W]`, sizes multiples of 32 → after the embedding and each stage `[B, width 2ⁱ, S / 2ⁱ⁺¹, …]`, normalised
    /// over the channels.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Vec<Tensor>, TchError> {
        let mut x = self.embed.apply(x)?;
        let mut outputs = vec![normed(&x)?];
        for stage in &self.stages {
            x = stage.apply(&x)?;
            outputs.push(normed(&x)?);
        }
        Ok(outputs)
    }
}

/// `[B, C, S, H, W]` over `C`, without weights.
fn normed(x: &Tensor) -> Result<Tensor, TchError> {
    let none = None::<&Tensor>;
    let last = x.f_movedim_int(1, -1)?;
    last.f_layer_norm([x.size()[1]], none, none, 1e-5, true)?.f_movedim_int(-1, 1)?.f_contiguous()
}

impl Stage {
    fn new(make: &mut Maker, of: impl Fn(&str) -> String, width: i64, heads: i64) -> Result<Self, TchError> {
        let residual = Residual::new(make, &of("c.0.layer"), [width; 2])?;
        let blocks = (0..DEPTH).map(|n| Block::new(make, &of(&format!(".0.blocks.{n}")), width, heads));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let norm = LayerNorm::new(make, &of(".0.downsample.norm"), 8 * width)?;
        let draw = Draw::Uniform(1.0 / ((8 * width) as f64).sqrt());
        let reduction = make.leaf(of(".0.downsample.reduction.weight"), &[2 * width, 8 * width], draw)?;
        Ok(Self { residual, blocks, norm, reduction })
    }

    /// `[B, C, S, H, W]` → `[B, 2 C, S / 2, H / 2, W / 2]`.
    fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let mut x = self.residual.apply(x)?.f_movedim_int(1, -1)?.f_contiguous()?;
        let (_, s, h, w, _) = x.size5()?;
        let windows = Windows::new([s, h, w], x.device())?;
        for (n, block) in self.blocks.iter().enumerate() {
            x = block.apply(&x, &windows, n % 2 == 1)?;
        }
        let neighbours = MERGED.iter().map(|places| {
            let mut part = x.shallow_clone();
            for (axis, &place) in (1..).zip(places) {
                part = part.f_slice(axis, place, None, 2)?;
            }
            Ok(part)
        });
        let x = Tensor::f_cat(&neighbours.collect::<Result<Vec<_>, TchError>>()?, -1)?;
        self.norm.apply(&x)?.f_linear(&self.reduction, None::<&Tensor>)?.f_movedim_int(-1, 1)?.f_contiguous()
    }
}

impl Block {
    fn new(make: &mut Maker, name: &str, d: i64, heads: i64) -> Result<Self, TchError> {
        let of = |part: &str| format!("{name}.{part}");
        let norm1 = LayerNorm::new(make, &of("norm1"), d)?;
        let rows = (2 * WINDOW - 1).pow(3);
        let table = of("attn.relative_position_bias_table");
        let table = make.leaf(table, &[rows, heads], Draw::Normal(0.02))?;
        let qkv = Linear::new(make, &of("attn.qkv"), [d, 3 * d])?;
        let proj = Linear::new(make, &of("attn.proj"), [d, d])?;
        let norm2 = LayerNorm::new(make, &of("norm2"), d)?;
        let fc1 = Linear::new(make, &of("mlp.linear1"), [d, EXPANSION * d])?;
        let fc2 = Linear::new(make, &of("mlp.linear2"), [EXPANSION * d, d])?;
        Ok(Self { norm1, table, qkv, proj, norm2, fc1, fc2, heads })
    }

    /// Tokens `[B, S, H, W, C]` → the same.
    fn apply(&self, x: &Tensor, windows: &Windows, shifted: bool) -> Result<Tensor, TchError> {
        let mask = windows.mask.as_ref().filter(|_| shifted);
        let seen = windows.cut(&self.norm1.apply(x)?, mask.is_some())?;
        let seen = windows.joined(&self.attend(&seen, &windows.places, mask)?, mask.is_some())?;
        let x = x.f_add(&seen)?;
        let fed = self.fc2.apply(&self.fc1.apply(&self.norm2.apply(&x)?)?.f_gelu("none")?)?;
        x.f_add(&fed)
    }

    /// Windows `[N, n, C]` → the same; each token looks at those of its window.
    fn attend(&self, x: &Tensor, places: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (count, n, d) = x.size3()?;
        let bias = self.table.f_index_select(0, places)?.f_view([1, n, n, self.heads])?;
        let mut bias = bias.f_permute([0, 3, 1, 2])?;
        if let Some(mask) = mask {
            let repeats = count / mask.size()[0];
            bias = bias.f_add(mask)?.f_repeat([repeats, 1, 1, 1])?;
        }
        let parts = self.qkv.apply(x)?.f_view([count, n, 3, self.heads, d / self.heads])?.f_unbind(2)?;
        let of = |part: usize| parts[part].f_transpose(1, 2);
        let mixed = Tensor::f_scaled_dot_product_attention(
            &of(0)?,
            &of(1)?,
            &of(2)?,
            Some(&bias),
            0.0,
            false,
            None,
            false,
        )?;
        self.proj.apply(&mixed.f_transpose(1, 2)?.f_reshape([count, n, d])?)
    }
}

impl Windows {
    /// For a grid of `size` tokens: an axis with no more tokens than a window is cut to one, which is not shifted.
    fn new(size: [i64; 3], device: Device) -> Result<Self, TchError> {
        let window = size.map(|n| n.min(WINDOW));
        let shift = size.map(|n| if n <= WINDOW { 0 } else { WINDOW / 2 });
        let padded = [0, 1, 2].map(|axis| (size[axis] + window[axis] - 1) / window[axis] * window[axis]);
        let places = places(window.iter().product(), device)?;
        let mut windows = Self { size, padded, window, shift, places, mask: None };
        if shift != [0; 3] {
            windows.mask = Some(windows.apart(device)?);
        }
        Ok(windows)
    }

    /// [`APART`] where the two tokens of a window are of different regions, `[windows, 1, n, n]`.
    fn apart(&self, device: Device) -> Result<Tensor, TchError> {
        // After a shift the last window of an axis holds its end and its start.
        let region = |axis: usize, at: i64| {
            let (end, shift) = (self.padded[axis], self.shift[axis]);
            if shift == 0 {
                0
            } else {
                i64::from(at >= end - self.window[axis]) + i64::from(at >= end - shift)
            }
        };
        let [s, h, w] = self.padded;
        let mut regions = Vec::with_capacity((s * h * w) as usize);
        for i in 0..s {
            for j in 0..h {
                regions.extend((0..w).map(|k| 9 * region(0, i) + 3 * region(1, j) + region(2, k)));
            }
        }
        let regions = Tensor::f_from_slice(&regions)?.f_view([1, s, h, w, 1])?.f_to_device(device)?;
        let regions = self.partition(&regions)?;
        let differ = regions.f_unsqueeze(1)?.f_ne_tensor(&regions.f_unsqueeze(2)?)?.f_squeeze_dim(-1)?;
        differ.f_to_kind(Kind::Float)?.f_mul_scalar(APART)?.f_unsqueeze(1)
    }

    /// Tokens `[B, S, H, W, C]` → windows `[N, n, C]`; what fills up the last ones is 0.
    fn cut(&self, x: &Tensor, shifted: bool) -> Result<Tensor, TchError> {
        let more = [2, 1, 0].map(|axis| [0, self.padded[axis] - self.size[axis]]);
        let mut x = if self.padded == self.size {
            x.shallow_clone()
        } else {
            x.f_constant_pad_nd([[0, 0], more[0], more[1], more[2]].concat())?
        };
        if shifted {
            x = x.f_roll(self.shift.map(|n| -n), [1, 2, 3])?;
        }
        self.partition(&x)
    }

    /// Tokens of the padded size → windows.
    fn partition(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let ([a, b, c], [s, h, w]) = (self.window, self.padded);
        let x = x.f_view([-1, s / a, a, h / b, b, w / c, c, x.size()[4]].as_slice())?;
        x.f_permute([0, 1, 3, 5, 2, 4, 6, 7])?.f_reshape([-1, a * b * c, x.size()[7]])
    }

    /// Back from [`Windows::cut`].
    fn joined(&self, x: &Tensor, shifted: bool) -> Result<Tensor, TchError> {
        let ([a, b, c], [s, h, w]) = (self.window, self.padded);
        let channels = x.size()[2];
        let x = x.f_view([-1, s / a, h / b, w / c, a, b, c, channels].as_slice())?;
        let mut x = x.f_permute([0, 1, 4, 2, 5, 3, 6, 7])?.f_reshape([-1, s, h, w, channels])?;
        if shifted {
            x = x.f_roll(self.shift, [1, 2, 3])?;
        }
        for (axis, &n) in (1..).zip(&self.size) {
            x = x.f_narrow(axis, 0, n)?;
        }
        Ok(x)
    }
}

/// Rows of the table for each two of the first `n` tokens of a window of [`WINDOW`]³, `[n n]`. In a window that is cut short they stay
/// those of the whole one's first tokens, not those of the tokens' own distances, since that is how MONAI has it and weights were fitted.
fn places(n: i64, device: Device) -> Result<Tensor, TchError> {
    let span = 2 * WINDOW - 1;
    let at = |token: i64| [token / (WINDOW * WINDOW), token / WINDOW % WINDOW, token % WINDOW];
    let row = |i: i64, j: i64| {
        let (i, j) = (at(i), at(j));
        (0..3).fold(0, |row, axis| row * span + i[axis] - j[axis] + WINDOW - 1)
    };
    let rows: Vec<i64> = (0..n).flat_map(|i| (0..n).map(move |j| row(i, j))).collect();
    Tensor::f_from_slice(&rows)?.f_to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_put_together_again() {
        let size = [4, 8, 15];
        let windows = Windows::new(size, Device::Cpu).unwrap();
        assert_eq!((windows.window, windows.shift, windows.padded), ([4, 7, 7], [0, 3, 3], [4, 14, 21]));
        let x = Tensor::arange(2 * 4 * 8 * 15 * 2, (Kind::Float, Device::Cpu)).view([2, 4, 8, 15, 2]);
        for shifted in [false, true] {
            let cut = windows.cut(&x, shifted).unwrap();
            assert_eq!(cut.size(), [2 * 6, 196, 2]);
            assert_eq!(windows.joined(&cut, shifted).unwrap(), x);
        }
        // Whole windows are of one region; the last one of an axis of two, that of both of four.
        let mask = windows.mask.unwrap();
        assert_eq!(mask.size(), [6, 1, 196, 196]);
        let seen: Vec<f64> = (0..6).map(|n| mask.get(n).eq(0.0).sum(Kind::Float).double_value(&[])).collect();
        let all = 196.0 * 196.0;
        // 3 of 7 rows or columns are of the other region.
        let two = all * (16.0 + 9.0) / 49.0;
        assert_eq!(seen[..3], [all, all, two]);
        assert_eq!(seen[3..], [two, two, two * 25.0 / 49.0]);
        assert!(Windows::new([2, 4, 7], Device::Cpu).unwrap().mask.is_none());
    }

    #[test]
    fn places_are_distances_in_the_whole_window() {
        let rows = Vec::<i64>::try_from(places(343, Device::Cpu).unwrap()).unwrap();
        let middle = (13 * 13 * 13 - 1) / 2;
        assert_eq!((rows[0], rows[342], rows[342 * 343]), (middle, 0, 13 * 13 * 13 - 1));
        assert_eq!(rows[7], middle - 13);
        let few = Vec::<i64>::try_from(places(32, Device::Cpu).unwrap()).unwrap();
        assert_eq!(few[..32], rows[..32]);
        assert_eq!(few[32 * 31], rows[343 * 31]);
    }
}
