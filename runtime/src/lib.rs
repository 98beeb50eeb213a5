//! What runs beside the scanner: from a scan to a classification result.
//!
//! The way through, one module a step:
//! [`volume`] reads NIfTI and DICOM into a 3D image with geometry; [`recipe`] turns it into network input.
//! [`backbone`], [`plugin`] and [`graph`] merge a task plugin's LoRA factors into a frozen vision
//! transformer and write the task's ONNX graph; [`engine`] runs it with tract, slices in parallel; [`infer`]
//! puts these together into a [`result::TaskResult`]; [`report`] draws where the network looked. `service` does all that for
//! what a scanner sends, for years.
//!
//! The crate knows no libtorch, no Python and no GPU. Without the feature `service` it is the pure
//! library: no clock, no socket.

pub mod backbone;
pub mod disk;
#[cfg(feature = "service")]
pub mod doctor;
pub mod engine;
mod error;
pub mod files;
pub mod gate;
pub mod graph;
pub mod infer;
pub mod ingest;
pub mod plugin;
pub mod proc;
#[cfg(feature = "service")]
pub mod publish;
pub mod recipe;
pub mod report;
pub mod result;
#[cfg(feature = "service")]
pub mod service;
pub mod slots;
#[cfg(feature = "service")]
pub mod store;
pub mod tensor;
#[cfg(feature = "service")]
pub mod update;
pub mod volume;

pub use error::{Error, Result};
