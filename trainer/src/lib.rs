//! Fits task plugins with libtorch and exports them.

pub mod metrics;
