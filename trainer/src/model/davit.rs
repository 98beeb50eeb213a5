use runtime::backbone::{Davit as Structure, Mlp as MlpKind, Stage as Sizes};
use tch::{Kind, TchError, Tensor};

use super::encoder::{Encoding, Loader};
use super::layers::{Linear, Mlp, Norm, heads};
use super::parameters::{BlockFactors, Factors};

/// A frozen DaViT: convolutions between its stages, window blocks and channel blocks in turn within them. The stream is kept as
/// tokens `[S, N, d]`.
pub(super) struct Davit {
    stages: Vec<Stage>,
    norm: Option<Norm>,
    eps: f32,
    window: i64,
}

struct Stage {
    sizes: Sizes,
    embed: Linear,
    norm: Norm,
    blocks: Vec<Block>,
}

struct Block {
    conv1: Linear,
    norm1: Norm,
    qkv: Linear,
    o: Linear,
    conv2: Linear,
    norm2: Norm,
    mlp: Mlp,
}

impl Davit {
    pub(super) fn new(loader: &Loader<'_>, davit: &Structure) -> Result<Self, TchError> {
        let mut number = 0;
        let mut stages = Vec::new();
        for (s, sizes) in davit.stages.iter().enumerate() {
            let blocks = (0..2 * sizes.depth)
                .map(|n| Block::new(loader, &format!("blocks.{}", number + n), sizes.hidden))
                .collect::<Result<Vec<_>, _>>()?;
            number += blocks.len();
            stages.push(Stage {
                sizes: *sizes,
                embed: loader.linear(&format!("embed.{s}"))?,
                norm: loader.norm(&format!("embed.{s}.norm"))?,
                blocks,
            });
        }
        let norm = if davit.final_norm { Some(loader.norm("norm")?) } else { None };
        Ok(Self { stages, norm, eps: loader.backbone.arch.norm_eps, window: davit.window as i64 })
    }

    /// Attention and MLPs in `kind`; what they add to the stream is f32 again.
    pub(super) fn set_precision(&mut self, kind: Kind) -> Result<(), TchError> {
        for block in self.stages.iter_mut().flat_map(|stage| &mut stage.blocks) {
            block.qkv = block.qkv.to_kind(kind)?;
            block.o = block.o.to_kind(kind)?;
            block.mlp = block.mlp.to_kind(kind)?;
        }
        Ok(())
    }

    pub(super) fn share(&self) -> Self {
        let stage = |stage: &Stage| Stage {
            sizes: stage.sizes,
            embed: stage.embed.share(),
            norm: stage.norm.share(),
            blocks: stage.blocks.iter().map(Block::share).collect(),
        };
        Self {
            stages: self.stages.iter().map(stage).collect(),
            norm: self.norm.as_ref().map(Norm::share),
            eps: self.eps,
            window: self.window,
        }
    }

    pub(super) fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        let mut number = 0;
        let (_, _, h, w) = slices.size4()?;
        let mut grid = [h, w];
        let mut x = slices.shallow_clone();
        for (s, stage) in self.stages.iter().enumerate() {
            if s > 0 {
                x = image(&stage.norm.apply(&x, self.eps)?, grid)?;
            }
            // Rounded up: the convolution is padded.
            grid = grid.map(|n| (n + stage.sizes.stride as i64 - 1) / stage.sizes.stride as i64);
            x = tokens(&convolution(&stage.embed, &x, stage.sizes.stride)?)?;
            if s == 0 {
                x = stage.norm.apply(&x, self.eps)?;
            }
            for (n, block) in stage.blocks.iter().enumerate() {
                let attention = Attention {
                    stage,
                    grid,
                    // Windows and channels in turn.
                    window: if n % 2 == 0 { Some(self.window) } else { None },
                    factors: factors.map(|f| &f.blocks[number]),
                };
                x = block.forward(&x, &attention, self.eps)?;
                number += 1;
            }
        }
        let mean = x.f_mean_dim(1i64, false, None)?;
        let (cls, direction) = match &self.norm {
            None => (mean.shallow_clone(), mean),
            Some(norm) => {
                let pooled = norm.apply(&mean, self.eps)?;
                let weighted = pooled.f_sub(&norm.bias)?.f_mul(&norm.weight)?;
                let centre = weighted.f_mean_dim(1i64, true, None)?;
                (pooled, weighted.f_sub(&centre)?)
            }
        };
        // Each token's share in the embedding, as `runtime::graph` derives it.
        let parts = x.f_matmul(&direction.f_unsqueeze(2)?)?.f_squeeze_dim(2)?;
        let sum = parts.f_sum_dim_intlist(1i64, true, None)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        Ok(Encoding { cls, cls_attention: parts.f_div(&sum)?, patch: patches.then_some(x) })
    }
}

/// A convolution of an odd kernel, padded by half of it; depthwise where the weight has one input channel.
fn convolution(layer: &Linear, x: &Tensor, stride: usize) -> Result<Tensor, TchError> {
    let shape = layer.weight.size();
    let groups = if shape[1] == 1 { shape[0] } else { 1 };
    let (stride, pad) = ([stride as i64; 2], [shape[2] / 2; 2]);
    x.f_conv2d(&layer.weight, Some(&layer.bias), stride, pad, [1, 1], groups)
}

