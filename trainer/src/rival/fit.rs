use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, TchError, Tensor};

use super::checkpoint::Checkpoint;
use super::{Method, Rival, Settings};
use crate::Error;
use crate::data::{Ahead, Cache, Scale, Slices, Split, Table, augment, in_order};
use crate::fit::{Epoch, bar};
use crate::model::{Group, stored};
use crate::optim::{AdamW, Rates, norm};
use crate::pass::{Ended, Pass, broken, clip};
use crate::predict::{Row, macro_auroc, mean_loss};
use crate::task::Task;

/// What a method is fitted on, and how.
pub struct Options<'a> {
    /// The task; epochs, batch, warm-up, clipping, smoothing, patience and augmentation are taken from it.
    pub task: &'a Task,
    /// The volumes.
    pub cache: &'a Cache<'a>,
    /// Where it is fitted.
    pub device: Device,
    /// libtorch's threads; a fit that goes on keeps those that it was started with, since sums depend on them.
    pub threads: usize,
    /// Learning rate, weight decay and sampling.
    pub settings: Settings,
    /// Where an interrupted fit goes on from, and how often that is written; whoever names the file sees to it that it is of the
    /// same fit.
    pub checkpoint: Option<Kept>,
    /// Stop after so many epochs of this call, as if interrupted then.
    pub stop_after: Option<usize>,
    /// Show a progress bar where standard error is a terminal.
    pub progress: bool,
}

/// A checkpoint file.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// Written after an epoch when the last one is as old as this: the networks are large, and short fits do without.
    pub every: Duration,
}

/// What came of a fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// All epochs.
    pub history: Vec<Epoch>,
    /// The best epoch, from 1.
    pub best: usize,
    /// Time of all epochs together, validation included.
    pub seconds: f64,
}

/// Fits a network that starts from the weights that it has, and leaves it with those of its best epoch: that of the highest
/// validation AUROC, then of the lowest validation loss. `None` where it stopped by [`Options::stop_after`].
pub fn fit(method: Method, rival: &dyn Rival, options: &Options<'_>) -> Result<Option<Fitted>, Error> {
    let named = rival.weights().named().iter();
    let mut optimiser =
        AdamW::new(named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), Group::Head)))?;
    let mut state = State { threads: options.threads.max(1), step: 0, history: Vec::new(), best: 0 };
    let mut best = Vec::new();
    let read = |kept: &Kept| kept.path.exists().then(|| Checkpoint::read(&kept.path)).transpose();
    if let Some(checkpoint) = options.checkpoint.as_ref().map(read).transpose()?.flatten() {
        best = checkpoint.restore(rival.weights(), &mut optimiser)?;
        state = checkpoint.state;
        tracing::info!("{}: goes on after epoch {}", method.name(), state.history.len());
    }
    let _threads = Threads::set(state.threads);
    let table = options.cache.table();
    Fit { method, rival, options, task: options.task, table, optimiser }.run(state, best)
}

/// Gives the thread its number of libtorch's threads back when it is dropped.
struct Threads(i32);

impl Threads {
    fn set(threads: usize) -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(threads as i32);
        Self(before)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

/// How far a fit is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) threads: usize,
    /// Of the optimiser.
    pub(super) step: u64,
    pub(super) history: Vec<Epoch>,
    /// From 1; 0 before the first.
    pub(super) best: usize,
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

impl Fit<'_> {
    /// `best` are the weights of the best epoch yet.
    fn run(mut self, mut state: State, mut best: Vec<Tensor>) -> Result<Option<Fitted>, Error> {
        let (train, weights) = (&self.task.train, self.rival.weights());
        let (mut written, mut done) = (Instant::now(), 0);
        while state.history.len() < train.epochs {
            let count = state.history.len();
            if train.patience.is_some_and(|patience| count - state.best >= patience) {
                tracing::info!(
                    "{}: stopped, epoch {} is the best of {count}",
                    self.method.name(),
                    state.best
                );
                break;
            }
            if self.options.stop_after == Some(done) {
                return Ok(None);
            }
            let epoch = self.epoch(count + 1)?;
            if state.best.checked_sub(1).is_none_or(|at| epoch.better_than(&state.history[at])) {
                state.best = count + 1;
                best = weights.copy()?;
            }
            state.history.push(epoch);
            done += 1;
            if let Some(kept) =
                self.options.checkpoint.as_ref().filter(|kept| written.elapsed() >= kept.every)
            {
                state.step = self.optimiser.steps();
                Checkpoint::write(&kept.path, &state, weights, &best, &self.optimiser)?;
                written = Instant::now();
            }
        }
        if state.best > 0 {
            weights.restore(&best)?;
        }
        let State { history, best, .. } = state;
        let seconds = history.iter().map(|epoch| epoch.seconds).sum();
        Ok(Some(Fitted { history, best, seconds }))
    }

