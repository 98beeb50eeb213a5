use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::predictions::{SHUFFLED, THINNED};
use super::{Cell, Made, Method, Options, State, Suite, SuiteTask, critical_difference, mean_ranks};
use crate::Error;
use crate::crossval::Spread;
use crate::evaluate::{Case, Predictions, evaluate, versus};
use crate::metrics::Paired;
use crate::run::file;

/// The tables of a comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// In the order of the tables.
    pub tasks: Vec<String>,
    /// A method each, in the order asked for.
    pub methods: Vec<Row>,
    /// Tasks on which every method has a figure, over which ranks are taken.
    pub ranked_tasks: usize,
    /// By how much mean ranks must differ (Nemenyi, 5 %).
    pub critical_difference: Option<f64>,
}

/// One method over all tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// As on the command line.
    pub method: String,
    /// What it is.
    pub description: String,
    /// Whether tasks can share its backbone.
    pub frozen: bool,
    /// One a task.
    pub entries: Vec<Entry>,
    /// Mean over the tasks, where all have a figure.
    pub mean_auroc: Option<f64>,
    /// Over the tasks on which every method has a figure.
    pub mean_rank: Option<f64>,
    /// Its cells.
    pub cells: Cells,
}

impl Row {
    /// Without figures.
    pub(super) fn of(method: &Method) -> Self {
        Self {
            method: method.to_string(),
            description: method.base.description().into(),
            frozen: method.base.is_frozen(),
            entries: Vec::new(),
            mean_auroc: None,
            mean_rank: None,
            cells: Cells::default(),
        }
    }
}

/// How many cells there are, and what they take.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cells {
    /// All of the table.
    pub asked: usize,
    /// Those with figures.
    pub done: usize,
    /// Those that were tried and have none.
    pub empty: usize,
    /// From the start of a cell to its figures, mean over those that have some.
    pub seconds: Option<f64>,
}

/// One method on one task, over the seeds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Mean AUROC over labels on test volumes, a seed each.
    pub seeds: BTreeMap<u64, f64>,
    /// Their mean.
    pub auroc: Option<f64>,
    /// 95 %: over the seeds by Student's t; of one seed by a bootstrap over the test volumes.
    pub ci: Option<[f64; 2]>,
    /// Less the first method's, means of the logits over the seeds, by DeLong's paired test; of one label.
    pub versus_first: Option<Paired>,
    /// Mean AUROC on test volumes whose slices were shuffled.
    pub shuffled: Option<f64>,
    /// Mean AUROC on test volumes of which every second slice was left out.
    pub thinned: Option<f64>,
    /// Trainable parameters.
    pub parameters: Option<usize>,
    /// What the task ships besides a shared backbone.
    pub bytes: Option<u64>,
    /// Mean over the seeds, of the fit.
    pub seconds_fit: Option<f64>,
    /// The same, a volume predicted.
    pub seconds_predict: Option<f64>,
    /// Largest of the seeds, MB of the process.
    pub peak_mb: Option<f64>,
    /// Largest of the seeds, MB on the GPU.
    pub peak_gpu_mb: Option<f64>,
    /// Why seeds have no figure.
    pub empty: BTreeMap<u64, String>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Sums up what is there of `methods` on the suite's tasks with `seeds` in the comparison's folder. A cell that was made of another
/// task, table, backbone or version is not looked at.
pub fn gather(
    options: &Options,
    suite: &Suite,
    methods: &[Method],
    seeds: &[u64],
) -> Result<Comparison, Error> {
    let tasks = &suite.tasks;
    let mut rows: Vec<Row> = Vec::new();
    let mut first: Vec<Option<Predictions>> = Vec::new();
    for method in methods {
        let mut row = Row::of(method);
        let mut times = Vec::new();
        for (place, task) in tasks.iter().enumerate() {
            let Gathered { mut entry, mean, seconds, refused } = entry(options, task, method, seeds)?;
            row.cells.asked += seeds_of(method, seeds).len();
            row.cells.done += seconds.len();
            row.cells.empty += refused;
            times.extend(seconds);
            if rows.is_empty() {
                first.push(mean);
            } else if let (Some(mean), Some(Some(first))) = (mean, first.get(place)) {
                let found = versus(&mean, first, "test").ok();
                entry.versus_first =
                    found.filter(|found| found.labels.len() == 1).and_then(|found| found.labels[0].1);
            }
            row.entries.push(entry);
        }
        let aurocs: Option<Vec<f64>> = row.entries.iter().map(|entry: &Entry| entry.auroc).collect();
        row.mean_auroc = aurocs.map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64);
        row.cells.seconds = Spread::of(times.into_iter().map(Some)).map(|spread| spread.mean);
        rows.push(row);
    }
    let figures: Vec<Vec<Option<f64>>> =
        (0..tasks.len()).map(|t| rows.iter().map(|row| row.entries[t].auroc).collect()).collect();
    let (ranks, ranked_tasks) = mean_ranks(&figures);
    for (row, rank) in rows.iter_mut().zip(ranks) {
        row.mean_rank = (ranked_tasks > 0).then_some(rank);
    }
    let critical_difference = critical_difference(rows.len(), ranked_tasks);
    let tasks = tasks.iter().map(|task| task.name.clone()).collect();
    Ok(Comparison { tasks, methods: rows, ranked_tasks, critical_difference })
}

