//! The network: a frozen backbone with LoRA factors, attention pooling over slices and a linear head.
//!
//! `h_s` = CLS token of slice `s` after the final norm, or what a backbone without one pools; `a = softmax(H q / √d)`, `v = aᵀ H`,
//! `logits = W v + b` (arXiv 2512.12887). Of several views each has factors and a query of its own, and the task's query pools
//! their `v` in the same way. The backbone's weights never ask for a gradient and there is no dropout, so
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
pub use network::Network;
pub(crate) use network::chunks;
pub use ordinal::Ordinal;
pub(crate) use parameters::stored;
pub use parameters::{Factors, Group, Parameters};

use tch::{TchError, Tensor};

/// What pooling and head make of a study's slice embeddings.
pub struct Pooled {
    /// `[S]` of each view, sums to 1; `None` for a view that is not there.
    pub weights: Vec<Option<Tensor>>,
    /// Of the views that are there, sums to 1; `None` where the task has no views.
    pub view_weights: Option<Tensor>,
    /// `[C]`.
    pub logits: Tensor,
}

/// Attention pooling: `rows` `[S, d]` by `query` `[d]` → weights `[S]` and the weighted sum `[d]`.
pub fn attend(rows: &Tensor, query: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let scale = 1.0 / (query.size()[0] as f64).sqrt();
    // libtorch's softmax subtracts the largest score itself.
    let weights = rows.f_mv(query)?.f_mul_scalar(scale)?.f_softmax(0, None)?;
    let pooled = rows.f_transpose(0, 1)?.f_mv(&weights)?;
    Ok((weights, pooled))
}
