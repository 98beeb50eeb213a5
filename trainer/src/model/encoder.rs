use runtime::backbone::{Arch, Backbone, Body as BodyKind, Embedding, Mlp as MlpKind, Tensor as Stored};
use tch::{Device, Kind, TchError, Tensor};

use super::davit::Davit;
use super::parameters::{BlockFactors, Factors, Pair, Qkv};
use super::pooling_head::PoolingHead;
use super::rotation::Rotation;
use crate::Error;

/// A frozen backbone for slices of one size.
pub struct Encoder {
    arch: Arch,
    device: Device,
    body: Body,
}

enum Body {
    Vit(Box<VisionTransformer>),
    Davit(Davit),
}

/// What the encoder makes of slices.
pub struct Encoding {
    /// The slice embedding, `[S, d]`: CLS after the final norm, or what the backbone pools.
    pub cls: Tensor,
    /// Patch tokens after the final norm (of a DaViT, before it), `[S, N, d]`, where asked for.
    pub patch: Option<Tensor>,
    /// Last block's attention from CLS to the patches, mean over heads, `[S, N]`; the columns of CLS and registers
    /// are dropped and the rest is not normalised again. On a backbone without CLS, the pooling head's attention or each
    /// token's share in the pooled embedding ([`Arch::heatmap`] says which).
    pub cls_attention: Tensor,
}

/// Puts a backbone's tensors on a device.
pub(super) struct Loader<'a> {
    pub(super) backbone: &'a Backbone,
    pub(super) device: Device,
}

impl Loader<'_> {
    pub(super) fn load(&self, stored: &Stored) -> Result<Tensor, TchError> {
        let dims: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
        Tensor::f_from_slice(&stored.data)?.f_reshape(dims)?.f_to_device(self.device)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, TchError> {
        let stored = self.backbone.tensors.get(name);
        self.load(stored.ok_or_else(|| TchError::Convert(format!("the backbone has no tensor {name}")))?)
    }

    /// A tensor that not every backbone has.
    fn optional(&self, name: &str) -> Result<Option<Tensor>, TchError> {
        self.backbone.tensors.get(name).map(|stored| self.load(stored)).transpose()
    }

    pub(super) fn linear(&self, name: &str) -> Result<Linear, TchError> {
        let part = |part| self.tensor(&format!("{name}.{part}"));
        Ok(Linear { weight: part("weight")?, bias: part("bias")? })
    }

    pub(super) fn norm(&self, name: &str) -> Result<Norm, TchError> {
        let part = |part| self.tensor(&format!("{name}.{part}"));
        Ok(Norm { weight: part("weight")?, bias: part("bias")? })
    }

    /// The projections to query, key and value stacked, `[3 d, d]`.
    pub(super) fn qkv(&self, block: &str) -> Result<Linear, TchError> {
        let linear = |part| self.linear(&format!("{block}.{part}"));
        let parts = [linear("q")?, linear("k")?, linear("v")?];
        Ok(Linear {
            weight: Tensor::f_cat(&parts.each_ref().map(|p| &p.weight), 0)?,
            bias: Tensor::f_cat(&parts.each_ref().map(|p| &p.bias), 0)?,
        })
    }

    pub(super) fn mlp(&self, block: &str, kind: MlpKind) -> Result<Mlp, TchError> {
        let linear = |part| self.linear(&format!("{block}.{part}"));
        Ok(match kind {
            MlpKind::Gelu { .. } => {
                Mlp::Gelu { fc1: linear("fc1")?, fc2: linear("fc2")?, approximate: "none" }
            }
            MlpKind::GeluTanh { .. } => {
                Mlp::Gelu { fc1: linear("fc1")?, fc2: linear("fc2")?, approximate: "tanh" }
            }
            MlpKind::SwiGlu { .. } => {
                Mlp::SwiGlu { gate: linear("gate")?, up: linear("up")?, down: linear("down")? }
            }
        })
    }
}

impl Encoder {
    /// Puts a backbone's weights on `device`, for slices of `size` (height, width), which must divide into patches.
    pub fn new(backbone: &Backbone, size: [usize; 2], device: Device) -> Result<Self, Error> {
        let arch = backbone.arch.clone();
        let loader = Loader { backbone, device };
        let [height, width] = size;
        let grid = arch.grid(size).ok_or_else(|| {
            let patch = arch.patch;
            TchError::Convert(format!(
                "slices of {height}x{width} pixels do not divide into patches of {patch}"
            ))
        })?;
        let body = match &arch.body {
            BodyKind::Vit(_) => Body::Vit(Box::new(VisionTransformer::new(&loader, grid)?)),
            BodyKind::Davit(davit) => Body::Davit(Davit::new(&loader, davit, size)?),
        };
        Ok(Self { arch, device, body })
    }