/// Tokens `[S, N, c]` as an image `[S, c, h, w]`.
fn image(x: &Tensor, [h, w]: [i64; 2]) -> Result<Tensor, TchError> {
    let [s, channels] = [x.size()[0], x.size()[2]];
    x.f_transpose(1, 2)?.f_reshape([s, channels, h, w])
}

/// An image `[S, c, h, w]` as tokens `[S, N, c]`.
fn tokens(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_flatten(2, 3)?.f_transpose(1, 2)?.f_contiguous()
}

/// What a block's attention has to know.
struct Attention<'a> {
    stage: &'a Stage,
    /// Rows and columns of tokens.
    grid: [i64; 2],
    /// Side of a window; among channels where there is none.
    window: Option<i64>,
    factors: Option<&'a BlockFactors>,
}

impl Block {
    fn new(loader: &Loader<'_>, name: &str, hidden: usize) -> Result<Self, TchError> {
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            conv1: loader.linear(&of("conv1"))?,
            norm1: loader.norm(&of("norm1"))?,
            qkv: loader.qkv(name)?,
            o: loader.linear(&of("o"))?,
            conv2: loader.linear(&of("conv2"))?,
            norm2: loader.norm(&of("norm2"))?,
            mlp: loader.mlp(name, MlpKind::Gelu { hidden })?,
        })
    }

    fn share(&self) -> Self {
        Self {
            conv1: self.conv1.share(),
            norm1: self.norm1.share(),
            qkv: self.qkv.share(),
            o: self.o.share(),
            conv2: self.conv2.share(),
            norm2: self.norm2.share(),
            mlp: self.mlp.share(),
        }
    }

    fn forward(&self, x: &Tensor, attention: &Attention<'_>, eps: f32) -> Result<Tensor, TchError> {
        let grid = attention.grid;
        let x = x.f_add(&tokens(&convolution(&self.conv1, &image(x, grid)?, 1)?)?)?;
        let normed = self.norm1.apply(&x, eps)?;
        let attended = match attention.window {
            Some(side) => self.in_windows(&normed, attention, side)?,
            None => self.among_channels(&normed, attention)?,
        };
        let x = x.f_add(&attended.f_to_kind(x.kind())?)?;
        let x = x.f_add(&tokens(&convolution(&self.conv2, &image(&x, grid)?, 1)?)?)?;
        x.f_add(&self.mlp.apply(&self.norm2.apply(&x, eps)?)?.f_to_kind(x.kind())?)
    }

    /// Query, key and value of tokens `[n, d]`: `[n, 3 d]`.
    fn project(&self, x: &Tensor, attention: &Attention<'_>) -> Result<Tensor, TchError> {
        self.qkv.adapted(x, attention.factors.map(|f| &f.qkv))
    }

    fn output(&self, mixed: &Tensor, attention: &Attention<'_>) -> Result<Tensor, TchError> {
        self.o.adapted(mixed, attention.factors.map(|f| &f.o))
    }

    /// Attention among the tokens of each window. The grid is filled up with zeros to whole windows, and these take part.
    fn in_windows(&self, x: &Tensor, attention: &Attention<'_>, side: i64) -> Result<Tensor, TchError> {
        let (s, d) = (x.size()[0], x.size()[2]);
        let [h, w] = attention.grid;
        let [rows, columns] = [h, w].map(|n| (n + side - 1) / side);
        let padding = [0, 0, 0, columns * side - w, 0, rows * side - h];
        let windows = x
            .f_view((s, h, w, d))?
            .f_constant_pad_nd(padding)?
            .f_reshape([s, rows, side, columns, side, d])?
            .f_permute([0, 1, 3, 2, 4, 5])?
            .f_reshape([-1, d])?;
        let count = attention.stage.sizes.heads as i64;
        let [q, k, v] = heads(&self.project(&windows, attention)?, s * rows * columns, count)?;
        let mixed =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([-1, d])?;
        self.output(&mixed, attention)?
            .f_view_([s, rows, columns, side, side, d])?
            .f_permute([0, 1, 3, 2, 4, 5])?
            .f_reshape([s, rows * side, columns * side, d])?
            .f_narrow(1, 0, h)?
            .f_narrow(2, 0, w)?
            .f_reshape([s, h * w, d])
    }

    /// Attention among the channels of each group: every channel attends to every other by their products over all tokens.
    fn among_channels(&self, x: &Tensor, attention: &Attention<'_>) -> Result<Tensor, TchError> {
        let (s, n, d) = x.size3()?;
        let groups = attention.stage.sizes.groups as i64;
        let qkv = self.project(&x.f_reshape([-1, d])?, attention)?;
        let [q, k, v] = heads(&qkv, s, groups)?.map(|part| part.f_transpose(2, 3));
        let (q, k, v) = (q?, k?, v?);
        let scale = 1.0 / (n as f64).sqrt();
        let scores = q.f_mul_scalar(scale)?.f_matmul(&k.f_transpose(2, 3)?)?;
        let mixed = scores.f_softmax(-1, Kind::Float)?.f_to_kind(v.kind())?.f_matmul(&v)?;
        let mixed = mixed.f_permute([0, 3, 1, 2])?.f_reshape([-1, d])?;
        self.output(&mixed, attention)?.f_view((s, n, d))
    }
}