/// The seeds that a method has cells for.
pub fn seeds_of(method: &Method, seeds: &[u64]) -> Vec<u64> {
    if method.base.is_seedless() { seeds.iter().copied().take(1).collect() } else { seeds.to_vec() }
}

/// What is there of a method on a task.
struct Gathered {
    entry: Entry,
    /// Means of the logits over the seeds.
    mean: Option<Predictions>,
    /// Of each cell that has figures.
    seconds: Vec<f64>,
    /// Cells that were tried and have no figures.
    refused: usize,
}

fn entry(options: &Options, task: &SuiteTask, method: &Method, seeds: &[u64]) -> Result<Gathered, Error> {
    let mut entry = Entry::default();
    let mut found: Vec<(Made, Predictions)> = Vec::new();
    let [mut shuffled, mut thinned] = [const { Vec::new() }; 2];
    let (mut only_ci, mut refused) = (None, 0);
    for seed in seeds_of(method, seeds) {
        let cell = Cell { task: task.name.clone(), method: method.clone(), seed };
        let Some(made) = cell.made(&options.out) else {
            entry.empty.insert(seed, "not made yet".into());
            continue;
        };
        if made.key != cell.key(task, options) {
            let why = "made of another task, table, backbone or version; make it again";
            entry.empty.insert(seed, why.into());
            continue;
        }
        if let State::Empty(why) = &made.state {
            entry.empty.insert(seed, why.clone());
            refused += 1;
            continue;
        }
        let folder = cell.folder(&options.out);
        let read = |name: &str| {
            let path = folder.join(name);
            let unusable = |problem: String| Error::Run { path: path.clone(), problem };
            let predictions = Predictions::read(&path).map_err(|e| unusable(e.to_string()))?;
            let evaluation = evaluate(&predictions, "test").map_err(|e| unusable(e.to_string()))?;
            Ok::<_, Error>((predictions, evaluation))
        };
        let (predictions, evaluation) = read(file::PREDICTIONS)?;
        if let Some(auroc) = evaluation.macro_auroc {
            entry.seeds.insert(seed, auroc);
        }
        // One label has DeLong's interval, which is wider than nothing where all are told apart.
        only_ci = match evaluation.labels.as_slice() {
            [only] => only.auroc.as_ref().map(|auroc| auroc.ci),
            _ => evaluation.macro_auroc_ci,
        };
        shuffled.push(read(SHUFFLED)?.1.macro_auroc);
        thinned.push(read(THINNED)?.1.macro_auroc);
        found.push((made, predictions));
    }
    let spread = Spread::of(entry.seeds.values().copied().map(Some));
    entry.auroc = spread.map(|spread| spread.mean);
    entry.ci = spread.and_then(|spread| spread.ci).or(only_ci.filter(|_| entry.seeds.len() == 1));
    let mean = |values: Vec<Option<f64>>| Spread::of(values).map(|spread| spread.mean);
    (entry.shuffled, entry.thinned) = (mean(shuffled), mean(thinned));
    let of = |figure: fn(&Made) -> f64| mean(found.iter().map(|(made, _)| Some(figure(made))).collect());
    entry.seconds_fit = of(|made| made.seconds_fit);
    entry.seconds_predict = of(|made| made.seconds_predict);
    let largest = |figure: fn(&Made) -> Option<f64>| {
        found.iter().filter_map(|(made, _)| figure(made)).max_by(f64::total_cmp)
    };
    entry.peak_mb = largest(|made| made.peak_mb);
    entry.peak_gpu_mb = largest(|made| made.peak_gpu_mb);
    if let Some((made, _)) = found.first() {
        entry.parameters = Some(made.parameters);
        entry.bytes = Some(made.bytes);
        entry.notes.clone_from(&made.notes);
    }
    let seconds = found.iter().map(|(made, _)| made.seconds).collect();
    let mean = averaged(found.into_iter().map(|(_, predictions)| predictions).collect());
    Ok(Gathered { entry, mean, seconds, refused })
}

/// Mean logits over runs of the same cases; AUROC does not look at probabilities but by their order, so these are logits too.
fn averaged(runs: Vec<Predictions>) -> Option<Predictions> {
    let count = runs.len() as f64;
    let mut runs = runs.into_iter();
    let mut sum = runs.next()?;
    for run in runs {
        if run.cases.len() != sum.cases.len() {
            return None;
        }
        for (mine, other) in sum.cases.iter_mut().zip(&run.cases) {
            mine.logits.iter_mut().zip(&other.logits).for_each(|(a, b)| *a += b);
        }
    }
    for Case { logits, probabilities, .. } in &mut sum.cases {
        for x in logits.iter_mut() {
            *x /= count;
        }
        probabilities.clone_from(logits);
    }
    Some(sum)
}
