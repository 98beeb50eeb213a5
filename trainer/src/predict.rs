//! Predictions with libtorch, as a table.

use std::sync::Arc;

use firmware_config::Activation;
use indicatif::ProgressBar;

use crate::Error;
use crate::data::{Slices, Table};
use crate::fit::bar;
use crate::metrics::{self, auroc, macro_mean};
use crate::model::{Network, Parameters};
use crate::task::Task;
use crate::workers::Workers;

/// The logits of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The sample's index in its table.
    pub index: usize,
    /// `[C]`.
    pub logits: Vec<f32>,
}

/// Predicts every sample of a table with `threads` threads.
pub fn predict(
    network: &Network,
    table: &Table,
    task: &Task,
    threads: usize,
    progress: bool,
) -> Result<Vec<Row>, Error> {
    let indices: Vec<usize> = (0..table.samples.len()).collect();
    let bar = bar(progress, indices.len(), "predictions");
    let workers = Workers::new(network, threads, threads)?;
    let load = |i: usize| Slices::load(table, &table.samples[i], &task.recipe).map(Arc::new);
    let rows = rows(&workers, &network.parameters, &indices, load, task, &bar)?;
    bar.finish_and_clear();
    Ok(rows)
}

/// Predicts the samples `indices`.
pub(crate) fn rows(
    workers: &Workers,
    parameters: &Parameters,
    indices: &[usize],
    load: impl Fn(usize) -> Result<Arc<Slices>, Error> + Sync,
    task: &Task,
    bar: &ProgressBar,
) -> Result<Vec<Row>, Error> {
    let chunk = task.train.chunk;
    let work = move |network: &Network, slices: &Slices| Ok(network.predict(slices, chunk)?.logits);
    let logits = workers.over(parameters, indices, load, work, |n| bar.inc(n as u64))?;
    Ok(indices.iter().zip(logits).map(|(&index, logits)| Row { index, logits }).collect())
}

/// The temperature that calibrates `rows` best; 1 where none can be told.
pub fn temperature(table: &Table, task: &Task, rows: &[&Row]) -> f64 {
    let volumes: Vec<(&[f32], &[Option<bool>])> =
        rows.iter().map(|r| (r.logits.as_slice(), table.samples[r.index].targets.as_slice())).collect();
    metrics::temperature(&volumes, task.activation()).unwrap_or(1.0)
}

/// CSV with `id`, `split`, the labels (0, 1 or empty), `logit:LABEL` and `prob:LABEL`, which is after `temperature`.
pub fn csv(table: &Table, task: &Task, rows: &[Row], temperature: f64) -> Result<Vec<u8>, Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::io("predictions")(std::io::Error::other(e));
    let labels = || task.labels.iter();
    let header = ["id".to_owned(), "split".into()]
        .into_iter()
        .chain(labels().cloned())
        .chain(labels().map(|l| format!("logit:{l}")))
        .chain(labels().map(|l| format!("prob:{l}")));
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        let sample = &table.samples[row.index];
        let targets = sample.targets.iter().map(|t| t.map_or(String::new(), |t| u8::from(t).to_string()));
        let probabilities = task.activation().probabilities(&row.logits, temperature);
        let record = [sample.id.clone(), sample.split.name().into()]
            .into_iter()
            .chain(targets)
            .chain(row.logits.iter().map(ToString::to_string))
            .chain(probabilities.iter().map(ToString::to_string));
        writer.write_record(record).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| Error::io("predictions")(e.into_error()))
}

/// Scores and truth of the rows whose label `label` is known; the scores rank as the probabilities do.
pub fn known<'a>(
    table: &Table,
    task: &Task,
    rows: impl IntoIterator<Item = &'a Row>,
    label: usize,
) -> (Vec<f64>, Vec<bool>) {
    let score = |row: &Row| match task.activation() {
        // The sigmoid rises with the logit but saturates, which would make ties.
        Activation::Sigmoid => f64::from(row.logits[label]),
        Activation::Softmax => Activation::Softmax.probabilities(&row.logits, 1.0)[label],
    };
    let known = |row: &Row| table.samples[row.index].targets[label].map(|truth| (score(row), truth));
    rows.into_iter().filter_map(known).unzip()
}

/// Mean AUROC over the labels of which both classes are among the rows.
pub fn macro_auroc<'a>(
    table: &Table,
    task: &Task,
    rows: &(impl IntoIterator<Item = &'a Row> + Clone),
) -> Option<f64> {
    macro_mean((0..task.labels.len()).map(|label| {
        let (scores, truth) = known(table, task, rows.clone(), label);
        auroc(&scores, &truth)
    }))
}
