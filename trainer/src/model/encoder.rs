use runtime::backbone::{Arch, Backbone, Mlp as MlpKind, Tensor as Stored};
use tch::{Device, Kind, TchError, Tensor};

use super::parameters::{BlockFactors, Factors, Pair, Qkv};
use crate::Error;

/// A frozen vision transformer for slices of one size.
pub struct Encoder {
    arch: Arch,
    device: Device,
    /// `[3 p p]` pixels a patch → `[d]`.
    patch: Linear,
    /// `[N, d]`.
    positions: Tensor,
    /// `[1 + registers, d]`: CLS with its position, then the registers.
    prefix: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    grid: [i64; 2],
}

/// What the encoder makes of slices.
pub struct Encoding {
    /// CLS after the final norm, `[S, d]`.
    pub cls: Tensor,
    /// Patch tokens after the final norm, `[S, N, d]`, where asked for.
    pub patch: Option<Tensor>,
    /// Last block's attention from CLS to the patches, mean over heads, `[S, N]`; the columns of CLS and registers
    /// are dropped and the rest is not normalised again.
    pub cls_attention: Tensor,
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
}

struct Block {
    norm1: Norm,
    /// Query, key and value stacked, `[3 d, d]`.
    qkv: Linear,
    o: Linear,
    scale1: Tensor,
    norm2: Norm,
    mlp: Mlp,
    scale2: Tensor,
}

enum Mlp {
    Gelu { fc1: Linear, fc2: Linear },
    SwiGlu { gate: Linear, up: Linear, down: Linear },
}

impl Encoder {
    /// Puts a backbone's weights on `device`, for slices of `size` (height, width; multiples of the patch).
    pub fn new(backbone: &Backbone, size: [usize; 2], device: Device) -> Result<Self, Error> {
        let arch = backbone.arch;
        let p = arch.patch;
        let grid = [size[0] / p, size[1] / p];
        let load = |stored: &Stored| -> Result<Tensor, TchError> {
            let dims: Vec<i64> = stored.shape.iter().map(|&n| n as i64).collect();
            Tensor::f_from_slice(&stored.data)?.f_reshape(dims)?.f_to_device(device)
        };
        let get = |name: String| -> Result<Tensor, TchError> {
            let stored = backbone.tensors.get(&name);
            load(stored.ok_or_else(|| TchError::Convert(format!("the backbone has no tensor {name}")))?)
        };
        let linear = |name: String| -> Result<Linear, TchError> {
            Ok(Linear { weight: get(format!("{name}.weight"))?, bias: get(format!("{name}.bias"))? })
        };
        let norm = |name: String| -> Result<Norm, TchError> {
            Ok(Norm { weight: get(format!("{name}.weight"))?, bias: get(format!("{name}.bias"))? })
        };
        let blocks = (0..arch.depth)
            .map(|n| {
                let of = |part: &str| format!("blocks.{n}.{part}");
                let parts = [linear(of("q"))?, linear(of("k"))?, linear(of("v"))?];
                let qkv = Linear {
                    weight: Tensor::f_cat(&parts.each_ref().map(|p| &p.weight), 0)?,
                    bias: Tensor::f_cat(&parts.each_ref().map(|p| &p.bias), 0)?,
                };
                let mlp = match arch.mlp {
                    MlpKind::Gelu { .. } => Mlp::Gelu { fc1: linear(of("fc1"))?, fc2: linear(of("fc2"))? },
                    MlpKind::SwiGlu { .. } => Mlp::SwiGlu {
                        gate: linear(of("gate"))?,
                        up: linear(of("up"))?,
                        down: linear(of("down"))?,
                    },
                };
                Ok(Block {
                    norm1: norm(of("norm1"))?,
                    qkv,
                    o: linear(of("o"))?,
                    scale1: get(of("scale1"))?,
                    norm2: norm(of("norm2"))?,
                    mlp,
                    scale2: get(of("scale2"))?,
                })
            })
            .collect::<Result<_, TchError>>()?;
        let cls = get("cls".into())?.f_add(&get("position.cls".into())?)?.f_reshape([1, -1])?;
        let prefix = match backbone.tensors.get("registers") {
            Some(registers) => Tensor::f_cat(&[cls, load(registers)?], 0)?,
            None => cls,
        };
        let patch = linear("patch".into())?;
        Ok(Self {
            patch: Linear { weight: patch.weight.f_flatten(1, -1)?, bias: patch.bias },
            positions: load(&backbone.positions(grid))?,
            prefix,
            blocks,
            norm: norm("norm".into())?,
            grid: grid.map(|n| n as i64),
            arch,
            device,
        })
    }

