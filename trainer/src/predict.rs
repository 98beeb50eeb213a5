//! Predictions with libtorch, as a table.

use std::path::Path;
use std::sync::Arc;

use firmware_config::Activation;
use indicatif::ProgressBar;
use runtime::engine::Output;
use tch::{TchError, Tensor};

use crate::Error;
use crate::data::{Cache, Split, Study, Table};
use crate::evaluate::Heat;
use crate::evaluate::localisation::COLUMNS;
use crate::fit::bar;
use crate::localise::{self, Located, best_level, locate};
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
    /// The heat map against the sample's mask, where that was looked at.
    pub located: Option<Located>,
}

/// Volumes whose heat maps are held at a time.
const HELD: usize = 64;

/// Predicts every sample of a table with `threads` threads; prepared slices are kept in the folder `cache`. Where a sample has a
/// mask, its heat map is compared with it, with a tolerance in mm for the peak; not on three planes, whose maps do not lie on its slices. Scans that cannot be read have no row where the
/// task says `train.skip_unreadable`.
pub fn predict(
    network: &Network,
    table: &Table,
    task: &Task,
    cache: Option<&Path>,
    tolerance_mm: f64,
    threads: usize,
    progress: bool,
) -> Result<Vec<Row>, Error> {
    let indices: Vec<usize> = (0..table.samples.len()).collect();
    let bar = bar(progress, indices.len(), "predictions");
    let workers = Workers::new(network, threads, threads)?.with_prefetch(task.train.prefetch_mb << 20);
    let mut bare = table.clone();
    bare.keep_masks(|_| false);
    // Each is needed once: nothing is kept in memory.
    let cache = Cache::new(&bare, task, 0).stored_in(cache)?.skipping(task.train.skip_unreadable);
    let (chunk, grid) = (task.train.chunk, network.encoder.arch().grid(task.recipe.size).unwrap_or([1, 1]));
    let work = move |network: &Network, study: &Study| {
        let Output { logits, mut views, .. } = network.predict(study, chunk)?;
        // Only a task without views has masks.
        Ok((logits, views.swap_remove(0).heatmap))
    };
    let mut rows = Vec::with_capacity(indices.len());
    for part in indices.chunks(HELD) {
        let load = |i: usize| cache.get(i);
        let found = workers.over(&network.parameters, part, load, work, |n| bar.inc(n as u64))?;
        for (&index, found) in part.iter().zip(found) {
            let Some((logits, heatmap)) = found else { continue };
            let sample = &table.samples[index];
            let located = if task.train.pooling.is_of_slices() {
                locate(table, sample, &task.recipe, &heatmap, grid, tolerance_mm)?
            } else {
                None
            };
            rows.push(Row { index, logits, located });
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Predicts those of the samples `indices` for which `load` gives slices.
pub(crate) fn rows(
    workers: &Workers,
    parameters: &Parameters,
    indices: &[usize],
    load: impl Fn(usize) -> Result<Option<Arc<Study>>, Error> + Sync,
    task: &Task,
    bar: &ProgressBar,
) -> Result<Vec<Row>, Error> {
    let chunk = task.train.chunk;
    let work = move |network: &Network, study: &Study| Ok(network.predict(study, chunk)?.logits);
    let logits = workers.over(parameters, indices, load, work, |n| bar.inc(n as u64))?;
    let row =
        |(&index, logits): (&usize, Option<Vec<f32>>)| Some(Row { index, logits: logits?, located: None });
    Ok(indices.iter().zip(logits).filter_map(row).collect())
}

/// The temperature that calibrates `rows` best; 1 where none can be told.
pub fn temperature(table: &Table, task: &Task, rows: &[&Row]) -> f64 {
    let volumes: Vec<(&[f32], &[Option<bool>])> =
        rows.iter().map(|r| (r.logits.as_slice(), table.samples[r.index].targets.as_slice())).collect();
    metrics::temperature(&volumes, task.activation()).unwrap_or(1.0)
}

/// CSV with `id`, `split`, the labels (0, 1 or empty), `logit:LABEL` and `prob:LABEL`, which is after `temperature`; where a heat
/// map was compared with a mask also the columns of [`Heat`].
pub fn csv(table: &Table, task: &Task, rows: &[Row], temperature: f64) -> Result<Vec<u8>, Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::io("predictions")(std::io::Error::other(e));
    let labels = || task.labels.iter();
    let with_heat = rows.iter().any(|row| row.located.is_some());
    let val = rows.iter().filter(|row| table.samples[row.index].split == Split::Val);
    let level = best_level(val.filter_map(|row| row.located.as_ref()));
    let header = ["id".to_owned(), "split".into()]
        .into_iter()
        .chain(labels().cloned())
        .chain(labels().map(|l| format!("logit:{l}")))
        .chain(labels().map(|l| format!("prob:{l}")))
        .chain(with_heat.then_some(COLUMNS).into_iter().flatten().map(String::from));
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        let sample = &table.samples[row.index];
        let targets = sample.targets.iter().map(|t| t.map_or(String::new(), |t| u8::from(t).to_string()));
        let probabilities = task.activation().probabilities(&row.logits, temperature);
        let record = [sample.id.clone(), sample.split.name().into()]
            .into_iter()
            .chain(targets)
            .chain(row.logits.iter().map(ToString::to_string))
            .chain(probabilities.iter().map(ToString::to_string))
            .chain(with_heat.then(|| heat(row.located.as_ref(), level)).into_iter().flatten());
        writer.write_record(record).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| Error::io("predictions")(e.into_error()))
}

/// The cells of [`COLUMNS`], with Dice at `level`.
fn heat(located: Option<&Located>, level: Option<usize>) -> [String; 5] {
    let Some(located) = located else { return Default::default() };
    let heat = Heat {
        hit: located.hit,
        share: located.share,
        dice: level.map(|k| located.dice[k]),
        level: level.map(localise::level),
        best_dice: located.best(),
    };
    heat.cells()
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

/// Mean loss over the known labels of the rows; `None` where none is known.
pub(crate) fn mean_loss(table: &Table, task: &Task, rows: &[Row]) -> Result<Option<f64>, TchError> {
    let (mut sum, mut terms) = (0.0, 0);
    for row in rows {
        let targets = &table.samples[row.index].targets;
        sum += task.loss.sum(&Tensor::f_from_slice(&row.logits)?, targets)?.f_double_value(&[])?;
        terms += task.loss.terms(targets);
    }
    Ok((terms > 0).then(|| sum / terms as f64))
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
