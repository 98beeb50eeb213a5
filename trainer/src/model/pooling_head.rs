use runtime::backbone::Vit;
use tch::{TchError, Tensor};

use super::encoder::Loader;
use super::layers::{Linear, Mlp, Norm, heads, probabilities};

/// The head of a SigLIP tower: a learned probe attends to the patch tokens, then an MLP as in the blocks. Not adapted.
pub(super) struct PoolingHead {
    /// The probe's query, `[1, heads, 1, e]`: the same for every slice.
    query: Tensor,
    k: Linear,
    v: Linear,
    o: Linear,
    norm: Norm,
    mlp: Mlp,
    heads: i64,
    eps: f32,
}

impl PoolingHead {
    pub(super) fn new(loader: &Loader<'_>, vit: &Vit, eps: f32) -> Result<Self, TchError> {
        let probe = loader.tensor("pool.probe")?.f_unsqueeze(0)?;
        let query = loader.linear("pool.q")?.apply(&probe)?;
        let count = vit.heads as i64;
        Ok(Self {
            query: heads(&query, 1, count, 1)?.f_select(0, 0)?,
            k: loader.linear("pool.k")?,
            v: loader.linear("pool.v")?,
            o: loader.linear("pool.o")?,
            norm: loader.norm("pool.norm")?,
            mlp: loader.mlp("pool", vit.mlp)?,
            heads: count,
            eps,
        })
    }

    pub(super) fn share(&self) -> Self {
        Self {
            query: self.query.shallow_clone(),
            k: self.k.share(),
            v: self.v.share(),
            o: self.o.share(),
            norm: self.norm.share(),
            mlp: self.mlp.share(),
            heads: self.heads,
            eps: self.eps,
        }
    }

    /// Tokens `[S N, d]` → embeddings `[S, d]` and the attention over the tokens, mean over heads, `[S, N]`.
    pub(super) fn apply(&self, x: &Tensor, s: i64) -> Result<(Tensor, Tensor), TchError> {
        let by_head = |layer: &Linear| heads(&layer.apply(x)?, s, self.heads, 1)?.f_select(0, 0);
        let rows = probabilities(&self.query, &by_head(&self.k)?)?;
        let mixed = rows.f_matmul(&by_head(&self.v)?)?.f_reshape([s, -1])?;
        let pooled = self.o.apply(&mixed)?;
        let fed = self.mlp.apply(&self.norm.apply(&pooled, self.eps)?)?;
        Ok((pooled.f_add(&fed)?, rows.f_mean_dim(1i64, false, None)?.f_squeeze_dim(1)?))
    }
}
