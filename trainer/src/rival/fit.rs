use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use runtime::backbone::Backbone;
use tch::{Device, TchError, Tensor};

use super::pretrained::start_from;
use super::{Method, Rival, Settings, build};
use crate::Error;
use crate::data::{Ahead, Cache, Scale, Slices, Split, Table, augment, in_order, order};
use crate::fit::{Epoch, bar};
use crate::model::{Group, stored};
use crate::optim::{AdamW, Rates, norm, schedule};
use crate::predict::{Row, macro_auroc, mean_loss};
use crate::random::{Purpose, generator};
use crate::task::Task;

/// What a method is fitted on, and how.
pub struct Options<'a> {
    /// The task; epochs, batch, warm-up, clipping, smoothing, patience and augmentation are taken from it.
    pub task: &'a Task,
    /// The volumes.
    pub cache: &'a Cache<'a>,
    /// For the methods that start from one, cut to the task's blocks.
    pub backbone: Option<&'a Backbone>,
    /// Safetensors file with weights to start from, such as MedicalNet's; a network starts from scratch without.
    pub weights: Option<&'a Path>,
    /// Where it is fitted.
    pub device: Device,
    /// libtorch's threads.
    pub threads: usize,
    /// Learning rate, weight decay and sampling.
    pub settings: Settings,
    /// Show a progress bar where standard error is a terminal.
    pub progress: bool,
}

/// What came of a fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The best epoch's predictions for validation and test volumes, in the table's order.
    pub rows: Vec<Row>,
    /// All epochs.
    pub history: Vec<Epoch>,
    /// The best epoch, from 1.
    pub best: usize,
    /// Its mean over the labels of which both classes are among the validation volumes.
    pub val_auroc: Option<f64>,
    /// Time of all epochs together, validation included.
    pub fit_seconds: f64,
    /// Time that the network needs for a prepared volume: mean over `rows`.
    pub predict_seconds: f64,
    /// Trainable values.
    pub parameters: usize,
    /// How many of `rows` are of volumes that the network had to resample since they are too thin ([`Rival::resampled`]).
    pub resampled: usize,
}

/// Fits a method and predicts with its best epoch: that of the highest validation AUROC, then of the lowest validation loss.
pub fn fit(method: Method, options: &Options<'_>) -> Result<Fitted, Error> {
    let rival = build(method, options.task, options.backbone, options.device)?;
    if let Some(path) = options.weights {
        let taken = start_from(method, rival.as_ref(), path)?;
        tracing::info!("{}: {taken} values taken from {}", method.name(), path.display());
    }
    fit_built(method, rival.as_ref(), options)
}

/// [`fit`] for a network that there is already.
pub fn fit_built(method: Method, rival: &dyn Rival, options: &Options<'_>) -> Result<Fitted, Error> {
    let _threads = Threads::set(options.threads);
    let named = rival.weights().named().iter();
    let optimiser =
        AdamW::new(named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), Group::Head)))?;
    let table = options.cache.table();
    Fit { method, rival, options, task: options.task, table, optimiser }.run()
}

/// Gives the thread its number of libtorch's threads back when it is dropped.
struct Threads(i32);

impl Threads {
    fn set(threads: usize) -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(threads.max(1) as i32);
        Self(before)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

/// A fit under way.
struct Fit<'a> {
    method: Method,
    rival: &'a dyn Rival,
    options: &'a Options<'a>,
    task: &'a Task,
    table: &'a Table,
    optimiser: AdamW,
}

/// One training volume.
pub(super) struct Item<'a> {
    pub(super) slices: Arc<Slices>,
    pub(super) targets: &'a [Option<bool>],
}

/// Predictions, and what was seen on the way.
struct Predicted {
    rows: Vec<Row>,
    /// Of the network alone.
    time: Duration,
    resampled: usize,
}

