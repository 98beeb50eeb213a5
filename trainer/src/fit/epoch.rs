//! One epoch: a pass over the training volumes, then the validation volumes.

use std::sync::Arc;

use indicatif::ProgressBar;
use rand_chacha::ChaCha8Rng;

use super::{Fit, Item, Losses, Plan, gradients, now};
use crate::Error;
use crate::data::{Scale, Slices, Split, Study, augment};
use crate::model::{Group, Parameters};
use crate::optim::{Rates, norm};
use crate::pass::{Ended, Pass, broken, clip};
use crate::precision::Scaler;
use crate::predict::{self, Row};
use crate::task::Augment;

impl Fit<'_> {
    /// One pass over the training volumes; returns the mean losses of its steps, and what there is to tell of it.
    pub(super) fn train(
        &mut self,
        epoch: usize,
        kept: usize,
        bar: &ProgressBar,
    ) -> Result<(Losses, Ended), Error> {
        let Self {
            task,
            table,
            cache,
            network,
            ordinal,
            learned,
            average,
            workers,
            optimiser,
            scaler,
            events,
            ..
        } = self;
        let train = &task.train;
        let scales: Vec<Scale> = task.inputs().into_iter().map(|(_, recipe)| Scale::of(recipe)).collect();
        let prepare = |index: usize, rng: ChaCha8Rng| {
            let Some(study) = cache.get(index)? else { return Ok(None) };
            let study = augmented(&study, &train.augment, &scales, &rng);
            Ok(Some(Arc::new(train.pooling.input(&study).into_owned())))
        };
        let (mut sum, mut steps) = (0.0, 0u64);
        let (mut pixel_sum, mut pixel_steps) = (0.0, 0u64);
        let bytes = |study: &Arc<Study>| study.bytes();
        let pass = Pass::new(table, task, train.sampling, epoch);
        let ended = pass.run(workers.ahead(), bytes, prepare, bar, |batch| {
            let ids = batch.ids();
            let items = batch.items.into_iter();
            let items =
                items.map(|(sample, study)| Item { study, targets: sample.targets.clone() }).collect();
            let plan = Plan {
                loss: task.loss,
                smoothing: train.smoothing,
                chunk: train.chunk,
                scale: scaler.map_or(1.0, |scaler| scaler.scale),
                pixel: train.pixel.map(|pixel| pixel.weight),
            };
            let made = gradients(workers, &network.parameters, items, plan)?;
            let Some((Losses { total: loss, pixel }, mut gradients)) = made else { return Ok(()) };
            if let Some(learned) = learned.as_ref() {
                let _ = gradients.f_mul_(learned)?;
            }
            if let Some(ordinal) = ordinal.as_ref() {
                ordinal.tie(&gradients)?;
            }
            let norm = norm(&gradients)?;
            if let Some((what, value)) = broken(loss, norm) {
                if scaler.as_mut().is_some_and(Scaler::skipped) {
                    return Ok(());
                }
                let step = optimiser.steps() + 1;
                return Err(Error::Diverged { what, value, epoch, step, volumes: ids, kept });
            }
            clip(&mut gradients, norm, train.clip)?;
            let (lr_lora, lr_head) = (train.lr_lora * batch.factor, train.lr_head * batch.factor);
            optimiser.step(&gradients, |group| match group {
                Group::Lora => Rates { lr: lr_lora, decay: train.decay_lora },
                Group::Head => Rates { lr: lr_head, decay: train.decay_head },
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
                ("lr/lora", lr_lora),
                ("lr/head", lr_head),
            ];
            figures.extend(pixel.map(|pixel| ("train/pixel_loss", pixel)));
            events.scalars(now(), optimiser.steps(), &figures)?;
            sum += loss;
            steps += 1;
            pixel_sum += pixel.unwrap_or(0.0);
            pixel_steps += u64::from(pixel.is_some());
            bar.set_message(format!("loss {:.4}", sum / steps as f64));
            Ok(())
        })?;
        let pixel = (pixel_steps > 0).then(|| pixel_sum / pixel_steps as f64);
        Ok((Losses { total: sum / steps.max(1) as f64, pixel }, ended))
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
