//! The data table and the slices that the recipe makes of its scans.

mod augment;
mod cache;
mod columns;
mod leak;
mod planes;
mod prefetch;
mod sampling;
mod slices;
mod stored;
mod table;

pub use augment::{Scale, augment};
pub use cache::Cache;
pub use columns::column;
pub use planes::three_planes;
pub use prefetch::{Ahead, in_order};
pub use sampling::{Place, Sampling, order};
pub(crate) use slices::single;
pub(crate) use slices::unusable;
pub use slices::{Slices, Study};
pub use stored::Stored;
pub use table::{Sample, Split, Table};
