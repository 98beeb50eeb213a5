//! How well predictions agree with labels.
//!
//! Everything here works on plain slices: `scores[i]` belongs to `labels[i]`, higher means more likely
//! positive. A measure that is undefined for its input (one class only, nothing at all, a score that
//! is not a number) is `None`, never a made-up value.

mod rank;

pub use rank::auroc;
