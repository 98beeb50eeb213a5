//! Phantoms: labelled volumes from real anatomy with planted findings.
//!
//! A [`Suite`] says, as data, which real scans are varied how, and what is planted where. Volume `index` of a
//! split depends on (seed, split, index) alone: the same seed gives the same bytes, more volumes leave
//! the first ones as they are, and the number of threads does not matter.
//!
//! ```no_run
//! use trainer::phantom::{self, Suite};
//! # fn main() -> Result<(), phantom::PhantomError> {
//! let suite = Suite::load("demo")?;
//! let assets = std::path::Path::new("target/assets/scans");
//! phantom::generate(&suite, assets, std::path::Path::new("data"), 2, &|done, of| println!("{done}/{of}"))?;
//! # Ok(()) }
//! ```

mod builtin;
mod deal;
mod error;
mod field;
mod finding;
mod label;
mod random;
mod render;
mod suite;
mod template;
mod tissue;
mod validate;
mod write;

pub use error::PhantomError;
pub use label::{Finding, Form, Label, Region, Target};
pub use render::{Phantom, Scan, render};
pub use suite::{Counts, Grid, Modality, Range, Raw, Split, Suite, Template, Tissue, Tone, Variation, View};
pub use template::Templates;
pub use write::{Summary, generate};
