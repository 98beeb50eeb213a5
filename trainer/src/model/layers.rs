//! The layers that blocks of every family are made of.

use tch::{Kind, TchError, Tensor};

use super::parameters::{Pair, Qkv};

pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
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
