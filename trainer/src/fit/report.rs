use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Epoch, Fit, Options, State, bar, now, write_json};
use crate::Error;
use crate::data::Split;
use crate::device::peak_bytes;
use crate::metrics::{Auroc, auroc_with_ci};
use crate::predict::{self, Row};
use crate::probe::{self, Probe};
use crate::run::{Run, file};
use crate::tensorboard::Events;

/// Final figures of a fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The best epoch, from 1.
    pub best_epoch: usize,
    /// Trainable parameters.
    pub parameters: usize,
    /// Mean over the labels of which both classes are there, on validation volumes.
    pub val_auroc: Option<f64>,
    /// The same on test volumes.
    pub test_auroc: Option<f64>,
    /// A label each.
    pub labels: BTreeMap<String, LabelSummary>,
    /// Test AUROC of a linear probe on frozen, mean-pooled embeddings of the same volumes, where one was fitted.
    pub probe_auroc: Option<f64>,
    /// What logits are divided by before the activation; fitted on the validation volumes, 1 where that is not possible.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Time of all epochs together.
    pub seconds: f64,
    /// Volumes that could not be read and were skipped, by id, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, String>,
    /// Most memory that tensors have held on the GPU at one time, in MB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gpu_mb: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// Figures of one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelSummary {
    /// Positive and negative volumes in train, validation and test.
    pub counts: BTreeMap<String, [usize; 2]>,
    /// On validation volumes.
    pub val_auroc: Option<Auroc>,
    /// On test volumes.
    pub test_auroc: Option<Auroc>,
}

/// What a finished fit has left, if all that is asked for is there.
pub(super) fn kept(state: &State, options: &Options) -> Option<Summary> {
    let summary = std::fs::read(options.out.join(file::SUMMARY)).ok()?;
    let summary: Summary = serde_json::from_slice(&summary).ok()?;
    let whole = options.out.join(file::PREDICTIONS).exists() && summary.best_epoch == state.best;
    (whole && (summary.probe_auroc.is_some() || !options.probe)).then_some(summary)
}

/// Predicts with the best checkpoint, fits the probe where asked for, and writes predictions and summary.
pub(super) fn finish(fit: &Fit<'_>, state: &State, options: &Options) -> Result<Summary, Error> {
    let run = Run::open(&options.out)?;
    run.best.load_into(&fit.network.parameters)?;
    let (table, task) = (fit.table, fit.task);
    let volumes = state.settings.data.val + state.settings.data.test;
    let progress = bar(fit.progress, volumes, "predictions");
    let rows = fit.predict(&fit.network.parameters, &[Split::Val, Split::Test], &progress)?;
    progress.finish_and_clear();
    let of = |split| -> Vec<&Row> { rows.iter().filter(|r| table.samples[r.index].split == split).collect() };
    let (val, test) = (of(Split::Val), of(Split::Test));
    let temperature = predict::temperature(table, task, &val);
    let path = options.out.join(file::PREDICTIONS);
    let csv = predict::csv(table, task, &rows, temperature)?;
    runtime::files::write_atomically(&path, &csv).map_err(Error::io(&path))?;

    let probe_auroc = if options.probe {
        let progress = bar(fit.progress, table.samples.len(), "linear probe");
        let Probe { auroc, rows } =
            probe::fit(&fit.workers, &fit.network.parameters, fit.cache, task, &progress)?;
        progress.finish_and_clear();
        if !rows.is_empty() {
            let val: Vec<&Row> =
                rows.iter().filter(|row| table.samples[row.index].split == Split::Val).collect();
            let csv = predict::csv(table, task, &rows, predict::temperature(table, task, &val))?;
            let path = options.out.join(file::PROBE);
            runtime::files::write_atomically(&path, &csv).map_err(Error::io(&path))?;
        }
        auroc
    } else {
        None
    };
    let labels = task.labels.iter().enumerate().map(|(l, label)| {
        let auroc = |rows: &[&Row]| {
            let (scores, truth) = predict::known(table, task, rows.iter().copied(), l);
            auroc_with_ci(&scores, &truth)
        };
        let counts = [Split::Train, Split::Val, Split::Test].map(|split| {
            let targets = table.split(split).into_iter().map(|i| table.samples[i].targets[l]);
            let count = |wanted| targets.clone().filter(|t| *t == Some(wanted)).count();
            (split.name().to_owned(), [count(true), count(false)])
        });
        let summary =
            LabelSummary { counts: counts.into(), val_auroc: auroc(&val), test_auroc: auroc(&test) };
        (label.clone(), summary)
    });
    let mut state = state.clone();
    state.add_skipped(fit.cache);
    if !state.skipped.is_empty() {
        tracing::warn!(
            "{} volumes could not be read and were skipped; summary.json names them",
            state.skipped.len()
        );
    }
    let summary = Summary {
        best_epoch: state.best,
        parameters: fit.network.parameters.count_of(|name| fit.task.lora.targets.contain(name)),
        val_auroc: predict::macro_auroc(table, task, &val.iter().copied()),
        test_auroc: predict::macro_auroc(table, task, &test.iter().copied()),
        labels: labels.collect(),
        probe_auroc,
        temperature,
        seconds: state.history.iter().map(|e| e.seconds).sum(),
        skipped: state.skipped,
        peak_gpu_mb: peak_bytes(options.device).map(|bytes| bytes as f64 / 1e6),
    };
    write_json(&options.out.join(file::SUMMARY), &summary)?;
    Ok(summary)
}

/// One line for people.
pub(super) fn line(epoch: &Epoch, of: usize) -> String {
    let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.4}"));
    format!(
        "epoch {}/{of}: train loss {:.4}{}, val loss {}, val AUROC {}, {:.1} s",
        epoch.epoch,
        epoch.train_loss,
        epoch.pixel_loss.map_or(String::new(), |loss| format!(" (masks {loss:.4})")),
        number(epoch.val_loss),
        number(epoch.val_auroc),
        epoch.seconds,
    )
}

/// An epoch's figures for TensorBoard, at its last step.
pub(super) fn events(events: &mut Events, epoch: &Epoch, step: u64) -> Result<(), Error> {
    let figures = [
        ("epoch/number", Some(epoch.epoch as f64)),
        ("epoch/train_loss", Some(epoch.train_loss)),
        ("epoch/pixel_loss", epoch.pixel_loss),
        ("val/loss", epoch.val_loss),
        ("val/auroc", epoch.val_auroc),
    ];
    let defined: Vec<(&str, f64)> = figures.into_iter().filter_map(|(tag, x)| Some((tag, x?))).collect();
    events.scalars(now(), step, &defined)
}

/// `metrics.csv`: one line an epoch; what is undefined is empty.
pub(super) fn write_metrics(history: &[Epoch], path: &Path) -> Result<(), Error> {
    let mut csv =
        String::from("epoch,train_loss,val_loss,val_auroc,lr_lora,lr_head,seconds,skipped,pixel_loss\n");
    for e in history {
        let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        let line = format!(
            "{},{},{},{},{},{},{:.3},{},{}\n",
            e.epoch,
            e.train_loss,
            number(e.val_loss),
            number(e.val_auroc),
            e.lr_lora,
            e.lr_head,
            e.seconds,
            e.skipped,
            number(e.pixel_loss),
        );
        csv.push_str(&line);
    }
    runtime::files::write_atomically(path, csv.as_bytes()).map_err(Error::io(path))
}