    /// The same encoder with its blocks' matrix products and attention in `kind`, and those of a patch embedding: their weights
    /// are kept in it, and what they take is rounded to it. Norms, the residual stream, softmax of the CLS row, rotations, a
    /// pooling head, a DaViT's convolutions and the embeddings stay in f32, as do the LoRA factors, of which a rounded copy is
    /// used.
    pub fn with_precision(mut self, kind: Kind) -> Result<Self, TchError> {
        match &mut self.body {
            Body::Vit(vit) => vit.set_precision(kind)?,
            Body::Davit(davit) => davit.set_precision(kind)?,
        }
        Ok(self)
    }

    /// The same weights for another thread; nothing is copied.
    #[must_use]
    pub fn share(&self) -> Self {
        let body = match &self.body {
            Body::Vit(vit) => Body::Vit(Box::new(vit.share())),
            Body::Davit(davit) => Body::Davit(davit.share()),
        };
        Self { arch: self.arch.clone(), device: self.device, body }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The backbone's shape.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// Encodes slices `[S, 3, H, W]`, with LoRA where `factors` are given. Without `patches` the last block computes
    /// only what the embedding needs, which gives the same embedding.
    pub fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        match &self.body {
            Body::Vit(vit) => vit.encode(slices, factors, patches),
            Body::Davit(davit) => davit.encode(slices, factors, patches),
        }
    }
}

/// A frozen vision transformer.
struct VisionTransformer {
    sizes: Sizes,
    /// `[3 p p]` pixels a patch → `[d]`.
    patch: Linear,
    /// What is added to the patch tokens, `[N, d]`.
    positions: Tensor,
    /// `[1 + registers, d]`: CLS with its position, then the registers; none without CLS.
    prefix: Option<Tensor>,
    rotation: Option<Rotation>,
    blocks: Vec<Block>,
    norm: Norm,
    pooling: Option<PoolingHead>,
}

/// What the layers of a vision transformer have to know.
#[derive(Clone, Copy)]
struct Sizes {
    dim: i64,
    patch: i64,
    heads: i64,
    eps: f32,
    grid: [i64; 2],
}

pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

struct Block {
    norm1: Norm,
    /// Query, key and value stacked, `[3 d, d]`.
    qkv: Linear,
    o: Linear,
    scale1: Option<Tensor>,
    norm2: Norm,
    mlp: Mlp,
    scale2: Option<Tensor>,
}

pub(super) enum Mlp {
    /// `approximate`: `none` for the exact GELU, or `tanh`.
    Gelu {
        fc1: Linear,
        fc2: Linear,
        approximate: &'static str,
    },
    SwiGlu {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
}

impl VisionTransformer {
    fn new(loader: &Loader<'_>, grid: [usize; 2]) -> Result<Self, TchError> {
        let arch = &loader.backbone.arch;
        let BodyKind::Vit(vit) = &arch.body else {
            return Err(TchError::Convert("the backbone is no vision transformer".into()));
        };
        let blocks = (0..vit.depth)
            .map(|n| {
                let of = |part: &str| format!("blocks.{n}.{part}");
                Ok(Block {
                    norm1: loader.norm(&of("norm1"))?,
                    qkv: loader.qkv(&format!("blocks.{n}"))?,
                    o: loader.linear(&of("o"))?,
                    scale1: loader.optional(&of("scale1"))?,
                    norm2: loader.norm(&of("norm2"))?,
                    mlp: loader.mlp(&format!("blocks.{n}"), vit.mlp)?,
                    scale2: loader.optional(&of("scale2"))?,
                })
            })
            .collect::<Result<_, TchError>>()?;
        let table = loader.backbone.token_table(grid);
        let table =
            loader.load(&table.ok_or_else(|| TchError::Convert("the backbone has no table".into()))?)?;
        let count = (grid[0] * grid[1]) as i64;
        let before = table.size()[0] - count;
        let rope = loader.backbone.rope(grid);
        let patch = loader.linear("patch")?;
        let sizes = Sizes {
            dim: arch.dim as i64,
            patch: arch.patch as i64,
            heads: vit.heads as i64,
            eps: arch.norm_eps,
            grid: grid.map(|n| n as i64),
        };
        let pools = vit.embedding == Embedding::Pooled;
        Ok(Self {
            sizes,
            patch: Linear { weight: patch.weight.f_flatten(1, -1)?, bias: patch.bias },
            positions: table.f_narrow(0, before, count)?,
            prefix: if before > 0 { Some(table.f_narrow(0, 0, before)?) } else { None },
            rotation: rope.map(|rope| Rotation::new(loader, &rope, before)).transpose()?,
            blocks,
            norm: loader.norm("norm")?,
            pooling: if pools { Some(PoolingHead::new(loader, vit, arch.norm_eps)?) } else { None },
        })
    }

