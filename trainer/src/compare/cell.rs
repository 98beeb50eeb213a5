use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use runtime::gate::{Machine, ThisMachine};
use serde::{Deserialize, Serialize};

use super::method::Kind;
use super::{Method, Options, SuiteTask, WeightsFile, derived, lora, predictions, probe, rivals};
use crate::Error;
use crate::data::{Split, Study, Table};
use crate::device::peak_bytes;
use crate::fit::write_json;
use crate::run::open_backbone;
use crate::task::Task;

/// One method on one task with one seed; written `TASK/METHOD/seed-S`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The task's folder name.
    pub task: String,
    /// The method.
    pub method: Method,
    /// In the place of the task's own.
    pub seed: u64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/seed-{}", self.task, self.method, self.seed)
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("the cell `{text}` is not of the form TASK/METHOD/seed-NUMBER");
        let [task, method, seed] = text.split('/').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let seed = seed.strip_prefix("seed-").and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        Ok(Self { task: task.into(), method: method.parse()?, seed })
    }
}

/// Name of a cell's file in its folder.
const CELL: &str = "cell.json";

/// What a cell came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// `TASK/METHOD/seed-S`.
    pub cell: String,
    /// SHA-256 over all that goes into the cell; another one makes it be made again.
    pub key: String,
    /// Whether it is there.
    pub state: State,
    /// Trainable parameters.
    pub parameters: usize,
    /// What a task ships besides a backbone that tasks share.
    pub bytes: u64,
    /// Of the fit, from 1, where there are epochs.
    pub best_epoch: Option<usize>,
    /// From the cell's start to its figures.
    pub seconds: f64,
    /// Of the fit, without preparing the volumes.
    pub seconds_fit: f64,
    /// A volume, prepared already.
    pub seconds_predict: f64,
    /// Largest resident memory of the process, in MB.
    pub peak_mb: Option<f64>,
    /// Most memory that tensors held on the GPU, in MB.
    pub peak_gpu_mb: Option<f64>,
    /// libtorch's threads; on a CPU figures are the same to the bit with as many.
    pub threads: usize,
    /// `cpu` or `cuda`.
    pub device: String,
    /// What the table's reader should know.
    pub notes: Vec<String>,
}

impl Made {
    /// Without figures.
    fn bare(cell: &Cell, key: String, state: State, options: &Options) -> Self {
        Self {
            cell: cell.to_string(),
            key,
            state,
            parameters: 0,
            bytes: 0,
            best_epoch: None,
            seconds: 0.0,
            seconds_fit: 0.0,
            seconds_predict: 0.0,
            peak_mb: None,
            peak_gpu_mb: None,
            threads: options.threads,
            device: options.device_kind().into(),
            notes: Vec::new(),
        }
    }
}

/// Whether a cell has figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has.
    Done,
    /// It has none, for this reason.
    Empty(String),
}

/// A method that has been fitted.
pub(super) trait Fitted {
    /// `[C]` of one study.
    fn logits(&self, study: &Study) -> Result<Vec<f32>, Error>;

    /// The voxels to which it resamples a study whose size does not suit it.
    fn resampled(&self, _study: &Study) -> Option<[usize; 3]> {
        None
    }
}

/// What fitting a method gives.
pub(super) struct Outcome {
    pub(super) model: Box<dyn Fitted>,
    pub(super) parameters: usize,
    pub(super) bytes: u64,
    pub(super) best_epoch: Option<usize>,
    pub(super) seconds: f64,
    pub(super) notes: Vec<String>,
    /// What an interrupted fit would have gone on from, of no use once the cell has its figures; it need not be there.
    pub(super) left_over: Option<PathBuf>,
}

/// What a method is fitted on.
pub(super) struct Job<'a> {
    pub(super) task: Task,
    pub(super) task_path: &'a Path,
    pub(super) table: Table,
    pub(super) backbone: PathBuf,
    /// The cell's folder.
    pub(super) folder: PathBuf,
    pub(super) options: &'a Options,
}

impl Job<'_> {
    /// Where prepared slices are kept.
    pub(super) fn slices(&self) -> PathBuf {
        self.options.out.join("cache/slices")
    }
}

impl Cell {
    /// Its folder under `out`.
    pub fn folder(&self, out: &Path) -> PathBuf {
        out.join("cells").join(self.to_string())
    }

    /// What it came to, if it was tried.
    pub fn made(&self, out: &Path) -> Option<Made> {
        serde_json::from_slice(&std::fs::read(self.folder(out).join(CELL)).ok()?).ok()
    }

    /// SHA-256 over all that goes into the cell.
    pub fn key(&self, on: &SuiteTask, options: &Options) -> String {
        // One that is not there is told of when the cell is made.
        let backbone = match self.backbone(options) {
            Ok(file) if self.method.base.needs_backbone() => {
                file.sha256(|path| Some(open_backbone(path, Some(1)).ok()?.sha256))
            }
            _ => None,
        };
        let weights = options.weights.iter().find(|file| file.name == self.method.base.name());
        let weights = weights
            .and_then(|file| file.sha256(|path| Some(runtime::tensor::sha256(&std::fs::read(path).ok()?))));
        let parts = serde_json::json!([
            env!("CARGO_PKG_VERSION"),
            self.to_string(),
            on.task,
            on.data_sha256,
            backbone,
            weights,
            options.precision,
            options.device_kind(),
        ]);
        runtime::tensor::sha256(parts.to_string().as_bytes())
    }

