//! The fit: epochs of AdamW steps, a checkpoint after each, the best one by validation AUROC.
//!
//! A fit that was interrupted goes on after its last finished epoch when it is started again in the same folder, and ends
//! with the same bits as one that ran through: every draw follows from (seed, epoch, sample), and the thread count is
//! taken from the checkpoint.

mod checkpoint;
mod epoch;
mod gradient;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runtime::backbone::Arch;
use runtime::proc::memory_at_hand;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

pub use checkpoint::{Checkpoint, State};
pub use gradient::{Item, Losses, Plan, gradients};
pub use report::{LabelSummary, Summary};

use crate::Error;
use crate::data::{Cache, Split, Table};
use crate::loss::Loss;
use crate::memory::{self, Needs};
use crate::model::{Network, Ordinal, Parameters, Pooling};
use crate::optim::AdamW;
use crate::pass::Ended;
use crate::peft;
use crate::precision::{Precision, Scaler};
use crate::run::{BackboneFile, DataFile, Settings, encoder_for, file, open_backbone};
use crate::task::Task;
use crate::tensorboard::Events;
use crate::workers::Workers;

/// What to fit, from what, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The task.
    pub task: Task,
    /// The task file, for messages.
    pub task_path: PathBuf,
    /// `data.csv`.
    pub data: PathBuf,
    /// File with `id` and `split` that takes the place of the table's own split.
    pub split: Option<PathBuf>,
    /// Backbone file.
    pub backbone: PathBuf,
    /// Run folder.
    pub out: PathBuf,
    /// Folder with a PEFT adapter to start from; what it does not hold starts as always.
    pub init_from: Option<PathBuf>,
    /// `cpu` or `cuda:N`.
    pub device: Device,
    /// Of matrix products and attention.
    pub precision: Precision,
    /// libtorch's threads; a resumed fit keeps those of its checkpoint.
    pub threads: usize,
    /// Also fit a linear probe on frozen embeddings, to compare with.
    pub probe: bool,
    /// Folder for prepared slices, which other runs may share.
    pub cache: Option<PathBuf>,
    /// Stop after so many epochs of this call, as if interrupted then.
    pub stop_after: Option<usize>,
    /// Show a progress bar where standard error is a terminal.
    pub progress: bool,
}

/// What an epoch came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Mean over the steps, pixel supervision included.
    pub train_loss: f64,
    /// The part of the masks, without its weight: mean over the steps that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixel_loss: Option<f64>,
    /// Mean over the validation volumes' known labels.
    pub val_loss: Option<f64>,
    /// Mean over the labels of which both classes are among the validation volumes.
    pub val_auroc: Option<f64>,
    /// Of the factors, after the last step.
    pub lr_lora: f64,
    /// Of query and head, after the last step.
    pub lr_head: f64,
    /// Time it took.
    pub seconds: f64,
    /// Training and validation volumes that could not be read, each time that one came up.
    #[serde(default)]
    pub skipped: usize,
}

impl Epoch {
    /// Whether this epoch's checkpoint is to be preferred: higher validation AUROC, then lower validation loss; without
    /// validation volumes the later one.
    pub(crate) fn better_than(&self, other: &Self) -> bool {
        let auroc = |e: &Self| e.val_auroc.unwrap_or(f64::NEG_INFINITY);
        match auroc(self).total_cmp(&auroc(other)) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => match (self.val_loss, other.val_loss) {
                (Some(mine), Some(theirs)) => mine < theirs,
                _ => true,
            },
        }
    }
}