    fn set_precision(&mut self, kind: Kind) -> Result<(), TchError> {
        self.patch = self.patch.to_kind(kind)?;
        for block in &mut self.blocks {
            block.qkv = block.qkv.to_kind(kind)?;
            block.o = block.o.to_kind(kind)?;
            block.mlp = block.mlp.to_kind(kind)?;
        }
        Ok(())
    }

    fn share(&self) -> Self {
        Self {
            sizes: self.sizes,
            patch: self.patch.share(),
            positions: self.positions.shallow_clone(),
            prefix: self.prefix.as_ref().map(Tensor::shallow_clone),
            rotation: self.rotation.as_ref().map(Rotation::share),
            blocks: self.blocks.iter().map(Block::share).collect(),
            norm: self.norm.share(),
            pooling: self.pooling.as_ref().map(PoolingHead::share),
        }
    }

    fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        let s = slices.size()[0];
        let scale = factors.map_or(0.0, |f| f.scale);
        let mut x = self.embed(slices, factors)?;
        let tokens = x.size()[0] / s;
        let skipped = self.prefix.as_ref().map_or(0, |prefix| prefix.size()[0]);
        let run = Run { s, sizes: &self.sizes, rotation: self.rotation.as_ref(), scale };
        let mut attention = None;
        for (n, block) in self.blocks.iter().enumerate() {
            let factors = factors.map(|f| &f.blocks[n]);
            let last = n + 1 == self.blocks.len() && self.pooling.is_none();
            if last && !patches {
                let (cls, row) = block.cls_only(&x, &run, factors)?;
                x = cls;
                attention = Some(row);
            } else {
                let (all, row) = block.forward(&x, &run, factors, last)?;
                x = all;
                attention = row;
            }
        }
        let x = self.norm.apply(&x, self.sizes.eps)?;
        if let Some(head) = &self.pooling {
            let (cls, cls_attention) = head.apply(&x, s)?;
            let patch = if patches { Some(x.f_view((s, tokens, -1))?) } else { None };
            return Ok(Encoding { cls, patch, cls_attention });
        }
        let row = attention.ok_or_else(|| TchError::Convert("the backbone has no blocks".into()))?;
        let cls_attention =
            row.f_narrow(-1, skipped, tokens - skipped)?.f_mean_dim(1i64, false, None)?.f_squeeze_dim(1)?;
        let (cls, patch) = if patches {
            let x = x.f_view((s, tokens, -1))?;
            (x.f_select(1, 0)?, Some(x.f_narrow(1, skipped, tokens - skipped)?))
        } else {
            (x, None)
        };
        Ok(Encoding { cls, patch, cls_attention })
    }

    /// Tokens `[S T, d]` before the first block.
    fn embed(&self, slices: &Tensor, factors: Option<&Factors>) -> Result<Tensor, TchError> {
        let s = slices.size()[0];
        let Sizes { dim: d, patch: p, grid: [gh, gw], .. } = self.sizes;
        // A convolution whose stride is its kernel is a linear map of each patch's pixels.
        let pixels = slices
            .f_reshape([s, 3, gh, p, gw, p])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([s * gh * gw, 3 * p * p])?;
        let pair = factors.and_then(|f| f.patch.as_ref());
        let patches = self.patch.adapted(&pixels, pair, factors.map_or(0.0, |f| f.scale))?;
        let patches =
            patches.f_view((s, gh * gw, d))?.f_to_kind(self.positions.kind())?.f_add(&self.positions)?;
        let Some(prefix) = &self.prefix else { return patches.f_reshape([-1, d]) };
        let prefix = prefix.f_unsqueeze(0)?.f_expand([s, -1, -1], false)?;
        Tensor::f_cat(&[prefix, patches], 1)?.f_reshape([-1, d])
    }
}

impl Norm {
    pub(super) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    pub(super) fn apply(&self, x: &Tensor, eps: f32) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), f64::from(eps), false)
    }
}