    /// The same encoder with its matrix products and attention in `kind`: their weights are kept in it, and what they take
    /// is rounded to it. Norms, the residual stream, softmax of the CLS row and the embeddings stay in f32, as do the LoRA
    /// factors, of which a rounded copy is used.
    pub fn with_precision(mut self, kind: Kind) -> Result<Self, TchError> {
        self.patch = self.patch.to_kind(kind)?;
        for block in &mut self.blocks {
            block.qkv = block.qkv.to_kind(kind)?;
            block.o = block.o.to_kind(kind)?;
            block.mlp = block.mlp.to_kind(kind)?;
        }
        Ok(self)
    }

    /// The same weights for another thread; nothing is copied.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            arch: self.arch,
            device: self.device,
            patch: self.patch.share(),
            positions: self.positions.shallow_clone(),
            prefix: self.prefix.shallow_clone(),
            blocks: self.blocks.iter().map(Block::share).collect(),
            norm: self.norm.share(),
            grid: self.grid,
        }
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
    /// only what CLS needs, which gives the same CLS.
    pub fn encode(
        &self,
        slices: &Tensor,
        factors: Option<&Factors>,
        patches: bool,
    ) -> Result<Encoding, TchError> {
        let s = slices.size()[0];
        let scale = factors.map_or(0.0, |f| f.scale);
        let mut x = self.embed(slices, factors)?;
        let tokens = x.size()[0] / s;
        let skipped = self.prefix.size()[0];
        let mut attention = None;
        for (n, block) in self.blocks.iter().enumerate() {
            let factors = factors.map(|f| &f.blocks[n]);
            let last = n + 1 == self.blocks.len();
            if last && !patches {
                let (cls, row) = block.cls_only(&x, s, &self.arch, factors, scale)?;
                x = cls;
                attention = Some(row);
            } else {
                let (all, row) = block.forward(&x, s, &self.arch, factors, scale, last)?;
                x = all;
                attention = row;
            }
        }
        let x = self.norm.apply(&x, self.arch.norm_eps)?;
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
        let (p, d) = (self.arch.patch as i64, self.arch.dim as i64);
        let [gh, gw] = self.grid;
        // A convolution whose stride is its kernel is a linear map of each patch's pixels.
        let pixels = slices
            .f_reshape([s, 3, gh, p, gw, p])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([s * gh * gw, 3 * p * p])?;
        let pair = factors.map(|f| &f.patch);
        let patches = self.patch.adapted(&pixels, pair, factors.map_or(0.0, |f| f.scale))?;
        let patches =
            patches.f_view((s, gh * gw, d))?.f_to_kind(self.positions.kind())?.f_add(&self.positions)?;
        let prefix = self.prefix.f_unsqueeze(0)?.f_expand([s, -1, -1], false)?;
        Tensor::f_cat(&[prefix, patches], 1)?.f_reshape([-1, d])
    }
}

impl Norm {
    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    fn apply(&self, x: &Tensor, eps: f32) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), f64::from(eps), false)
    }
}