    fn backbone<'a>(&self, options: &'a Options) -> Result<&'a WeightsFile, Error> {
        let named =
            |file: &&WeightsFile| self.method.backbone.as_ref().is_none_or(|wanted| *wanted == file.name);
        options.backbones.iter().find(named).ok_or_else(|| {
            let known: Vec<&str> = options.backbones.iter().map(|file| file.name.as_str()).collect();
            let problem = match &self.method.backbone {
                None => format!("there is none, but {} needs one", self.method),
                Some(name) => {
                    format!(
                        "none is called {name}, which {} names; expected one of {}",
                        self.method,
                        known.join(", ")
                    )
                }
            };
            Error::Flag { flag: "--backbone", problem }
        })
    }

    /// Why this cell cannot have figures, where that can be told beforehand.
    fn obstacle(&self, job: &Job<'_>) -> Option<String> {
        let test = job.table.split(Split::Test);
        let both = |label: usize| {
            let has = |wanted| test.iter().any(|&i| job.table.samples[i].targets[label] == Some(wanted));
            has(true) && has(false)
        };
        if !(0..job.task.labels.len()).any(both) {
            return Some("no label has both classes among the test volumes".into());
        }
        (!job.task.views.is_empty() && !self.method.base.takes_views())
            .then(|| format!("the task has views, and {} takes one scan", self.method.base.name()))
    }
}

/// Makes a cell in its folder, also where it cannot be made: then the reason stands there. A finished cell is made anew, and what does not
/// belong to the same cell goes; an interrupted fit goes on.
pub fn make(cell: &Cell, on: &SuiteTask, options: &Options) -> Result<Made, Error> {
    let folder = cell.folder(&options.out);
    let key = cell.key(on, options);
    let marker = folder.join("key");
    let another = std::fs::read_to_string(&marker).is_ok_and(|there| there != key);
    if another || cell.made(&options.out).is_some_and(|made| made.state == State::Done) {
        std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    std::fs::write(&marker, &key).map_err(Error::io(&marker))?;
    let mut made = Made::bare(cell, key, State::Done, options);
    let started = Instant::now();
    if let Err(error) = fill(cell, on, options, &folder, &mut made) {
        made.state = State::Empty(error.to_string());
    }
    made.seconds = started.elapsed().as_secs_f64();
    made.peak_mb = ThisMachine.memory().map(|memory| memory.peak as f64 / 1e6);
    made.peak_gpu_mb = peak_bytes(options.device).map(|bytes| bytes as f64 / 1e6);
    write_json(&folder.join(CELL), &made)?;
    Ok(made)
}

/// Notes that a cell's process ended without saying what it came to.
pub fn note_death(cell: &Cell, on: &SuiteTask, options: &Options, why: String) -> Result<(), Error> {
    let folder = cell.folder(&options.out);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let made = Made::bare(cell, cell.key(on, options), State::Empty(why), options);
    write_json(&folder.join(CELL), &made)
}

/// Fits, predicts, and fills in what there is to tell.
fn fill(cell: &Cell, on: &SuiteTask, options: &Options, folder: &Path, made: &mut Made) -> Result<(), Error> {
    tch::set_num_threads(options.threads as i32);
    let mut task = on.task.clone();
    task.train.seed = cell.seed;
    for change in &cell.method.changes {
        if let Err(why) = change.apply(&mut task) {
            made.state = State::Empty(why);
            return Ok(());
        }
    }
    let mut data = on.data.clone();
    if cell.method.share() < 1.0 || cell.method.view().is_some() {
        let whole = Table::read(&on.data, &on.task, false)?;
        data =
            derived::write(&whole, &cell.method, on.task.train.seed, &options.out.join("data"), &cell.task)?;
    }
    let table = Table::read(&data, &task, false)?;
    let needed = cell.method.base.needs_backbone();
    let backbone = if needed { cell.backbone(options)?.path.clone() } else { PathBuf::new() };
    let job = Job { task, task_path: &on.task_path, table, backbone, folder: folder.into(), options };
    if let Some(reason) = cell.obstacle(&job) {
        made.state = State::Empty(reason);
        return Ok(());
    }
    let base = cell.method.base;
    let outcome = match base.kind() {
        Kind::Lora(pooling) => lora::fit(&job, pooling),
        Kind::Probe(pooling) => probe::fit(&job, pooling),
        Kind::Whole(method) => rivals::fit(&job, base, method),
    }?;
    made.parameters = outcome.parameters;
    made.bytes = outcome.bytes;
    made.best_epoch = outcome.best_epoch;
    made.seconds_fit = outcome.seconds;
    made.notes.clone_from(&outcome.notes);
    predictions::write(&job, outcome.model.as_ref(), made)?;
    for path in outcome.left_over.iter().filter(|path| path.exists()) {
        std::fs::remove_file(path).map_err(Error::io(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_read_as_it_is_written() {
        let text = "t01/anymc3d+data=0.2/seed-3";
        assert_eq!(text.parse::<Cell>().unwrap().to_string(), text);
        for bad in ["t01/anymc3d", "t01/anymc3d/3", "t01/none/seed-3", "a/b/anymc3d/seed-0"] {
            assert!(bad.parse::<Cell>().is_err(), "{bad}");
        }
    }
}