/// Fits a task; returns the final figures, or `None` where it stopped early by [`Options::stop_after`].
pub fn fit(options: &Options) -> Result<Option<Summary>, Error> {
    let task = &options.task;
    options.precision.check(options.device)?;
    let backbone = open_backbone(&options.backbone, task.blocks)?;
    task.validate(backbone.arch.patch)
        .map_err(|problem| Error::Task { path: options.task_path.clone(), problem })?;
    if let Some(folder) = options.init_from.as_ref().filter(|_| !task.views.is_empty()) {
        let problem = "a task of several views does not start from an adapter; leave --init-from out".into();
        return Err(Error::Adapter { path: folder.clone(), problem });
    }
    let mut table = Table::read(&options.data, task, false)?;
    if let Some(split) = &options.split {
        table.resplit(split)?;
    }
    table.keep_masks(|sample| task.train.pixel.is_some() && sample.split == Split::Train);
    let settings = settings(options, &backbone, &table)?;
    std::fs::create_dir_all(&options.out).map_err(Error::io(&options.out))?;
    if let Some(warning) = task.laterality_warning() {
        tracing::warn!("{warning}");
    }

    let resumed = resume(options, &settings)?;
    let settings = resumed.as_ref().map_or(settings, |c| c.state.settings.clone());
    write_json(&options.out.join(file::SETTINGS), &settings)?;

    let parameters = first_parameters(options, &backbone.arch, resumed.is_some())?;
    let encoder = encoder_for(task, &backbone, options.device)?;
    let encoder = encoder.with_precision(options.precision.kind())?;
    let network = Network { encoder, parameters };
    drop(backbone);
    let ordinal = (task.loss == Loss::Ordinal).then(|| Ordinal::new(&network.parameters)).transpose()?;
    let average = task.train.ema.is_some().then(|| network.parameters.copy()).transpose()?;
    let learned = network.parameters.mask(|name| task.lora.targets.contain(name))?;
    let named = network.parameters.named.iter();
    let mut optimiser = AdamW::new(
        named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), Parameters::group(name))),
    )?;
    let scaler = options.precision.scaler();
    let skipped = BTreeMap::new();
    let mut state = State { settings, step: 0, history: Vec::new(), best: 0, scaler, skipped };
    if let Some(checkpoint) = resumed {
        checkpoint.restore(&network.parameters, average.as_ref(), &mut optimiser)?;
        state = checkpoint.state;
        tracing::info!("resuming after epoch {} of {}", state.history.len(), task.train.epochs);
    }
    tracing::info!(
        "{} trainable parameters; {} training, {} validation and {} test volumes; {} threads",
        network.parameters.count_of(|name| task.lora.targets.contain(name)),
        state.settings.data.train,
        state.settings.data.val,
        state.settings.data.test,
        state.settings.threads,
    );

    let cache = Cache::new(&table, task, task.train.cache_mb << 20)
        .stored_in(options.cache.as_deref())?
        .skipping(task.train.skip_unreadable);
    let workers = Workers::new(&network, state.settings.threads, task.train.batch)?
        .with_prefetch(task.train.prefetch_mb << 20);
    let progress = options.progress;
    let scaler = state.scaler;
    let events = Events::open(&options.out, state.step, now())?;
    let mut fit = Fit {
        task,
        table: &table,
        cache: &cache,
        network,
        ordinal,
        learned,
        average,
        workers,
        optimiser,
        scaler,
        events,
        progress,
    };
    if state.history.len() < task.train.epochs {
        fit.warn_of_memory()?;
    }
    let mut done = 0;
    while state.history.len() < task.train.epochs {
        let since = state.history.len() - state.best;
        if task.train.patience.is_some_and(|patience| since >= patience) {
            tracing::info!("stopped: epoch {} is the best of {}", state.best, state.history.len());
            break;
        }
        if options.stop_after == Some(done) {
            return Ok(None);
        }
        fit.epoch_and_checkpoint(&mut state, &options.out)?;
        done += 1;
    }
    match report::kept(&state, options) {
        Some(summary) if done == 0 => Ok(Some(summary)),
        _ => report::finish(&fit, &state, options).map(Some),
    }
}

/// The parameters before the first step: drawn from the seed, or an adapter's; of a resumed fit the checkpoint's are put in their
/// place later.
fn first_parameters(options: &Options, arch: &Arch, resumed: bool) -> Result<Parameters, Error> {
    let task = &options.task;
    let lora = task.lora_spec();
    let (labels, views) = (task.labels.len(), task.view_names());
    let mut parameters = Parameters::init(arch, &lora, labels, &views, task.train.seed, options.device)?;
    if let Some(folder) = options.init_from.as_ref().filter(|_| !resumed) {
        let mut stored = parameters.to_stored()?;
        stored.extend(peft::read(folder, arch, &lora)?);
        let all = Pooling::Query;
        parameters = Parameters::from_stored(arch, &lora, labels, &views, all, &stored, options.device)
            .map_err(|problem| Error::Adapter { path: folder.clone(), problem })?;
    }
    // Drawn, or read, and left out: the others start from the same values whatever pools the slices.
    parameters = parameters.pooled_by(task.train.pooling, arch, task.train.seed, options.device)?;
    if let Some(pixel) = task.train.pixel {
        parameters = parameters.with_decoder(arch, pixel.width, task.train.seed, options.device)?;
    }
    Ok(parameters)
}

fn settings(
    options: &Options,
    backbone: &runtime::backbone::Backbone,
    table: &Table,
) -> Result<Settings, Error> {
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(Error::io(path));
    let count = |split| table.split(split).len();
    let settings = Settings {
        build: concat!("scanside-train ", env!("CARGO_PKG_VERSION")).into(),
        task: options.task.clone(),
        backbone: BackboneFile {
            path: absolute(&options.backbone)?,
            sha256: backbone.sha256.clone(),
            name: backbone.name(),
            licence: backbone.licence().into(),
        },
        data: DataFile {
            path: absolute(&options.data)?,
            sha256: table.sha256.clone(),
            split: options.split.as_ref().map(absolute).transpose()?,
            split_sha256: options.split.as_deref().map(sha256).transpose()?,
            train: count(Split::Train),
            val: count(Split::Val),
            test: count(Split::Test),
        },
        threads: options.threads.max(1),
        device: match options.device {
            Device::Cuda(n) => format!("cuda:{n}"),
            _ => "cpu".into(),
        },
        init_from_sha256: options.init_from.as_deref().map(peft::sha256).transpose()?,
        precision: options.precision,
    };
    let known = |i: &usize| options.task.loss.terms(&table.samples[*i].targets) > 0;
    if !table.split(Split::Train).iter().any(known) {
        let problem = "it has no row with split train and a known label".into();
        return Err(Error::Table { path: options.data.clone(), problem });
    }
    if options.task.train.pixel.is_some() && table.samples.iter().all(|sample| sample.mask.is_none()) {
        let problem = "the task has [train.pixel], but no row with split train has a mask; fill the column mask, or remove \
                       [train.pixel]"
            .into();
        return Err(Error::Table { path: options.data.clone(), problem });
    }
    Ok(settings)
}

