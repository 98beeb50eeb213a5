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
        let count = vit.heads as i64;
        let [query] = heads(&loader.linear("pool.q")?.apply(&probe)?, 1, count)?;
        Ok(Self {
            query,
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
        let [k] = heads(&self.k.apply(x)?, s, self.heads)?;
        let [v] = heads(&self.v.apply(x)?, s, self.heads)?;
        let rows = probabilities(&self.query, &k)?;
        let mixed = rows.f_matmul(&v)?.f_reshape([s, -1])?;
        let pooled = self.o.apply(&mixed)?;
        let fed = self.mlp.apply(&self.norm.apply(&pooled, self.eps)?)?;
        Ok((pooled.f_add(&fed)?, rows.f_mean_dim(1i64, false, None)?.f_squeeze_dim(1)?))
    }
}
