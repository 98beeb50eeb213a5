//! The layers that blocks of every family are made of.

use tch::{Kind, TchError, Tensor};

use super::parameters::Pair;

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

/// A layer's tensor and its name.
pub(super) type Weight<'a> = (String, &'a mut Tensor);

impl Norm {
    pub(super) fn weights(&mut self, name: &str) -> [Weight<'_>; 2] {
        [(format!("{name}.weight"), &mut self.weight), (format!("{name}.bias"), &mut self.bias)]
    }

    pub(super) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    pub(super) fn apply(&self, x: &Tensor, eps: f32) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), f64::from(eps), false)
    }
}

impl Linear {
    pub(super) fn weights(&mut self, name: &str) -> [Weight<'_>; 2] {
        [(format!("{name}.weight"), &mut self.weight), (format!("{name}.bias"), &mut self.bias)]
    }

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

    /// `x Wᵀ + b + (x Aᵀ) Bᵀ` for `x` `[n, in]`.
    ///
    /// As a side branch: merging `W + scale B A` in every step instead costs the gradient of a full weight, half as much
    /// again as the projection's own two products.
    pub(super) fn adapted(&self, x: &Tensor, pair: Option<&Pair>) -> Result<Tensor, TchError> {
        let x = &x.f_to_kind(self.weight.kind())?;
        let mut y = self.apply(x)?;
        let Some(Pair { a, b }) = pair else { return Ok(y) };
        y.f_addmm_(&x.f_linear(a, None::<&Tensor>)?, &b.f_transpose(0, 1)?)
    }

    /// Columns `start..start + len` of what [`Self::adapted`] gives, `[n, len]`.
    pub(super) fn adapted_rows(
        &self,
        x: &Tensor,
        (start, len): (i64, i64),
        pair: Option<&Pair>,
    ) -> Result<Tensor, TchError> {
        let rows = |pair: &Pair| {
            Ok::<_, TchError>(Pair { a: pair.a.shallow_clone(), b: pair.b.f_narrow(0, start, len)? })
        };
        let pair = pair.map(rows).transpose()?;
        self.rows(start, len)?.adapted(x, pair.as_ref())
    }
}

impl Mlp {
    pub(super) fn weights(&mut self, name: &str) -> Vec<Weight<'_>> {
        let parts = match self {
            Self::Gelu { fc1, fc2, .. } => vec![("fc1", fc1), ("fc2", fc2)],
            Self::SwiGlu { gate, up, down } => vec![("gate", gate), ("up", up), ("down", down)],
        };
        parts.into_iter().flat_map(|(part, linear)| linear.weights(&format!("{name}.{part}"))).collect()
    }

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

/// `[S T, N d]` → N times `[S, heads, T, d / heads]`.
///
/// Taken apart along one axis at once: the gradients are then put together by one copy, and not by one a part into zeros of
/// the whole's size.
pub(super) fn heads<const N: usize>(x: &Tensor, s: i64, heads: i64) -> Result<[Tensor; N], TchError> {
    let (rows, columns) = x.size2()?;
    let n = N as i64;
    let parts = x.f_view_([s, rows / s, n, heads, columns / n / heads])?.f_unbind(2)?;
    let parts = parts.iter().map(|part| part.f_transpose(1, 2)).collect::<Result<Vec<_>, _>>()?;
    parts.try_into().map_err(|_| TchError::Convert(format!("{columns} columns do not make {n} parts")))
}

/// Attention probabilities of queries `[S, h, T', e]` over keys `[S, h, T, e]`, in f32.
pub(super) fn probabilities(q: &Tensor, k: &Tensor) -> Result<Tensor, TchError> {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    q.f_matmul(&k.f_transpose(2, 3)?)?.f_mul_scalar(scale)?.f_softmax(-1, Kind::Float)
}