fn sha256(path: &std::path::Path) -> Result<String, Error> {
    Ok(runtime::tensor::sha256(&std::fs::read(path).map_err(Error::io(path))?))
}

/// The last checkpoint in the run folder, if there is one and it belongs to the same fit.
fn resume(options: &Options, settings: &Settings) -> Result<Option<Checkpoint>, Error> {
    let path = options.out.join(file::LAST);
    if !path.exists() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::read(&path)?;
    if let Some(what) = checkpoint.state.settings.difference(settings) {
        let problem = format!("it holds a fit with another {what}; choose another --out, or remove it");
        return Err(Error::Run { path: options.out.clone(), problem });
    }
    Ok(Some(checkpoint))
}

/// Writes pretty JSON; a power cut leaves the old file or the new one.
pub(crate) fn write_json(path: &std::path::Path, value: &impl Serialize) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::io(path)(e.into()))?;
    bytes.push(b'\n');
    runtime::files::write_atomically(path, &bytes).map_err(Error::io(path))
}

/// A fit under way.
struct Fit<'a> {
    task: &'a Task,
    table: &'a Table,
    cache: &'a Cache<'a>,
    network: Network,
    ordinal: Option<Ordinal>,
    /// Which gradients count, `[P]`; `None` where all do.
    learned: Option<Tensor>,
    /// The parameters' running mean.
    average: Option<Parameters>,
    workers: Workers,
    optimiser: AdamW,
    scaler: Option<Scaler>,
    events: Events,
    progress: bool,
}

/// Seconds since 1970; a clock before that says 0.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Fit<'_> {
    /// Tells where a fit on the CPU is likely to want more memory than there is; the first training volume stands for all.
    fn warn_of_memory(&self) -> Result<(), Error> {
        let encoder = &self.network.encoder;
        let (Device::Cpu, Some(available)) = (encoder.device(), memory_at_hand()) else { return Ok(()) };
        let mut volumes = self.table.split(Split::Train).into_iter().map(|i| self.cache.get(i));
        let Some(study) = volumes.find_map(Result::transpose).transpose()? else { return Ok(()) };
        let Some(first) = study.views.iter().flatten().max_by_key(|slices| slices.count) else {
            return Ok(());
        };
        let needs = Needs::of(&memory::Fit {
            arch: encoder.arch(),
            size: first.size,
            slices: study.count(),
            volumes: self.table.samples.len(),
            workers: self.workers.count(),
            train: &self.task.train,
        });
        if let Some(warning) = needs.warning(available) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    fn epoch_and_checkpoint(&mut self, state: &mut State, out: &std::path::Path) -> Result<(), Error> {
        let started = Instant::now();
        let number = state.history.len() + 1;
        let bar = self.bar(number);
        let (losses, Ended { factor, skipped }) = self.train(number, state.history.len(), &bar)?;
        let (val_loss, val_auroc, unread) = self.validate(&bar)?;
        let train = &self.task.train;
        let epoch = Epoch {
            epoch: number,
            train_loss: losses.total,
            pixel_loss: losses.pixel,
            val_loss,
            val_auroc,
            lr_lora: train.lr_lora * factor,
            lr_head: train.lr_head * factor,
            seconds: started.elapsed().as_secs_f64(),
            skipped: skipped + unread,
        };
        bar.finish_and_clear();
        tracing::info!("{}", report::line(&epoch, train.epochs));
        state.step = self.optimiser.steps();
        report::events(&mut self.events, &epoch, state.step)?;
        state.history.push(epoch);
        let best = state.best.checked_sub(1).map(|i| &state.history[i]);
        let improved = best.is_none_or(|best| state.history[number - 1].better_than(best));
        if improved {
            state.best = number;
        }
        state.scaler = self.scaler;
        state.add_skipped(self.cache);
        let checkpoint =
            Checkpoint::of(state.clone(), &self.network, self.average.as_ref(), &self.optimiser)?;
        if improved {
            checkpoint.write(&out.join(file::BEST))?;
        }
        checkpoint.write(&out.join(file::LAST))?;
        report::write_metrics(&state.history, &out.join(file::METRICS))
    }

    fn bar(&self, epoch: usize) -> ProgressBar {
        let volumes = self.table.samples.iter().filter(|s| s.split != Split::Test).count();
        bar(self.progress, volumes, &format!("epoch {epoch}/{}", self.task.train.epochs))
    }
}

/// A progress bar over volumes; it draws nothing where standard error is no terminal.
pub(crate) fn bar(shown: bool, volumes: usize, prefix: &str) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(volumes as u64), target).with_prefix(prefix.to_owned());
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} volumes, {eta} left {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
pub(crate) mod tests;
