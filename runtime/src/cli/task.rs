//! Flags that several commands share: which task, which scan.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use firmware_config::device;
use runtime::engine::{Mode, Precision, default_threads};
use runtime::infer::{LoadedTask, Loader};
use runtime::plugin::Plugin;
use runtime::publish::TopicLevel;
use runtime::volume::{self, AxisCodes, ReadOptions, Scans, Volume};

use super::Fault;

/// Which task is run.
#[derive(Args)]
pub struct TaskArgs {
    #[command(flatten)]
    weights: Weights,
    /// The task plugin.
    #[arg(long, value_name = "FILE")]
    plugin: PathBuf,
    /// Compute the plugin's factors beside the backbone's weights instead of merging them, as a device does whose tasks share one
    /// backbone; needs --backbone.
    #[arg(long, conflicts_with = "graph")]
    shared: bool,
    /// Arithmetic of the products with the backbone's weights, as a device may be set to; needs --backbone. Computed in f32 where the
    /// processor has no instructions for it, or the plugin's golden cases are not reproduced.
    #[arg(long, value_parser = precision(), default_value = "f32", conflicts_with = "graph")]
    precision: Precision,
    /// Slices encoded at a time; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// Reads a precision's name.
fn precision() -> impl TypedValueParser<Value = Precision> {
    let names = PossibleValuesParser::new(Precision::ALL.map(Precision::as_str));
    names.try_map(|name| Precision::new(&name).ok_or("no such precision"))
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Weights {
    /// The task graph that was exported with the plugin.
    #[arg(long, value_name = "TASK.onnx")]
    graph: Option<PathBuf>,
    /// The backbone; the plugin is merged into it in memory.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
}

impl TaskArgs {
    pub fn load(&self) -> Result<LoadedTask, Fault> {
        self.load_in(if self.shared { Mode::Shared } else { Mode::Merged }, self.precision)
    }

    /// As [`Self::load`], in the mode and the precision that a result names, where machine and files allow it.
    pub fn load_in(&self, mode: Mode, precision: Precision) -> Result<LoadedTask, Fault> {
        let threads = self.threads.map_or_else(default_threads, NonZeroUsize::get);
        match (&self.weights.graph, &self.weights.backbone) {
            (Some(graph), _) => Ok(LoadedTask::open(graph, &self.plugin, threads)?),
            (None, Some(backbone)) => {
                let weights = match mode {
                    Mode::Merged => device::Weights::Merged,
                    Mode::Shared => device::Weights::Shared,
                };
                let (plugin, sha256) = Plugin::read(&self.plugin)?;
                let loader = Loader::new(backbone, threads, weights).in_precision(precision);
                Ok(loader.load(plugin, sha256, &self.plugin, backbone, false)?)
            }
            (None, None) => {
                Err(Fault::Usage("neither --graph nor --backbone is given; give one of them".into()))
            }
        }
    }
}

/// Which scan is read.
#[derive(Args)]
pub struct ScanArgs {
    /// The scan: a .nii, .nii.gz or DICOM file, or a folder with one DICOM series or several. For a task of several views one
    /// for each, as VIEW=PATH.
    #[arg(long, value_name = "[VIEW=]PATH", required = true)]
    input: Vec<PathBuf>,
    /// How the voxels of a NIfTI file without usable geometry lie, for example RAS.
    #[arg(long, value_name = "CODES")]
    assume_orientation: Option<AxisCodes>,
    /// Which volume of a 4D NIfTI file is read, from 0.
    #[arg(long, value_name = "N")]
    volume_index: Option<usize>,
}

impl ScanArgs {
    /// The volumes of the one input of a task without views, at least one.
    pub fn open(&self) -> Result<Scans, Fault> {
        let [path] = self.input.as_slice() else {
            let n = self.input.len();
            return Err(Fault::Usage(format!(
                "--input is given {n} times, but the task has one view; give it once"
            )));
        };
        if let Some((view, file)) = named(path)
            && !path.exists()
        {
            return Err(Fault::Usage(format!(
                "--input {view}={file} names a view, but the task has one view without a name; give the path alone"
            )));
        }
        Ok(volume::open(path, &self.options())?)
    }

    /// The volumes of a task's views, in the order of `views`; `None` for one that is not given.
    pub fn study(&self, views: &[&str]) -> Result<Vec<Option<Volume>>, Fault> {
        let mut volumes: Vec<Option<Volume>> = views.iter().map(|_| None).collect();
        let all = views.join(", ");
        for path in &self.input {
            let Some((view, file)) = named(path) else {
                return Err(Fault::Usage(format!(
                    "--input {} names no view, but the task has the views {all}; give each as VIEW=PATH",
                    path.display()
                )));
            };
            let Some(place) = views.iter().position(|name| *name == view) else {
                return Err(Fault::Usage(format!(
                    "--input {view}={file} names the view {view}, but the task has the views {all}"
                )));
            };
            // Before anything is decoded.
            if volumes[place].is_some() {
                return Err(Fault::Usage(format!(
                    "--input {view}= is given twice; give each view one series"
                )));
            }
            let mut scans = volume::open(Path::new(file), &self.options())?;
            let count = scans.len();
            if count != 1 {
                return Err(Fault::Usage(format!(
                    "--input {view}={file} holds {count} series, but a view is one series; give its folder alone"
                )));
            }
            volumes[place] = scans.next().transpose()?;
        }
        Ok(volumes)
    }

    fn options(&self) -> ReadOptions {
        ReadOptions { assume_orientation: self.assume_orientation, volume_index: self.volume_index }
    }
}

/// The parts of `VIEW=PATH`.
fn named(input: &Path) -> Option<(&str, &str)> {
    input.to_str().and_then(|text| text.split_once('='))
}

/// The device's name unless one is given: the host's, where it can stand in a topic.
pub fn default_device() -> TopicLevel {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().parse().unwrap_or_else(|_| TopicLevel::local())
}
