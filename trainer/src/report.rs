//! The HTML report of a run folder.

mod wrong;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tch::Device;

use crate::Error;
use crate::data::Table;
use crate::evaluate::{Case, OperatingPoint, Predictions, evaluate};
use crate::export::{EXPORT, Exported};
use crate::fit::{Checkpoint, Summary};
use crate::html;
use crate::run::{Run, file};

/// What goes into a report.
#[derive(Debug, Clone)]
pub struct Options {
    /// Run folder.
    pub run: PathBuf,
    /// Pictures of `scanside infer --picture`.
    pub pictures: Vec<PathBuf>,
    /// How many of the worst test volumes are shown.
    pub wrong: usize,
    /// Backbone file, if it is not any more where the run was fitted.
    pub backbone: Option<PathBuf>,
    /// Data table, if it is not any more where the run was fitted.
    pub data: Option<PathBuf>,
    /// Where libtorch computes.
    pub device: Device,
    /// libtorch's threads.
    pub threads: usize,
}

/// Gathers a finished run's curves, test predictions, figures and worst cases.
///
/// Export figures are left out where the run was not exported yet.
pub fn gather(options: &Options) -> Result<html::Report, Error> {
    let folder = options.run.as_path();
    let run = Run::open(folder)?;
    let settings = run.settings();
    let summary: Summary = json(&folder.join(file::SUMMARY))?;
    let exported = folder.join(EXPORT);
    let exported: Option<Exported> = if exported.exists() { Some(json(&exported)?) } else { None };
    let history = Checkpoint::read(&folder.join(file::LAST))?.state.history;
    let epochs = history.iter().map(|e| html::Epoch {
        epoch: e.epoch,
        train_loss: e.train_loss,
        val_loss: e.val_loss,
        val_auroc: e.val_auroc,
        best: e.epoch == summary.best_epoch,
    });

    let path = folder.join(file::PREDICTIONS);
    let predictions = Predictions::read(&path).map_err(|e| Error::Run { path, problem: e.to_string() })?;
    let labels = predictions.labels.iter().enumerate().map(|(l, label)| {
        let (probabilities, truth) = predictions.of(l, "test");
        html::LabelScores { label: label.clone(), probabilities, truth }
    });
    // Without test volumes of both classes there is nothing to evaluate, and the report goes without.
    let evaluation = evaluate(&predictions, "test").ok();
    let points = evaluation.iter().flat_map(|e| &e.labels).flat_map(|label| {
        let of =
            |point: &OperatingPoint| html::Operating { label: label.label.clone(), point: point.clone() };
        label.operating_points.iter().map(of)
    });

    let (task, data) = (&settings.task, &settings.data);
    Ok(html::Report {
        title: format!("{} {}", task.name, task.version),
        about: format!(
            "Fitted on {} volumes, chosen on {}, tested on {}. Backbone: {} ({}), frozen; {} blocks, LoRA of rank {}.",
            data.train,
            data.val,
            data.test,
            settings.backbone.name,
            settings.backbone.licence,
            task.blocks.map_or("all".into(), |n| format!("first {n}")),
            task.lora.rank,
        ),
        epochs: epochs.collect(),
        labels: labels.collect(),
        figures: html::Figures {
            probe_auroc: summary.probe_auroc,
            parity_max_abs: exported.as_ref().map(|e| e.parity.logits),
            parameters: Some(summary.parameters),
            plugin_bytes: exported.as_ref().map(|e| e.plugin_bytes as u64),
            graph_bytes: exported.as_ref().map(|e| e.graph_bytes as u64),
            seconds: Some(summary.seconds),
            more: vec![("temperature".into(), format!("{:.3}", summary.temperature))],
            ..Default::default()
        },
        operating: points.collect(),
        wrong: wrong_cases(&run, &predictions, options)?,
        pictures: options.pictures.iter().map(|path| picture(path)).collect::<Result<_, _>>()?,
    })
}

/// The worst test volumes with their pictures.
fn wrong_cases(run: &Run, predictions: &Predictions, options: &Options) -> Result<Vec<html::Wrong>, Error> {
    let worst = wrong::worst(predictions, options.wrong);
    if worst.is_empty() {
        return Ok(Vec::new());
    }
    tch::set_num_threads(options.threads.max(1) as i32);
    let task = &run.settings().task;
    let data = options.data.as_deref().unwrap_or(&run.settings().data.path);
    let table = Table::read(data, task, true)?;
    let network = run.network(&run.backbone(options.backbone.as_deref())?, options.device)?;
    let one = |(case, loss): (&Case, f64)| {
        let drawn = task.train.pooling.is_of_slices().then(|| wrong::draw(&network, task, &table, case));
        Ok(html::Wrong { png: drawn.transpose()?, ..wrong::entry(case, loss, &task.labels) })
    };
    worst.into_iter().map(one).collect()
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Run { path: path.into(), problem: e.to_string() })
}

fn picture(path: &Path) -> Result<html::Picture, Error> {
    let png = std::fs::read(path).map_err(Error::io(path))?;
    let caption = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(html::Picture { png, caption })
}

#[cfg(test)]
mod tests;
