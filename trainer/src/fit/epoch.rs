//! One epoch: a pass over the training volumes, then the validation volumes.

use std::sync::Arc;

use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;

use super::{Fit, Item, Losses, Plan, gradients, now};
use crate::Error;
use crate::data::{Scale, Slices, Split, Study, augment, in_order, order};
use crate::model::{Group, Parameters};
use crate::optim::{Rates, norm, schedule};
use crate::precision::Scaler;
use crate::predict::{self, Row};
use crate::random::{Purpose, generator};
use crate::task::Augment;

impl Fit<'_> {
    /// One pass over the training volumes; returns the mean losses of its steps, the last step's schedule factor, and how many
    /// volumes were skipped.
    pub(super) fn train(
        &mut self,
        epoch: usize,
        kept: usize,
        bar: &ProgressBar,
    ) -> Result<(Losses, f64, usize), Error> {
        let Self {
            task, table, cache, network, ordinal, average, workers, optimiser, scaler, events, ..
        } = self;
        let train = &task.train;
        let samples = table.split(Split::Train);
        let order = order(&table.samples, &samples, task.loss, train.sampling, train.seed, epoch as u64);
        let per_epoch = samples.len().div_ceil(train.batch) as u64;
        let total = per_epoch * train.epochs as u64;
        let warmup = (train.warmup * total as f64).ceil() as u64;

        let scales: Vec<Scale> = task.inputs().into_iter().map(|(_, recipe)| Scale::of(recipe)).collect();
        let prepare = |at: usize| {
            let Some(study) = cache.get(order[at].index)? else { return Ok(None) };
            let rng = generator(train.seed, Purpose::Augment, epoch as u64, order[at].key());
            Ok(Some(augmented(&study, &train.augment, &scales, &rng).into()))
        };
        let (mut sum, mut steps, mut factor) = (0.0, 0u64, 0.0);
        let (mut pixel_sum, mut pixel_steps) = (0.0, 0u64);
        let (mut batch, mut ids, mut seen, mut skipped) = (Vec::new(), Vec::new(), 0usize, 0);
        let bytes = |study: &Option<Arc<Study>>| study.as_ref().map_or(0, |study| study.bytes());
        in_order(&(0..order.len()).collect::<Vec<_>>(), workers.ahead(), bytes, prepare, |at, study| {
            let sample = &table.samples[order[at].index];
            match study {
                Some(study) => {
                    batch.push(Item { study, targets: sample.targets.clone() });
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
            let plan = Plan {
                loss: task.loss,
                smoothing: train.smoothing,
                chunk: train.chunk,
                scale: scaler.map_or(1.0, |scaler| scaler.scale),
                pixel: train.pixel.map(|pixel| pixel.weight),
            };
            let made = gradients(workers, &network.parameters, items, plan)?;
            // The schedule follows epochs and batches, also over a batch of which no label is known.
            factor = schedule(
                (epoch as u64 - 1) * per_epoch + (seen - 1) as u64 / train.batch as u64,
                warmup,
                total,
            );
            if let Some((Losses { total: loss, pixel }, mut gradients)) = made {
                if let Some(ordinal) = ordinal.as_ref() {
                    ordinal.tie(&gradients)?;
                }
                let norm = norm(&gradients)?;
                if !(loss.is_finite() && norm.is_finite()) {
                    if scaler.as_mut().is_some_and(Scaler::skipped) {
                        return Ok(());
                    }
                    let (what, value) =
                        if loss.is_finite() { ("gradient norm", norm) } else { ("loss", loss) };
                    let (step, volumes) = (optimiser.steps() + 1, ids.join(", "));
                    return Err(Error::Diverged { what, value, epoch, step, volumes, kept });
                }
                if let Some(clip) = train.clip.filter(|&clip| norm > clip) {
                    let _ = gradients.f_mul_scalar_(clip / norm)?;
                }
                optimiser.step(&gradients, |group| match group {
                    Group::Lora => Rates { lr: train.lr_lora * factor, decay: train.decay_lora },
                    Group::Head => Rates { lr: train.lr_head * factor, decay: train.decay_head },
                })?;
                if let Some(ordinal) = ordinal.as_ref() {
                    ordinal.order(&network.parameters)?;
                }
                if let (Some(average), Some(decay)) = (average.as_ref(), train.ema) {
                    average.follow(&network.parameters, decay, optimiser.steps())?;
                }
                if let Some(scaler) = scaler.as_mut() {
                    scaler.taken();
                }
                let mut figures = vec![
                    ("train/loss", loss),
                    ("train/gradient_norm", norm),
                    ("lr/lora", train.lr_lora * factor),
                    ("lr/head", train.lr_head * factor),
                ];
                figures.extend(pixel.map(|pixel| ("train/pixel_loss", pixel)));
                events.scalars(now(), optimiser.steps(), &figures)?;
                sum += loss;
                steps += 1;
                pixel_sum += pixel.unwrap_or(0.0);
                pixel_steps += u64::from(pixel.is_some());
                bar.set_message(format!("loss {:.4}", sum / steps as f64));
            }
            Ok::<_, Error>(())
        })?;
        let pixel = (pixel_steps > 0).then(|| pixel_sum / pixel_steps as f64);
        Ok((Losses { total: sum / steps.max(1) as f64, pixel }, factor, skipped))
    }

    /// Mean loss and AUROC over the validation volumes, and how many were skipped.
    pub(super) fn validate(&self, bar: &ProgressBar) -> Result<(Option<f64>, Option<f64>, usize), Error> {
        bar.set_message("validation");
        let parameters = self.average.as_ref().unwrap_or(&self.network.parameters);
        let rows = self.predict(parameters, &[Split::Val], bar)?;
        Ok((
            predict::mean_loss(self.table, self.task, &rows)?,
            predict::macro_auroc(self.table, self.task, &rows.iter()),
            self.table.split(Split::Val).len() - rows.len(),
        ))
    }

    /// Logits that `parameters` give for all volumes of some splits, in the table's order.
    pub(super) fn predict(
        &self,
        parameters: &Parameters,
        splits: &[Split],
        bar: &ProgressBar,
    ) -> Result<Vec<Row>, Error> {
        let samples = &self.table.samples;
        let indices: Vec<usize> =
            (0..samples.len()).filter(|&i| splits.contains(&samples[i].split)).collect();
        let load = |i: usize| self.cache.get(i);
        predict::rows(&self.workers, parameters, &indices, load, self.task, bar)
    }
}

/// Random changes of a study, of every view alike.
fn augmented(study: &Study, settings: &Augment, scales: &[Scale], rng: &ChaCha8Rng) -> Study {
    let change = |(slices, scale): (&Option<Arc<Slices>>, &Scale)| {
        slices.as_ref().map(|slices| augment(slices, settings, scale, &mut rng.clone()))
    };
    Study { views: study.views.iter().zip(scales).map(change).collect() }
}