    fn epoch(&mut self, number: usize) -> Result<Epoch, Error> {
        let (started, epochs) = (Instant::now(), self.task.train.epochs);
        let (val, train) = (self.table.split(Split::Val), self.table.split(Split::Train));
        let prefix = format!("{} epoch {number}/{epochs}", self.method.name());
        let bar = bar(self.options.progress, train.len() + val.len(), &prefix);
        let (train_loss, Ended { factor, skipped }) = self.train(number, &bar)?;
        bar.set_message("validation");
        let rows = self.predict(&val, &bar)?;
        bar.finish_and_clear();
        let lr = self.options.settings.lr * factor;
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

    /// One pass over the training volumes; the mean loss of its steps, and what there is to tell of it.
    fn train(&mut self, epoch: usize, bar: &ProgressBar) -> Result<(f64, Ended), Error> {
        let Self { method, rival, options, task, table, optimiser } = self;
        let (train, settings) = (&task.train, options.settings);
        let scale = Scale::of(&task.recipe);
        let prepare = |index: usize, mut rng: ChaCha8Rng| {
            let Some(slices) = only(options.cache, index)? else { return Ok(None) };
            Ok(Some(augment(&slices, &train.augment, &scale, &mut rng)))
        };
        let (mut sum, mut steps) = (0.0, 0u64);
        let pass = Pass::new(table, task, settings.sampling, epoch);
        let bytes = |slices: &Arc<Slices>| slices.bytes();
        let ended = pass.run(ahead(options), bytes, prepare, bar, |batch| {
            let ids = batch.ids();
            let lr = settings.lr * batch.factor;
            let items = batch.items.into_iter();
            let items = items.map(|(sample, slices)| Item { slices, targets: &sample.targets }).collect();
            let made = gradients(*rival, task, options.device, items)?;
            let Some((loss, mut gradients)) = made else { return Ok(()) };
            let norm = norm(&gradients)?;
            if let Some((what, value)) = broken(loss, norm) {
                let (method, step) = (method.name(), optimiser.steps() + 1);
                return Err(Error::Unstable {
                    method,
                    what,
                    value,
                    epoch,
                    step,
                    volumes: ids,
                    lr: settings.lr,
                });
            }
            clip(&mut gradients, norm, train.clip)?;
            optimiser.step(&gradients, |_| Rates { lr, decay: settings.decay })?;
            sum += loss;
            steps += 1;
            bar.set_message(format!("loss {:.4}", sum / steps as f64));
            Ok(())
        })?;
        Ok((sum / steps.max(1) as f64, ended))
    }

    /// Predicts those of the samples `indices` that can be read, one at a time.
    fn predict(&self, indices: &[usize], bar: &ProgressBar) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        let load = |index: usize| only(self.options.cache, index);
        let bytes = |slices: &Option<Arc<Slices>>| slices.as_ref().map_or(0, |slices| slices.bytes());
        in_order(indices, ahead(self.options), bytes, load, |index, slices| {
            bar.inc(1);
            if let Some(slices) = slices {
                let logits = logits(self.rival, &slices, self.options.device)?;
                rows.push(Row { index, logits, located: None });
            }
            Ok::<_, Error>(())
        })?;
        Ok(rows)
    }
}

/// What a network says of one volume, `[C]`, brought back from a GPU.
pub fn logits(rival: &dyn Rival, slices: &Slices, device: Device) -> Result<Vec<f32>, TchError> {
    let _guard = tch::no_grad_guard();
    let volume = slices.tensor(0, slices.count, device)?.f_unsqueeze(0)?;
    Ok(stored(&rival.forward(&volume, false)?)?.data)
}

/// The slices of a sample of a task without views; `None` where it is skipped.
fn only(cache: &Cache<'_>, index: usize) -> Result<Option<Arc<Slices>>, Error> {
    let study = cache.get(index)?;
    Ok(study.and_then(|study| study.views.iter().flatten().next().map(Arc::clone)))
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
