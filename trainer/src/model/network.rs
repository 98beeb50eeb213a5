use runtime::engine::{Output, ViewOutput};
use tch::{Device, TchError, Tensor};

use super::pooling::{mean, median};
use super::sequence::{lstm, transformer};
use super::{Encoder, Encoding, Factors, Parameters, Pooled, Pooling, attend, stored};
use crate::data::{Slices, Study};
use crate::device;

/// A frozen encoder with the trainable parameters of a task.
pub struct Network {
    /// The backbone.
    pub encoder: Encoder,
    /// Factors, queries and head.
    pub parameters: Parameters,
}

impl Network {
    /// Slices `[S, 3, H, W]` → what the encoder adapted to a view makes of them, patch tokens where asked for.
    pub fn encode(&self, view: usize, slices: &Tensor, patches: bool) -> Result<Encoding, TchError> {
        self.encoder.encode(slices, Some(&self.factors(view)?), patches)
    }

    /// The factors that adapt the encoder to a view, in its precision.
    pub fn factors(&self, view: usize) -> Result<Factors, TchError> {
        self.parameters.factors(view)?.to_kind(self.encoder.kind())
    }

    /// Embeddings `[S, d]` of each view of one study, `None` for one that is not there → weights and logits. Eq. of the paper:
    /// each view's query pools its slices, the task's query the views. Without a query mean or median of the slices, whose weights
    /// are what each counts in it.
    pub fn pool(&self, embeddings: &[Option<Tensor>]) -> Result<Pooled, TchError> {
        let parameters = &self.parameters;
        let (mut weights, mut pooled) = (Vec::new(), Vec::new());
        let of_slices = |view: usize, rows: &Tensor| match parameters.pooling {
            Pooling::Query => attend(rows, &parameters.query(view)?),
            Pooling::Mean | Pooling::ThreePlanes => mean(rows),
            Pooling::Median => median(rows),
            Pooling::Lstm => lstm(parameters, rows),
            Pooling::Transformer => transformer(parameters, rows),
        };
        for (view, rows) in embeddings.iter().enumerate() {
            let found = rows.as_ref().map(|rows| of_slices(view, rows)).transpose()?;
            let (of_slices, vector) = found.unzip();
            weights.push(of_slices);
            pooled.extend(vector);
        }
        let (view_weights, pooled) = if parameters.views.is_empty() {
            let only = pooled.pop().ok_or_else(|| TchError::Convert("there is no view to pool".into()))?;
            (None, only)
        } else {
            let (weights, pooled) = attend(&Tensor::f_stack(&pooled, 0)?, &parameters.get("query")?)?;
            (Some(weights), pooled)
        };
        let logits = parameters.get("head.weight")?.f_mv(&pooled)?.f_add(&parameters.get("head.bias")?)?;
        Ok(Pooled { weights, view_weights, logits })
    }

    /// Predicts one study without gradients: what the exported graph gives, of the slices that [`Pooling::input`] makes of it. At most [`Encoder::forward_chunk`] of `chunk` slices go
    /// through at a time.
    pub fn predict(&self, study: &Study, chunk: usize) -> Result<Output, TchError> {
        let _guard = tch::no_grad_guard();
        let study = self.parameters.pooling.input(study);
        let dim = self.encoder.arch().dim as i64;
        let chunk = self.encoder.forward_chunk(chunk);
        let (mut embeddings, mut attention) = (Vec::new(), Vec::new());
        for (view, slices) in study.views.iter().enumerate() {
            let factors = self.factors(view)?;
            let encode = |slices: &Tensor| {
                let encoded = self.encoder.encode(slices, Some(&factors), false)?;
                Tensor::f_cat(&[encoded.cls, encoded.cls_attention], 1)
            };
            let both = slices.as_ref().map(|slices| chunks(slices, chunk, self.encoder.device(), encode));
            let both = both.transpose()?;
            let columns = |start: i64, end: i64| {
                both.as_ref().map(|both| both.f_narrow(1, start, end - start)?.f_contiguous()).transpose()
            };
            let width = both.as_ref().map_or(dim, |both| both.size()[1]);
            embeddings.push(columns(0, dim)?);
            attention.push(columns(dim, width)?);
        }
        let Pooled { weights, view_weights, logits } = self.pool(&embeddings)?;
        let values = |tensor: &Tensor| Ok::<_, TchError>(stored(tensor)?.data);
        let views = weights.iter().zip(&embeddings).zip(&attention);
        let views = views.map(|((weights, embeddings), attention)| {
            let (Some(weights), Some(embeddings), Some(attention)) = (weights, embeddings, attention) else {
                return Ok(ViewOutput::default());
            };
            Ok(ViewOutput {
                slice_weights: values(weights)?,
                heatmap: values(&attention.f_mul(&weights.f_unsqueeze(1)?)?)?,
                embeddings: values(embeddings)?,
            })
        });
        let views = views.collect::<Result<Vec<_>, TchError>>()?;
        let mut given = view_weights.as_ref().map_or(Ok(vec![1.0]), values)?.into_iter();
        let of = |view: &ViewOutput| {
            if view.slice_weights.is_empty() { 0.0 } else { given.next().unwrap_or(0.0) }
        };
        Ok(Output { logits: values(&logits)?, view_weights: views.iter().map(of).collect(), views })
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
        let [height, width] = self.size.map(|n| n as i64);
        device::upload(values, [count as i64, 3, height, width], device)
    }
}