impl Linear {
    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        Ok(Self { weight: self.weight.f_to_kind(kind)?, bias: self.bias.f_to_kind(kind)? })
    }

    /// In the weight's precision, whatever that of `x`.
    fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
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
    fn adapted(&self, x: &Tensor, pair: Option<&Pair>, scale: f64) -> Result<Tensor, TchError> {
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
    fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        Ok(match self {
            Self::Gelu { fc1, fc2 } => Self::Gelu { fc1: fc1.to_kind(kind)?, fc2: fc2.to_kind(kind)? },
            Self::SwiGlu { gate, up, down } => {
                Self::SwiGlu { gate: gate.to_kind(kind)?, up: up.to_kind(kind)?, down: down.to_kind(kind)? }
            }
        })
    }

    fn share(&self) -> Self {
        match self {
            Self::Gelu { fc1, fc2 } => Self::Gelu { fc1: fc1.share(), fc2: fc2.share() },
            Self::SwiGlu { gate, up, down } => {
                Self::SwiGlu { gate: gate.share(), up: up.share(), down: down.share() }
            }
        }
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Gelu { fc1, fc2 } => fc2.apply(&fc1.apply(x)?.f_gelu("none")?),
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
            scale1: self.scale1.shallow_clone(),
            norm2: self.norm2.share(),
            mlp: self.mlp.share(),
            scale2: self.scale2.shallow_clone(),
        }
    }

    /// All tokens `[S T, d]`; with `attend` also the CLS rows of the attention, `[S, heads, 1, T]`.
    fn forward(
        &self,
        x: &Tensor,
        s: i64,
        arch: &Arch,
        factors: Option<&BlockFactors>,
        scale: f64,
        attend: bool,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let normed = self.norm1.apply(x, arch.norm_eps)?;
        let d = arch.dim as i64;
        let qkv = self.project(&normed, (0, 3 * d), factors, scale)?;
        let parts = heads(&qkv, s, arch.heads as i64, 3)?;
        let (q, k, v) = (parts.f_select(0, 0)?, parts.f_select(0, 1)?, parts.f_select(0, 2)?);
        let mixed =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false)?;
        let row = if attend { Some(probabilities(&q.f_narrow(2, 0, 1)?, &k)?) } else { None };
        Ok((self.finish(x, &mixed, factors, scale, arch)?, row))
    }

    /// The block's output for the CLS tokens alone, `[S, d]`, and their attention rows, `[S, heads, 1, T]`: keys and
    /// values of all tokens, but query, output projection and MLP of CLS.
    fn cls_only(
        &self,
        x: &Tensor,
        s: i64,
        arch: &Arch,
        factors: Option<&BlockFactors>,
        scale: f64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let normed = self.norm1.apply(x, arch.norm_eps)?;
        let d = arch.dim as i64;
        let first = |x: &Tensor| x.f_view((s, -1, d))?.f_select(1, 0);
        let q = self.project(&first(&normed)?, (0, d), factors, scale)?;
        let q = heads(&q, s, arch.heads as i64, 1)?.f_select(0, 0)?;
        let kv = self.project(&normed, (d, 2 * d), factors, scale)?;
        let kv = heads(&kv, s, arch.heads as i64, 2)?;
        let row = probabilities(&q, &kv.f_select(0, 0)?)?;
        let mixed = row.f_to_kind(kv.kind())?.f_matmul(&kv.f_select(0, 1)?)?;
        Ok((self.finish(&first(x)?, &mixed, factors, scale, arch)?, row))
    }

    /// Rows `start..start + len` of the adapted query-key-value projection of `x` `[n, d]`: `[n, len]`.
    fn project(
        &self,
        x: &Tensor,
        (start, len): (i64, i64),
        factors: Option<&BlockFactors>,
        scale: f64,
    ) -> Result<Tensor, TchError> {
        let x = &x.f_to_kind(self.qkv.weight.kind())?;
        let y = self.qkv.rows(start, len)?.apply(x)?;
        match factors.map(|f| &f.qkv) {
            None => Ok(y),
            Some(Qkv::Fused(pair)) => {
                add_low_rank(y, &pair.reduce(x, scale)?, &pair.b.f_narrow(0, start, len)?)
            }
            Some(Qkv::Separate(pairs)) => {
                let d = pairs[0].b.size()[0];
                let used = &pairs[(start / d) as usize..((start + len) / d) as usize];
                let deltas = used
                    .iter()
                    .map(|pair| {
                        pair.reduce(x, scale)?.f_linear(&pair.b.f_to_kind(x.kind())?, None::<&Tensor>)
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                y.f_add(&Tensor::f_cat(&deltas, 1)?)
            }
        }
    }

    /// Output projection, LayerScale, residual and MLP: `mixed` is `[S, heads, T', d / heads]`, `x` `[S T', d]`.
    fn finish(
        &self,
        x: &Tensor,
        mixed: &Tensor,
        factors: Option<&BlockFactors>,
        scale: f64,
        arch: &Arch,
    ) -> Result<Tensor, TchError> {
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([-1, arch.dim as i64])?;
        let out = self.o.adapted(&mixed, factors.map(|f| &f.o), scale)?;
        let x = x.f_addcmul(&out.f_to_kind(x.kind())?, &self.scale1)?;
        let out = self.mlp.apply(&self.norm2.apply(&x, arch.norm_eps)?)?;
        x.f_addcmul(&out.f_to_kind(x.kind())?, &self.scale2)
    }
}

/// `[S T, parts d]` → `[parts, S, heads, T, d / heads]`.
fn heads(x: &Tensor, s: i64, heads: i64, parts: i64) -> Result<Tensor, TchError> {
    let (rows, columns) = x.size2()?;
    x.f_view_([s, rows / s, parts, heads, columns / parts / heads])?.f_permute([2, 0, 3, 1, 4])
}

/// Attention probabilities of queries `[S, h, T', e]` over keys `[S, h, T, e]`, in f32.
fn probabilities(q: &Tensor, k: &Tensor) -> Result<Tensor, TchError> {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scale)?.f_softmax(-1, Kind::Float)
}
