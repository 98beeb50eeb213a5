//! Fits task plugins with libtorch and exports them.

pub mod evaluate;
pub mod metrics;
