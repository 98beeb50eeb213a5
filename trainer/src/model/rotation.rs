use runtime::backbone::Rope;
use tch::{TchError, Tensor};

use super::encoder::Loader;

/// Rotary positions: queries and keys of the patches are rotated, those of CLS and registers are not.
pub(super) struct Rotation {
    /// `[T, e]`; 1 before the patches.
    cos: Tensor,
    /// `[T, e]`; 0 before the patches.
    sin: Tensor,
}

impl Rotation {
    /// For `before` tokens in front of the patches.
    pub(super) fn new(loader: &Loader<'_>, rope: &Rope, before: i64) -> Result<Self, TchError> {
        let (cos, sin) = (loader.load(&rope.cos)?, loader.load(&rope.sin)?);
        let still = cos.f_narrow(0, 0, 1)?.f_expand([before, -1], false)?;
        Ok(Self {
            cos: Tensor::f_cat(&[&still.f_ones_like()?, &cos], 0)?,
            sin: Tensor::f_cat(&[&still.f_zeros_like()?, &sin], 0)?,
        })
    }

    pub(super) fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// `x cos + rotate_half(x) sin` for `x` `[S, heads, T, e]`, computed in f32.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let kind = x.kind();
        let x = x.f_to_kind(self.cos.kind())?;
        let halves = x.f_chunk(2, -1)?;
        let rotated = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
        x.f_mul(&self.cos)?.f_addcmul(&rotated, &self.sin)?.f_to_kind(kind)
    }
}
