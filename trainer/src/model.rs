//! The network: a frozen backbone with LoRA factors, attention pooling over slices and a linear head.
//!
//! `h_s` = CLS token of slice `s` after the final norm, or what a backbone without one pools; `a = softmax(H q / √d)`, `v = aᵀ H`,
//! `logits = W v + b` (arXiv 2512.12887). Of several views each has factors and a query of its own, and the task's query pools
//! their `v` in the same way. To compare with, `v` may also be the slices' mean or median, or what an LSTM or a Transformer layer makes
//! of them ([`Pooling`]). The backbone's weights never ask for a gradient and there is no dropout, so there is no difference
//! between training and inference.

mod davit;
pub(crate) mod decoder;
mod encoder;
mod layers;
mod network;
mod ordinal;
mod parameters;
mod pooling;
mod pooling_head;
mod rotation;
pub(crate) mod sequence;
mod vit;

pub use encoder::{Encoder, Encoding};
pub use network::Network;
pub(crate) use network::chunks;
pub use ordinal::Ordinal;
pub use parameters::{Factors, Group, Parameters};
pub(crate) use parameters::{gradients, stored};
pub(crate) use pooling::median;
pub use pooling::{Pooling, attend};

use tch::Tensor;

/// What pooling and head make of a study's slice embeddings.
pub struct Pooled {
    /// `[S]` of each view, sums to 1; `None` for a view that is not there.
    pub weights: Vec<Option<Tensor>>,
    /// Of the views that are there, sums to 1; `None` where the task has no views.
    pub view_weights: Option<Tensor>,
    /// `[C]`.
    pub logits: Tensor,
}
