use runtime::backbone::Backbone;
use tch::{TchError, Tensor};

use super::layers::{LayerNorm, Linear};
use super::weights::Maker;
use super::{Rival, Weights};
use crate::Error;
use crate::model::Encoder;
use crate::random::Draw;

/// The Medical Slice Transformer (Müller-Franzes et al., arXiv 2411.15802): a ViT of which all weights are fitted gives the CLS of each
/// slice; one pre-norm Transformer layer with as many units in its ReLU network as CLS has lets them and a learned CLS look at each
/// other, without slice positions; final norm and a linear head read the latter. No dropout.
pub(super) struct Mst {
    weights: Weights,
    encoder: Encoder,
    /// Slices whose activations are held at a time.
    chunk: usize,
    heads: i64,
    /// `[d]`.
    cls: Tensor,
    /// Query, key and value, `[3 d, d]`.
    qkv: Linear,
    out: Linear,
    fc1: Linear,
    fc2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm: LayerNorm,
    head: Linear,
}

/// Twelve heads, as in the paper, or as many as there are 32 values where twelve do not divide the width; one where those do not.
fn heads(dim: i64) -> i64 {
    [12, dim / 32].into_iter().find(|&heads| heads > 0 && dim % heads == 0).unwrap_or(1)
}

impl Mst {
    /// For slices of `size`; initial values are the backbone's, and PyTorch's for the rest.
    pub(super) fn new(
        mut make: Maker,
        backbone: &Backbone,
        size: [usize; 2],
        labels: usize,
        chunk: usize,
    ) -> Result<Self, Error> {
        let (encoder, thawed) = Encoder::new(backbone, size, make.device())?.trainable()?;
        for (name, tensor) in &thawed {
            make.adopt(format!("backbone.{name}"), tensor);
        }
        let d = encoder.arch().dim as i64;
        let cls = make.leaf("cls_token".into(), &[d], Draw::Normal(1.0))?;
        let layer = |part: &str| format!("slice_fusion.layers.0.{part}");
        // Xavier's uniform, over the stacked matrix.
        let uniform = Draw::Uniform((6.0 / (d + 3 * d) as f64).sqrt());
        let names = [layer("self_attn.in_proj_weight"), layer("self_attn.in_proj_bias")];
        let qkv = Linear::drawn(&mut make, names, [d, 3 * d], [uniform, Draw::Fill(0.0)])?;
        let names = ["weight", "bias"].map(|part| layer(&format!("self_attn.out_proj.{part}")));
        let narrow = Draw::Uniform(1.0 / (d as f64).sqrt());
        let out = Linear::drawn(&mut make, names, [d, d], [narrow, Draw::Fill(0.0)])?;
        let fc1 = Linear::new(&mut make, &layer("linear1"), [d, d])?;
        let fc2 = Linear::new(&mut make, &layer("linear2"), [d, d])?;
        let norm1 = LayerNorm::new(&mut make, &layer("norm1"), d)?;
        let norm2 = LayerNorm::new(&mut make, &layer("norm2"), d)?;
        let norm = LayerNorm::new(&mut make, "slice_fusion.norm", d)?;
        let head = Linear::new(&mut make, "linear", [d, labels as i64])?;
        let weights = make.finish();
        Ok(Self {
            weights,
            encoder,
            chunk,
            heads: heads(d),
            cls,
            qkv,
            out,
            fc1,
            fc2,
            norm1,
            norm2,
            norm,
            head,
        })
    }

    /// Slices `[N, 3, H, W]` → `[N, d]`, at most `most` at a time.
    fn embed(&self, slices: &Tensor, most: usize) -> Result<Tensor, TchError> {
        let parts = slices.f_split(most as i64, 0)?;
        let rows = parts.iter().map(|part| Ok(self.encoder.encode(part, None, false)?.cls));
        Tensor::f_cat(&rows.collect::<Result<Vec<_>, TchError>>()?, 0)
    }

    /// Embeddings `[B S, d]` of `b` volumes → logits `[B, C]`.
    pub(super) fn fuse(&self, rows: &Tensor, b: i64) -> Result<Tensor, TchError> {
        let d = rows.size()[1];
        let rows = rows.f_view([b, -1, d])?;
        let x = Tensor::f_cat(&[&self.cls.f_expand([b, 1, d], false)?, &rows], 1)?;
        let count = x.size()[1];
        let qkv = self.qkv.apply(&self.norm1.apply(&x)?)?;
        let parts = qkv.f_view([b, count, 3, self.heads, d / self.heads])?.f_unbind(2)?;
        let of = |n: usize| parts[n].f_transpose(1, 2);
        let mixed = Tensor::f_scaled_dot_product_attention(
            &of(0)?,
            &of(1)?,
            &of(2)?,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        )?;
        let x = x.f_add(&self.out.apply(&mixed.f_transpose(1, 2)?.f_reshape([b, count, d])?)?)?;
        let fed = self.fc2.apply(&self.fc1.apply(&self.norm2.apply(&x)?)?.f_relu()?)?;
        let first = x.f_add(&fed)?.f_select(1, 0)?;
        self.head.apply(&self.norm.apply(&first)?)
    }
}

impl Rival for Mst {
    fn forward(&self, volumes: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let most = if train { self.chunk } else { self.encoder.forward_chunk(self.chunk) };
        self.fuse(&self.embed(&volumes.f_flatten(0, 1)?, most)?, volumes.size()[0])
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    /// More slices than a chunk are encoded twice: without activations to get the loss and its gradient at the embeddings, then chunk
    /// by chunk with that gradient, which gives the same.
    fn gradients(
        &self,
        volumes: &Tensor,
        loss: &dyn Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<(Tensor, Tensor), TchError> {
        let b = volumes.size()[0];
        let slices = volumes.f_flatten(0, 1)?;
        if slices.size()[0] <= self.chunk as i64 {
            let value = loss(&self.forward(volumes, true)?)?;
            let (flat, _) = self.weights.gradients(&value, &[])?;
            return Ok((value.f_detach()?, flat));
        }
        let rows = tch::no_grad(|| self.embed(&slices, self.encoder.forward_chunk(self.chunk)))?;
        let parts = slices.f_split(self.chunk as i64, 0)?;
        let forward = |part: &Tensor| self.embed(part, self.chunk);
        self.weights.gradients_by_parts(&rows, &parts, forward, |rows| loss(&self.fuse(rows, b)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_divide_the_width() {
        assert_eq!([384, 768, 1024, 48, 64, 50].map(heads), [12, 12, 32, 12, 2, 1]);
    }
}
