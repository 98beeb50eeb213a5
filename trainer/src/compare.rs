//! The comparison: many methods on the same volumes, splits and seeds, as the paper's tables have it.
//!
//! A [`Cell`] is one method on one task with one seed. Each is a job of its own, in a process of its own: cells may run one after
//! another or on many machines over one folder, and a cell that is finished is not made again while nothing that goes into it has
//! changed. [`gather`] makes the tables of what is there.
//!
//! | under OUT | content |
//! | --- | --- |
//! | `cells/TASK/METHOD/seed-S/` | `cell.json` ([`Made`]), `predictions.csv` on validation and test volumes, `shuffled.csv` and `thinned.csv` on test volumes of which the slices were shuffled, and of which every second one was left out |
//! | `data/` | tables of a part of the training volumes; volumes of a built-in suite |
//! | `cache/` | prepared slices and frozen embeddings, which cells share |
//! | `compare.json`, `compare.md`, `compare.html` | the tables |

mod cell;
mod change;
mod derived;
mod gather;
mod lora;
mod method;
mod picture;
mod predictions;
mod probe;
mod ranks;
mod report;
mod rivals;
mod suite;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::Device;

pub use cell::{Cell, Made, State, make, note_death};
pub use change::{Ablation, Change};
pub use gather::{Cells, Comparison, Entry, Row, gather, seeds_of};
pub use method::{Base, Method};
pub use ranks::{critical_difference, mean_ranks};
pub use report::{html, markdown};
pub use suite::{Suite, SuiteTask};

use crate::precision::Precision;

/// Where and with what cells are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the comparison.
    pub out: PathBuf,
    /// Backbones by the name that methods know them by; the first serves methods that name none.
    pub backbones: Vec<WeightsFile>,
    /// Weights that methods start from which were published with them, by the method's name.
    pub weights: Vec<WeightsFile>,
    /// `cpu` or `cuda:N`.
    pub device: Device,
    /// Of matrix products and attention.
    pub precision: Precision,
    /// libtorch's threads.
    pub threads: usize,
    /// Show progress bars where standard error is a terminal.
    pub progress: bool,
}

impl Options {
    /// `cpu` or `cuda`, whichever GPU it is.
    fn device_kind(&self) -> &'static str {
        if self.device == Device::Cpu { "cpu" } else { "cuda" }
    }
}

/// A file of weights by the name that methods know it by.
#[derive(Debug, Clone)]
pub struct WeightsFile {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Looked at once, however many cells go by it.
    sha256: OnceLock<Option<String>>,
}

impl WeightsFile {
    /// Reads nothing yet.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: path.into(), sha256: OnceLock::new() }
    }

    /// Its SHA-256 as `of` tells it the first time; `None` where it cannot be read.
    fn sha256(&self, of: impl FnOnce(&Path) -> Option<String>) -> Option<&str> {
        self.sha256.get_or_init(|| of(&self.path)).as_deref()
    }
}
