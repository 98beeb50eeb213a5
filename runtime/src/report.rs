//! What people look at: where the network looked, as a volume and as a picture.

mod canvas;
mod colour;
mod error;
mod font;
pub mod heatmap;
mod layout;
pub mod picture;

pub use error::ReportError;
