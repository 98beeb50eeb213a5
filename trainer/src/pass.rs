//! One pass over the training volumes in batches, as every fit makes it, whatever it fits.

use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;
use tch::{TchError, Tensor};

use crate::Error;
use crate::data::{Ahead, Place, Sample, Sampling, Split, Table, in_order, order};
use crate::optim::schedule;
use crate::random::{Purpose, generator};
use crate::task::Task;

/// The training volumes in an epoch's order.
pub(crate) struct Pass<'a> {
    table: &'a Table,
    task: &'a Task,
    /// From 1.
    epoch: u64,
    places: Vec<Place>,
    /// Volumes, each once.
    volumes: usize,
}

/// The volumes of a step.
pub(crate) struct Batch<'a, T> {
    /// Those that could be read; a batch of which none could is empty.
    pub(crate) items: Vec<(&'a Sample, T)>,
    /// What the schedule makes of learning rates.
    pub(crate) factor: f64,
}

/// What there is to tell of a pass.
pub(crate) struct Ended {
    /// The last batch's.
    pub(crate) factor: f64,
    /// Volumes that could not be read.
    pub(crate) skipped: usize,
}

impl<'a> Pass<'a> {
    /// The order follows from the task's seed and `epoch`, which counts from 1.
    pub(crate) fn new(table: &'a Table, task: &'a Task, sampling: Sampling, epoch: usize) -> Self {
        let (volumes, epoch) = (table.split(Split::Train), epoch as u64);
        let places = order(&table.samples, &volumes, task.loss, sampling, task.train.seed, epoch);
        Self { table, task, epoch, places, volumes: volumes.len() }
    }

    /// Calls `prepare`, ahead and on other threads, with each volume's index and a generator for its augmentation, and `step` with
    /// one batch after the other. `prepare` gives `None` for a volume that is skipped, which leaves its batch smaller, so that
    /// steps and schedule stay those of the table; `bytes` says what one holds. An error where no volume at all can be read.
    pub(crate) fn run<T: Send>(
        &self,
        ahead: Ahead,
        bytes: impl Fn(&T) -> usize + Sync,
        prepare: impl Fn(usize, ChaCha8Rng) -> Result<Option<T>, Error> + Sync,
        bar: &ProgressBar,
        mut step: impl FnMut(Batch<'a, T>) -> Result<(), Error>,
    ) -> Result<Ended, Error> {
        let train = &self.task.train;
        let per_epoch = self.volumes.div_ceil(train.batch) as u64;
        let total = per_epoch * train.epochs as u64;
        let warmup = (train.warmup * total as f64).ceil() as u64;
        let make = |at: usize| {
            let place = self.places[at];
            prepare(place.index, generator(train.seed, Purpose::Augment, self.epoch, place.key()))
        };
        let held = |made: &Option<T>| made.as_ref().map_or(0, &bytes);
        let mut ended = Ended { factor: 0.0, skipped: 0 };
        let mut items = Vec::new();
        in_order(&(0..self.places.len()).collect::<Vec<_>>(), ahead, held, make, |at, made| {
            match made {
                Some(made) => items.push((&self.table.samples[self.places[at].index], made)),
                None => ended.skipped += 1,
            }
            bar.inc(1);
            let seen = at + 1;
            if !seen.is_multiple_of(train.batch) && seen < self.places.len() {
                return Ok(());
            }
            let number = (self.epoch - 1) * per_epoch + (at / train.batch) as u64;
            ended.factor = schedule(number, warmup, total);
            step(Batch { items: std::mem::take(&mut items), factor: ended.factor })
        })?;
        if ended.skipped == self.places.len() {
            let skipped = ended.skipped;
            let problem =
                format!("none of the {skipped} training volumes can be read; see the warnings for why");
            return Err(Error::Table { path: self.table.path.clone(), problem });
        }
        Ok(ended)
    }
}

impl<T> Batch<'_, T> {
    /// The volumes' names, for messages.
    pub(crate) fn ids(&self) -> String {
        self.items.iter().map(|(sample, _)| sample.id.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// What is not finite of a step, with its value: such a step must not be taken.
pub(crate) fn broken(loss: f64, norm: f64) -> Option<(&'static str, f64)> {
    [("loss", loss), ("gradient norm", norm)].into_iter().find(|(_, value)| !value.is_finite())
}

/// Shortens `gradients` of this norm to the length `most`.
pub(crate) fn clip(gradients: &mut Tensor, norm: f64, most: Option<f64>) -> Result<(), TchError> {
    if let Some(most) = most.filter(|&most| norm > most) {
        let _ = gradients.f_mul_scalar_(most / norm)?;
    }
    Ok(())
}
