//! Fits task plugins with libtorch and exports them.
//!
//! The way through: [`task`] and [`data`] say what is to be learned from what; [`fit`] trains the [`model`]'s factors,
//! query and head with [`optim`] and [`loss`] and keeps checkpoints in a [`run`] folder; [`predict`] and [`evaluate`] give
//! predictions and their [`metrics`]; [`export`] writes the task plugin and the merged graph, after the runtime's engine
//! has reproduced libtorch with them.
//!
//! Preprocessing, the plugin's format, the merge and the graph are the runtime's: what is trained on is what is served.

pub mod compare;
pub mod crossval;
pub mod data;
pub mod device;
mod error;
pub mod evaluate;
pub mod export;
pub mod fit;
pub mod html;
pub mod import;
pub mod localise;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod optim;
mod pass;
pub mod peft;
pub mod phantom;
pub mod precision;
pub mod predict;
pub mod probe;
pub mod random;
pub mod report;
pub mod rival;
pub mod run;
pub mod task;
pub mod tensorboard;
pub mod vlm3d;
pub mod workers;

pub use error::Error;
