//! A run folder: what a fit was started with, and what came of it.
//!
//! | file | content |
//! | --- | --- |
//! | `settings.json` | task with all defaults, backbone, data table, threads, device |
//! | `last.safetensors`, `best.safetensors` | checkpoints: the last epoch's, and the best one's |
//! | `metrics.csv` | one line an epoch |
//! | `events.out.tfevents.scanside` | loss and learning rates of each step, figures of each epoch, for TensorBoard |
//! | `predictions.csv` | the best checkpoint on validation and test volumes |
//! | `probe.csv` | the frozen linear probe on the same volumes, where one was fitted |
//! | `summary.json` | final figures |

use std::path::{Path, PathBuf};

use runtime::backbone::Backbone;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::Error;
use crate::crossval::one_of;
use crate::fit::{Checkpoint, Summary};
use crate::model::{Encoder, Network, Parameters};
use crate::precision::Precision;
use crate::task::Task;

/// Names of the files in a run folder.
pub mod file {
    /// [`super::Settings`] as JSON.
    pub const SETTINGS: &str = "settings.json";
    /// Checkpoint of the last epoch.
    pub const LAST: &str = "last.safetensors";
    /// Checkpoint of the best epoch.
    pub const BEST: &str = "best.safetensors";
    /// One line an epoch.
    pub const METRICS: &str = "metrics.csv";
    /// The best checkpoint on validation and test volumes.
    pub const PREDICTIONS: &str = "predictions.csv";
    /// The frozen linear probe on validation and test volumes.
    pub const PROBE: &str = "probe.csv";
    /// Final figures.
    pub const SUMMARY: &str = "summary.json";
}

/// What a fit is started with, every default written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What wrote the folder, for example `scanside-train 0.1.0`.
    pub build: String,
    /// The task.
    pub task: Task,
    /// The backbone.
    pub backbone: BackboneFile,
    /// The data table.
    pub data: DataFile,
    /// libtorch's threads.
    pub threads: usize,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// SHA-256 of the PEFT adapter that the fit started from, if it did.
    #[serde(default)]
    pub init_from_sha256: Option<String>,
    /// Of matrix products and attention.
    #[serde(default)]
    pub precision: Precision,
}

/// Which backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackboneFile {
    /// Where it was.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// What people call it.
    pub name: String,
    /// Its licence.
    pub licence: String,
}

/// Which data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Where the table was.
    pub path: PathBuf,
    /// SHA-256 of the table.
    pub sha256: String,
    /// The file with the split that was used in the place of the table's own, as in a cross-validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<PathBuf>,
    /// SHA-256 of that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_sha256: Option<String>,
    /// Volumes to train on.
    pub train: usize,
    /// Volumes to choose the checkpoint by.
    pub val: usize,
    /// Volumes for the final figures.
    pub test: usize,
}

impl Settings {
    /// Names what differs in a way that would change the fit; paths and thread count may differ.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let checks = [
            ("task", self.task != other.task),
            ("backbone", self.backbone.sha256 != other.backbone.sha256),
            ("data table", self.data.sha256 != other.data.sha256),
            ("split", self.data.split_sha256 != other.data.split_sha256),
            ("device", self.device != other.device),
            ("adapter to start from", self.init_from_sha256 != other.init_from_sha256),
            ("precision", self.precision != other.precision),
        ];
        checks.into_iter().find_map(|(what, differs)| differs.then_some(what))
    }
}

/// The finished or unfinished fit in a folder.
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// Its best checkpoint.
    pub best: Checkpoint,
}

impl Run {
    /// Opens a run folder that has a checkpoint.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(file::BEST);
        if !path.exists() {
            let problem = match one_of(folder) {
                Some(one) => format!("it holds several runs; take one of them, such as {}", one.display()),
                None => {
                    format!("it has no {}; run `scanside-train fit` with --out set to it first", file::BEST)
                }
            };
            return Err(Error::Run { path: folder.into(), problem });
        }
        Ok(Self { folder: folder.into(), best: Checkpoint::read(&path)? })
    }

    /// What the fit was started with.
    pub fn settings(&self) -> &Settings {
        &self.best.state.settings
    }

    /// The backbone of the run, cut to the task's blocks; from `path`, or from where it was.
    pub fn backbone(&self, path: Option<&Path>) -> Result<Backbone, Error> {
        let wanted = &self.settings().backbone;
        let path = path.unwrap_or(&wanted.path);
        let backbone = open_backbone(path, self.settings().task.blocks)?;
        if backbone.sha256 != wanted.sha256 {
            let problem =
                format!("its SHA-256 is {}, the run was fitted on {}", backbone.sha256, wanted.sha256);
            return Err(Error::Backbone { path: path.into(), problem });
        }
        Ok(backbone)
    }

    /// What the best checkpoint's logits are divided by before the activation; 1 where the fit has not finished.
    pub fn temperature(&self) -> Result<f64, Error> {
        let path = self.folder.join(file::SUMMARY);
        if !path.exists() {
            return Ok(1.0);
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let summary: Summary =
            serde_json::from_slice(&bytes).map_err(|e| Error::Run { path, problem: e.to_string() })?;
        Ok(summary.temperature)
    }

    /// The network of the best checkpoint.
    pub fn network(&self, backbone: &Backbone, device: Device) -> Result<Network, Error> {
        let task = &self.settings().task;
        let content = self.best.content();
        let parameters = Parameters::from_stored(
            &backbone.arch,
            &task.lora_spec(),
            task.labels.len(),
            &task.view_names(),
            task.train.pooling,
            &content,
            device,
        )
        .map_err(|problem| Error::Run { path: self.folder.join(file::BEST), problem })?;
        Ok(Network { encoder: encoder_for(task, backbone, device)?, parameters })
    }
}

/// The frozen encoder, for the slices of all of a task's views.
pub fn encoder_for(task: &Task, backbone: &Backbone, device: Device) -> Result<Encoder, Error> {
    let mut sizes = task.inputs().into_iter().map(|(_, recipe)| recipe.size);
    let first = Encoder::new(backbone, sizes.next().unwrap_or(task.recipe.size), device)?;
    sizes.try_fold(first, |encoder, size| encoder.with_size(backbone, size))
}

/// Opens a backbone and cuts it to its first `blocks` blocks.
pub fn open_backbone(path: &Path, blocks: Option<usize>) -> Result<Backbone, Error> {
    let mut backbone = Backbone::open(path).map_err(runtime::Error::from)?;
    if let Some(blocks) = blocks {
        backbone.truncate(blocks).map_err(runtime::Error::from)?;
    }
    Ok(backbone)
}
