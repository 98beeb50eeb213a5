//! The network: a frozen backbone with LoRA factors, attention pooling over slices and a linear head.
//!
//! `h_s` = CLS token of slice `s` after the final norm, or what a backbone without one pools; `a = softmax(H q / √d)`, `v = aᵀ H`,
//! `logits = W v + b` (arXiv 2512.12887). The backbone's weights never ask for a gradient and there is no dropout, so
//! there is no difference between training and inference.

mod davit;
pub(crate) mod decoder;
mod encoder;
mod layers;
mod network;
mod ordinal;
mod parameters;
mod pooling_head;
mod rotation;
mod vit;

pub use encoder::{Encoder, Encoding};
pub(crate) use network::chunks;
pub use network::{Network, Prediction};
pub use ordinal::Ordinal;
pub(crate) use parameters::stored;
pub use parameters::{Factors, Group, Parameters};

use tch::{TchError, Tensor};

/// What pooling and head make of a volume's slice embeddings.
pub struct Pooled {
    /// `[S]`, sums to 1.
    pub weights: Tensor,
    /// `[C]`.
    pub logits: Tensor,
}

/// Attention pooling and linear head: `embeddings` `[S, d]`, `query` `[d]`, `weight` `[C, d]`, `bias` `[C]`.
pub fn pool(embeddings: &Tensor, query: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Pooled, TchError> {
    let scale = 1.0 / (query.size()[0] as f64).sqrt();
    // libtorch's softmax subtracts the largest score itself.
    let weights = embeddings.f_mv(query)?.f_mul_scalar(scale)?.f_softmax(0, None)?;
    let pooled = embeddings.f_transpose(0, 1)?.f_mv(&weights)?;
    let logits = weight.f_mv(&pooled)?.f_add(bias)?;
    Ok(Pooled { weights, logits })
}
