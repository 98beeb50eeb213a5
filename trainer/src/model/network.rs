use tch::{Device, TchError, Tensor};

use super::{Encoder, Encoding, Parameters, Pooled, pool, stored};
use crate::data::Slices;

/// A frozen encoder with the trainable parameters of a task.
pub struct Network {
    /// The backbone.
    pub encoder: Encoder,
    /// Factors, query and head.
    pub parameters: Parameters,
}

/// What the network says of one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// `[C]`.
    pub logits: Vec<f32>,
    /// `[S]`, sums to 1.
    pub slice_weights: Vec<f32>,
    /// `[S, d]`.
    pub embeddings: Vec<f32>,
    /// The last block's attention times the slice's weight, `[S, gh, gw]`, as the exported graph has it.
    pub heatmap: Vec<f32>,
}

impl Network {
    /// Slices `[S, 3, H, W]` → what the adapted encoder makes of them, patch tokens where asked for.
    pub fn encode(&self, slices: &Tensor, patches: bool) -> Result<Encoding, TchError> {
        self.encoder.encode(slices, Some(&self.parameters.factors()?), patches)
    }

    /// Slices `[S, 3, H, W]` → embeddings `[S, d]`.
    pub fn embed(&self, slices: &Tensor) -> Result<Tensor, TchError> {
        Ok(self.encode(slices, false)?.cls)
    }

    /// Embeddings `[S, d]` of one volume → slice weights and logits.
    pub fn pool(&self, embeddings: &Tensor) -> Result<Pooled, TchError> {
        let get = |name| self.parameters.get(name);
        pool(embeddings, &get("query")?, &get("head.weight")?, &get("head.bias")?)
    }

    /// Predicts one volume, at most `chunk` slices at a time, without gradients.
    pub fn predict(&self, slices: &Slices, chunk: usize) -> Result<Prediction, TchError> {
        let _guard = tch::no_grad_guard();
        let both = chunks(slices, chunk, self.encoder.device(), |slices| {
            let encoded = self.encode(slices, false)?;
            Tensor::f_cat(&[encoded.cls, encoded.cls_attention], 1)
        })?;
        let dim = self.encoder.arch().dim as i64;
        let embeddings = both.f_narrow(1, 0, dim)?.f_contiguous()?;
        let attention = both.f_narrow(1, dim, both.size()[1] - dim)?;
        let pooled = self.pool(&embeddings)?;
        let heatmap = attention.f_mul(&pooled.weights.f_unsqueeze(1)?)?;
        let values = |tensor: &Tensor| Ok::<_, TchError>(stored(tensor)?.data);
        Ok(Prediction {
            logits: values(&pooled.logits)?,
            slice_weights: values(&pooled.weights)?,
            embeddings: values(&embeddings)?,
            heatmap: values(&heatmap)?,
        })
    }
}

/// Applies `encode` to at most `chunk` slices at a time and joins its rows.
pub(crate) fn chunks(
    slices: &Slices,
    chunk: usize,
    device: Device,
    encode: impl Fn(&Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor, TchError> {
    let rows = (0..slices.count)
        .step_by(chunk)
        .map(|start| encode(&slices.tensor(start, chunk.min(slices.count - start), device)?))
        .collect::<Result<Vec<_>, _>>()?;
    Tensor::f_cat(&rows, 0)
}

impl Slices {
    /// Slices `start..start + count` as `[count, 3, H, W]` on `device`.
    pub(crate) fn tensor(&self, start: usize, count: usize, device: Device) -> Result<Tensor, TchError> {
        let each = 3 * self.size[0] * self.size[1];
        let values = &self.values[start * each..(start + count) * each];
        Tensor::f_from_slice(values)?
            .f_view_([count as i64, 3, self.size[0] as i64, self.size[1] as i64])?
            .f_to_device(device)
    }
}
