//! The data table and the slices that the recipe makes of its scans.

mod augment;
mod columns;
mod leak;
mod sampling;
mod slices;
mod table;

pub use augment::{Scale, augment};
pub use columns::column;
pub use sampling::{Place, Sampling, order};
pub(crate) use slices::single;
pub use slices::{Cache, Slices, in_order};
pub use table::{Sample, Split, Table};
