//! The HTML report of a run folder.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::Error;
use crate::evaluate::Predictions;
use crate::export::{EXPORT, Exported};
use crate::fit::{Checkpoint, Summary};
use crate::html;
use crate::run::{Run, file};

/// Gathers a finished run's curves, test predictions and figures, and the pictures of `scanside infer --picture`.
///
/// Export figures are left out where the run was not exported yet.
pub fn gather(folder: &Path, pictures: &[PathBuf]) -> Result<html::Report, Error> {
    let run = Run::open(folder)?;
    let settings = run.settings();
    let summary: Summary = json(&folder.join(file::SUMMARY))?;
    let exported = folder.join(EXPORT);
    let exported: Option<Exported> = if exported.exists() { Some(json(&exported)?) } else { None };
    let history = Checkpoint::read(&folder.join(file::LAST))?.state.history;
    let epochs = history.iter().map(|e| html::Epoch {
        epoch: e.epoch,
        train_loss: e.train_loss,
        val_auroc: e.val_auroc,
        best: e.epoch == summary.best_epoch,
    });

    let path = folder.join(file::PREDICTIONS);
    let predictions = Predictions::read(&path).map_err(|e| Error::Run { path, problem: e.to_string() })?;
    let test: Vec<_> = predictions.cases.iter().filter(|case| case.split == "test").collect();
    let labels = predictions.labels.iter().enumerate().map(|(l, label)| {
        let known = || test.iter().filter_map(|case| Some((case.probabilities[l], case.truth[l]?)));
        let (probabilities, truth) = known().unzip();
        html::LabelScores { label: label.clone(), probabilities, truth }
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
            ..Default::default()
        },
        pictures: pictures.iter().map(|path| picture(path)).collect::<Result<_, _>>()?,
    })
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