impl Fit<'_> {
    fn run(mut self) -> Result<Fitted, Error> {
        let train = &self.task.train;
        let started = Instant::now();
        let mut history: Vec<Epoch> = Vec::new();
        let mut best: Option<(usize, Vec<Tensor>)> = None;
        while history.len() < train.epochs {
            let at = best.as_ref().map_or(0, |(at, _)| at + 1);
            if train.patience.is_some_and(|patience| history.len() - at >= patience) {
                tracing::info!(
                    "{}: stopped, epoch {at} is the best of {}",
                    self.method.name(),
                    history.len()
                );
                break;
            }
            let epoch = self.epoch(history.len() + 1)?;
            if best.as_ref().is_none_or(|(at, _)| epoch.better_than(&history[*at])) {
                best = Some((history.len(), self.rival.weights().copy()?));
            }
            history.push(epoch);
        }
        let fit_seconds = started.elapsed().as_secs_f64();
        let best = match best {
            Some((at, weights)) => {
                self.rival.weights().restore(&weights)?;
                at + 1
            }
            None => 0,
        };
        let indices = self.indices(&[Split::Val, Split::Test]);
        let bar = bar(self.options.progress, indices.len(), &format!("{} predictions", self.method.name()));
        let Predicted { rows, time, resampled } = self.predict(&indices, &bar)?;
        bar.finish_and_clear();
        Ok(Fitted {
            predict_seconds: time.as_secs_f64() / rows.len().max(1) as f64,
            rows,
            best,
            val_auroc: best.checked_sub(1).and_then(|at| history[at].val_auroc),
            history,
            fit_seconds,
            parameters: self.rival.weights().count(),
            resampled,
        })
    }

    fn epoch(&mut self, number: usize) -> Result<Epoch, Error> {
        let (started, epochs) = (Instant::now(), self.task.train.epochs);
        let val = self.indices(&[Split::Val]);
        let train = self.table.split(Split::Train);
        let prefix = format!("{} epoch {number}/{epochs}", self.method.name());
        let bar = bar(self.options.progress, train.len() + val.len(), &prefix);
        let (train_loss, lr, skipped) = self.train(number, &train, &bar)?;
        if skipped == train.len() {
            let problem =
                format!("none of its {skipped} training volumes can be read; see the warnings for why");
            return Err(Error::Table { path: self.table.path.clone(), problem });
        }
        bar.set_message("validation");
        let rows = self.predict(&val, &bar)?.rows;
        bar.finish_and_clear();
        let epoch = Epoch {
            epoch: number,
            train_loss,
            pixel_loss: None,
            val_loss: mean_loss(self.table, self.task, &rows)?,
            val_auroc: macro_auroc(self.table, self.task, &rows.iter()),
            lr_lora: lr,
            lr_head: lr,
            seconds: started.elapsed().as_secs_f64(),
            skipped: skipped + val.len() - rows.len(),
        };
        let told = |figure: Option<f64>| figure.map_or("none".into(), |figure| format!("{figure:.4}"));
        tracing::info!(
            "{prefix}: loss {train_loss:.4}, validation loss {}, validation AUROC {}, {:.1} s",
            told(epoch.val_loss),
            told(epoch.val_auroc),
            epoch.seconds,
        );
        Ok(epoch)
    }

    /// One pass over the training volumes; the mean loss of its steps, the last learning rate, and how many volumes were skipped.
    fn train(
        &mut self,
        epoch: usize,
        samples: &[usize],
        bar: &ProgressBar,
    ) -> Result<(f64, f64, usize), Error> {
        let Self { method, rival, options, task, table, optimiser } = self;
        let (train, settings) = (&task.train, options.settings);
        let order = order(&table.samples, samples, task.loss, settings.sampling, train.seed, epoch as u64);
        let per_epoch = samples.len().div_ceil(train.batch) as u64;
        let total = per_epoch * train.epochs as u64;
        let warmup = (train.warmup * total as f64).ceil() as u64;
        let scale = Scale::of(&task.recipe);
        let load = |at: usize| {
            let Some(slices) = only(options.cache, order[at].index)? else { return Ok(None) };
            let mut rng = generator(train.seed, Purpose::Augment, epoch as u64, order[at].key());
            Ok(Some(augment(&slices, &train.augment, &scale, &mut rng)))
        };
        let (mut sum, mut steps, mut lr) = (0.0, 0u64, 0.0);
        let (mut batch, mut ids, mut seen, mut skipped) = (Vec::new(), Vec::new(), 0usize, 0);
        let places: Vec<usize> = (0..order.len()).collect();
        in_order(&places, ahead(options), bytes, load, |at, slices| {
            let sample = &table.samples[order[at].index];
            match slices {
                Some(slices) => {
                    batch.push(Item { slices, targets: &sample.targets });
                    ids.push(sample.id.as_str());
                }
                None => skipped += 1,
            }
            seen += 1;
            bar.inc(1);
            // What was skipped leaves its batch smaller, so that steps and schedule stay those of the table.
            if !seen.is_multiple_of(train.batch) && seen < order.len() {
                return Ok(());
            }
            let (items, ids) = (std::mem::take(&mut batch), std::mem::take(&mut ids));
            let step = (epoch as u64 - 1) * per_epoch + (seen - 1) as u64 / train.batch as u64;
            lr = settings.lr * schedule(step, warmup, total);
            let made = gradients(*rival, task, options.device, items)?;
            let Some((loss, mut gradients)) = made else { return Ok(()) };
            let norm = norm(&gradients)?;
            if !(loss.is_finite() && norm.is_finite()) {
                let (what, value) = if loss.is_finite() { ("gradient norm", norm) } else { ("loss", loss) };
                let (step, volumes) = (optimiser.steps() + 1, ids.join(", "));
                let (method, lr) = (method.name(), settings.lr);
                return Err(Error::Unstable { method, what, value, epoch, step, volumes, lr });
            }
            if let Some(clip) = train.clip.filter(|&clip| norm > clip) {
                let _ = gradients.f_mul_scalar_(clip / norm)?;
            }
            optimiser.step(&gradients, |_| Rates { lr, decay: settings.decay })?;
            sum += loss;
            steps += 1;
            bar.set_message(format!("loss {:.4}", sum / steps as f64));
            Ok::<_, Error>(())
        })?;
        Ok((sum / steps.max(1) as f64, lr, skipped))
    }

    /// The samples of some splits, in the table's order.
    fn indices(&self, splits: &[Split]) -> Vec<usize> {
        let samples = &self.table.samples;
        (0..samples.len()).filter(|&i| splits.contains(&samples[i].split)).collect()
    }

    /// Predicts those of the samples `indices` that can be read, one at a time.
    fn predict(&self, indices: &[usize], bar: &ProgressBar) -> Result<Predicted, Error> {
        let _guard = tch::no_grad_guard();
        let mut predicted = Predicted { rows: Vec::new(), time: Duration::ZERO, resampled: 0 };
        let load = |index: usize| only(self.options.cache, index);
        in_order(indices, ahead(self.options), bytes, load, |index, slices| {
            bar.inc(1);
            let Some(slices) = slices else { return Ok(()) };
            let started = Instant::now();
            let volume = slices.tensor(0, slices.count, self.options.device)?.f_unsqueeze(0)?;
            // Brought back from a GPU, so that it has been waited for.
            let logits = stored(&self.rival.forward(&volume, false)?)?.data;
            predicted.time += started.elapsed();
            predicted.rows.push(Row { index, logits, located: None });
            let [height, width] = slices.size;
            predicted.resampled += usize::from(self.rival.resampled([slices.count, height, width]).is_some());
            Ok::<_, Error>(())
        })?;
        Ok(predicted)
    }
}