impl Linear {
    pub(super) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    pub(super) fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        Ok(Self { weight: self.weight.f_to_kind(kind)?, bias: self.bias.f_to_kind(kind)? })
    }

    /// In the weight's precision, whatever that of `x`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_to_kind(self.weight.kind())?.f_linear(&self.weight, Some(&self.bias))
    }

    /// Output rows `start..start + len` as a layer of their own; nothing is copied.
    fn rows(&self, start: i64, len: i64) -> Result<Linear, TchError> {
        Ok(Linear { weight: self.weight.f_narrow(0, start, len)?, bias: self.bias.f_narrow(0, start, len)? })
    }

    /// `x Wᵀ + b + scale (x Aᵀ) Bᵀ` for `x` `[n, in]`.
    ///
    /// As a side branch: merging `W + scale B A` in every step instead costs the gradient of a full weight, half as much
    /// again as the projection's own two products.
    pub(super) fn adapted(&self, x: &Tensor, pair: Option<&Pair>, scale: f64) -> Result<Tensor, TchError> {
        let x = &x.f_to_kind(self.weight.kind())?;
        let y = self.apply(x)?;
        match pair {
            Some(pair) => add_low_rank(y, &pair.reduce(x, scale)?, &pair.b),
            None => Ok(y),
        }
    }
}

impl Pair {
    /// `scale x Aᵀ`, `[n, r]`, in the precision of `x`.
    fn reduce(&self, x: &Tensor, scale: f64) -> Result<Tensor, TchError> {
        x.f_linear(&self.a.f_to_kind(x.kind())?, None::<&Tensor>)?.f_mul_scalar(scale)
    }
}

/// `y + low bᵀ`, in the memory of `y`.
fn add_low_rank(mut y: Tensor, low: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    let b = b.f_to_kind(y.kind())?.f_transpose(0, 1)?;
    y.f_addmm_(low, &b)
}

impl Mlp {
    pub(super) fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        Ok(match self {
            Self::Gelu { fc1, fc2, approximate } => {
                Self::Gelu { fc1: fc1.to_kind(kind)?, fc2: fc2.to_kind(kind)?, approximate }
            }
            Self::SwiGlu { gate, up, down } => {
                Self::SwiGlu { gate: gate.to_kind(kind)?, up: up.to_kind(kind)?, down: down.to_kind(kind)? }
            }
        })
    }

    pub(super) fn share(&self) -> Self {
        match self {
            Self::Gelu { fc1, fc2, approximate } => {
                Self::Gelu { fc1: fc1.share(), fc2: fc2.share(), approximate }
            }
            Self::SwiGlu { gate, up, down } => {
                Self::SwiGlu { gate: gate.share(), up: up.share(), down: down.share() }
            }
        }
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Gelu { fc1, fc2, approximate } => fc2.apply(&fc1.apply(x)?.f_gelu(approximate)?),
            Self::SwiGlu { gate, up, down } => down.apply(&gate.apply(x)?.f_silu()?.f_mul(&up.apply(x)?)?),
        }
    }
}

