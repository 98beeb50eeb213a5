//! Fits task plugins with libtorch and exports them.

mod error;
pub mod evaluate;
pub mod html;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod phantom;
pub mod random;

pub use error::Error;