/// The slices of a sample of a task without views; `None` where it is skipped.
fn only(cache: &Cache<'_>, index: usize) -> Result<Option<Arc<Slices>>, Error> {
    let study = cache.get(index)?;
    Ok(study.and_then(|study| study.views.iter().flatten().next().map(Arc::clone)))
}

#[allow(clippy::ref_option, reason = "in_order hands out references to what was made")]
fn bytes(slices: &Option<Arc<Slices>>) -> usize {
    slices.as_ref().map_or(0, |slices| slices.bytes())
}

fn ahead(options: &Options<'_>) -> Ahead {
    Ahead { threads: options.threads.clamp(1, 8), bytes: options.task.train.prefetch_mb << 20 }
}

/// The mean loss over the items' known labels and its gradients, `[P]`; `None` where no label is known.
///
/// Volumes of one size go through together, as batch norms want it; those of another size after them.
pub(super) fn gradients(
    rival: &dyn Rival,
    task: &Task,
    device: Device,
    mut items: Vec<Item<'_>>,
) -> Result<Option<(f64, Tensor)>, TchError> {
    let terms: usize = items.iter().map(|item| task.loss.terms(item.targets)).sum();
    items.retain(|item| task.loss.terms(item.targets) > 0);
    let mut sum: Option<(Tensor, Tensor)> = None;
    for group in groups(items) {
        let volumes = group.iter().map(|item| item.slices.tensor(0, item.slices.count, device));
        let volumes = Tensor::f_stack(&volumes.collect::<Result<Vec<_>, _>>()?, 0)?;
        let loss = |logits: &Tensor| {
            let parts =
                logits.f_unbind(0)?.into_iter().zip(&group).map(|(logits, item)| {
                    task.loss.smoothed_sum(&logits, item.targets, task.train.smoothing)
                });
            let parts = parts.collect::<Result<Vec<_>, TchError>>()?;
            Tensor::f_stack(&parts, 0)?.f_sum(None)?.f_div_scalar(terms as f64)
        };
        let (value, gradients) = rival.gradients(&volumes, &loss)?;
        sum = Some(match sum {
            None => (value, gradients),
            Some((values, mut all)) => {
                let _ = all.f_add_(&gradients)?;
                (values.f_add(&value)?, all)
            }
        });
    }
    sum.map(|(value, gradients)| Ok((value.f_double_value(&[])?, gradients))).transpose()
}

/// Items of one size together, in the order in which the sizes first come up.
fn groups(items: Vec<Item<'_>>) -> Vec<Vec<Item<'_>>> {
    let mut groups: Vec<Vec<Item<'_>>> = Vec::new();
    for item in items {
        let alike = |group: &&mut Vec<Item<'_>>| {
            let first = &group[0].slices;
            (first.count, first.size) == (item.slices.count, item.slices.size)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    groups
}