impl Block {
    fn share(&self) -> Self {
        Self {
            norm1: self.norm1.share(),
            qkv: self.qkv.share(),
            o: self.o.share(),
            scale1: self.scale1.as_ref().map(Tensor::shallow_clone),
            norm2: self.norm2.share(),
            mlp: self.mlp.share(),
            scale2: self.scale2.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// All tokens `[S T, d]`; with `attend` also the CLS rows of the attention, `[S, heads, 1, T]`.
    fn forward(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
        attend: bool,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let normed = self.norm1.apply(x, run.sizes.eps)?;
        let d = run.sizes.dim;
        let qkv = project(&self.qkv, &normed, (0, 3 * d), factors.map(|f| &f.qkv), run.scale)?;
        let parts = heads(&qkv, run.s, run.sizes.heads, 3)?;
        let (q, k) = (run.rotated(parts.f_select(0, 0)?)?, run.rotated(parts.f_select(0, 1)?)?);
        let v = parts.f_select(0, 2)?;
        let mixed =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?;
        let row = if attend { Some(probabilities(&q.f_narrow(2, 0, 1)?, &k)?) } else { None };
        Ok((self.finish(x, &mixed, run, factors)?, row))
    }

    /// The block's output for the CLS tokens alone, `[S, d]`, and their attention rows, `[S, heads, 1, T]`: keys and
    /// values of all tokens, but query, output projection and MLP of CLS, whose query is not rotated.
    fn cls_only(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let normed = self.norm1.apply(x, run.sizes.eps)?;
        let (s, d) = (run.s, run.sizes.dim);
        let first = |x: &Tensor| x.f_view((s, -1, d))?.f_select(1, 0);
        let qkv = factors.map(|f| &f.qkv);
        let q = project(&self.qkv, &first(&normed)?, (0, d), qkv, run.scale)?;
        let q = heads(&q, s, run.sizes.heads, 1)?.f_select(0, 0)?;
        let kv = project(&self.qkv, &normed, (d, 2 * d), qkv, run.scale)?;
        let kv = heads(&kv, s, run.sizes.heads, 2)?;
        let row = probabilities(&q, &run.rotated(kv.f_select(0, 0)?)?)?;
        let mixed = row.f_to_kind(kv.kind())?.f_matmul(&kv.f_select(0, 1)?)?;
        Ok((self.finish(&first(x)?, &mixed, run, factors)?, row))
    }

    /// Output projection, LayerScale, residual and MLP: `mixed` is `[S, heads, T', d / heads]`, `x` `[S T', d]`.
    fn finish(
        &self,
        x: &Tensor,
        mixed: &Tensor,
        run: &Run<'_>,
        factors: Option<&BlockFactors>,
    ) -> Result<Tensor, TchError> {
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([-1, run.sizes.dim])?;
        let out = self.o.adapted(&mixed, factors.map(|f| &f.o), run.scale)?;
        let x = added(x, &out, self.scale1.as_ref())?;
        let out = self.mlp.apply(&self.norm2.apply(&x, run.sizes.eps)?)?;
        added(&x, &out, self.scale2.as_ref())
    }
}

/// What the blocks of one call have in common.
struct Run<'a> {
    /// Slices.
    s: i64,
    sizes: &'a Sizes,
    rotation: Option<&'a Rotation>,
    /// Of the factors.
    scale: f64,
}

impl Run<'_> {
    /// Queries or keys `[S, heads, T, e]` with their positions, where these are rotations.
    fn rotated(&self, x: Tensor) -> Result<Tensor, TchError> {
        match self.rotation {
            Some(rotation) => rotation.apply(&x),
            None => Ok(x),
        }
    }
}

/// A branch added to the stream, after its LayerScale where it has one.
fn added(x: &Tensor, branch: &Tensor, scale: Option<&Tensor>) -> Result<Tensor, TchError> {
    let branch = branch.f_to_kind(x.kind())?;
    scale.map_or_else(|| x.f_add(&branch), |scale| x.f_addcmul(&branch, scale))
}

/// Rows `start..start + len` of the adapted query-key-value projection of `x` `[n, d]`: `[n, len]`.
pub(super) fn project(
    qkv: &Linear,
    x: &Tensor,
    (start, len): (i64, i64),
    factors: Option<&Qkv>,
    scale: f64,
) -> Result<Tensor, TchError> {
    let x = &x.f_to_kind(qkv.weight.kind())?;
    let y = qkv.rows(start, len)?.apply(x)?;
    match factors {
        None => Ok(y),
        Some(Qkv::Fused(pair)) => add_low_rank(y, &pair.reduce(x, scale)?, &pair.b.f_narrow(0, start, len)?),
        Some(Qkv::Separate(pairs)) => {
            let d = pairs[0].b.size()[0];
            let used = &pairs[(start / d) as usize..((start + len) / d) as usize];
            let deltas = used
                .iter()
                .map(|pair| pair.reduce(x, scale)?.f_linear(&pair.b.f_to_kind(x.kind())?, None::<&Tensor>))
                .collect::<Result<Vec<_>, _>>()?;
            y.f_add(&Tensor::f_cat(&deltas, 1)?)
        }
    }
}

/// `[S T, parts d]` → `[parts, S, heads, T, d / heads]`.
pub(super) fn heads(x: &Tensor, s: i64, heads: i64, parts: i64) -> Result<Tensor, TchError> {
    let (rows, columns) = x.size2()?;
    x.f_view_([s, rows / s, parts, heads, columns / parts / heads])?.f_permute([2, 0, 3, 1, 4])
}

/// Attention probabilities of queries `[S, h, T', e]` over keys `[S, h, T, e]`, in f32.
pub(super) fn probabilities(q: &Tensor, k: &Tensor) -> Result<Tensor, TchError> {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scale)?.f_softmax(-1, Kind::Float)
}
