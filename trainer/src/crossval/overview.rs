use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{SPLIT, Spread};
use crate::Error;
use crate::data::column;
use crate::evaluate::{Case, Evaluation, Predictions, evaluate};
use crate::fit::{Summary, write_json};
use crate::run::{Settings, file};

/// What came of many fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// The finished ones, by fold and seed.
    pub runs: Vec<OneRun>,
    /// Mean over labels, on validation volumes, over the runs.
    pub val_auroc: Option<Spread>,
    /// The same on test volumes.
    pub test_auroc: Option<Spread>,
    /// The same of the linear probe, where it was fitted.
    pub probe_auroc: Option<Spread>,
    /// A label each.
    pub labels: BTreeMap<String, LabelSpread>,
    /// The predictions of `predictions.csv`, pooled: a split each.
    pub pooled: Vec<Evaluation>,
}

/// One finished fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OneRun {
    /// From 0; `None` where there are no folds.
    pub fold: Option<usize>,
    /// Its seed.
    pub seed: u64,
    /// Its run folder, relative to the overview.
    pub folder: PathBuf,
    /// Its best epoch.
    pub best_epoch: usize,
    /// Mean over labels, on validation volumes.
    pub val_auroc: Option<f64>,
    /// The same on test volumes.
    pub test_auroc: Option<f64>,
}

/// One label over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelSpread {
    /// AUROC on validation volumes.
    pub val_auroc: Option<Spread>,
    /// AUROC on test volumes.
    pub test_auroc: Option<Spread>,
}

/// An overview and the predictions that it was made from.
#[derive(Debug)]
pub struct Made {
    /// Figures.
    pub overview: Overview,
    /// Means over the runs.
    pub predictions: Predictions,
}

impl Made {
    /// Writes `summary.json` and `predictions.csv` into `out`.
    pub fn write(&self, out: &Path) -> Result<(), Error> {
        let path = out.join(file::PREDICTIONS);
        let csv = self.predictions.csv().map_err(|e| Error::io(&path)(std::io::Error::other(e)))?;
        runtime::files::write_atomically(&path, &csv).map_err(Error::io(&path))?;
        write_json(&out.join(file::SUMMARY), &self.overview)
    }
}

/// Sums up the finished fits in the folders under `out`.
///
/// A volume's logits are divided by each run's temperature and averaged over the runs that may speak of it: those that held
/// its fold out, and for a test row all. What chose a checkpoint of the same run is left out where something else was held
/// out, so that every train and val row counts once.
pub fn overview(out: &Path) -> Result<Made, Error> {
    let mut runs = Vec::new();
    let mut summaries: Vec<Summary> = Vec::new();
    let mut cases: Vec<(Case, f64)> = Vec::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    let mut task = None;
    let folds = numbered(out, "fold-")?;
    let folders: Vec<(Option<usize>, PathBuf)> = if folds.is_empty() {
        vec![(None, out.to_path_buf())]
    } else {
        folds.into_iter().map(|(fold, path)| (Some(fold as usize), path)).collect()
    };
    for (fold, folder) in folders {
        let parts = match fold {
            Some(_) => column(&folder.join(SPLIT), "fold")?.unwrap_or_default(),
            None => BTreeMap::new(),
        };
        for (seed, folder) in numbered(&folder, "seed-")? {
            if !folder.join(file::SUMMARY).exists() {
                continue;
            }
            let summary: Summary = json(&folder.join(file::SUMMARY))?;
            let settings: Settings = json(&folder.join(file::SETTINGS))?;
            let task = task.get_or_insert_with(|| settings.task.clone());
            let path = folder.join(file::PREDICTIONS);
            let unusable = |problem: String| Error::Run { path: path.clone(), problem };
            let predictions = Predictions::read(&path).map_err(|e| unusable(e.to_string()))?;
            if predictions.labels != task.labels {
                return Err(unusable(format!(
                    "its labels are {:?}, another run's {:?}",
                    predictions.labels, task.labels
                )));
            }
            for case in predictions.cases {
                let part = parts.get(&case.id).filter(|part| !part.is_empty());
                if part.is_some_and(|part| Some(part) != fold.map(|f| f.to_string()).as_ref()) {
                    continue;
                }
                let at = *place.entry(case.id.clone()).or_insert_with(|| {
                    let zeros = Case { logits: vec![0.0; case.logits.len()], ..case.clone() };
                    cases.push((zeros, 0.0));
                    cases.len() - 1
                });
                let (sum, n) = &mut cases[at];
                *n += 1.0;
                sum.logits.iter_mut().zip(&case.logits).for_each(|(sum, z)| *sum += z / summary.temperature);
            }
            runs.push(OneRun {
                fold,
                seed,
                folder: folder.strip_prefix(out).unwrap_or(&folder).into(),
                best_epoch: summary.best_epoch,
                val_auroc: summary.val_auroc,
                test_auroc: summary.test_auroc,
            });
            summaries.push(summary);
        }
    }
    let Some(task) = task else {
        let problem = "it has no finished run in fold-K/seed-S or seed-S; run `scanside-train fit` with --folds or --seeds first";
        return Err(Error::Run { path: out.into(), problem: problem.into() });
    };
    for (case, n) in &mut cases {
        case.logits.iter_mut().for_each(|z| *z /= *n);
        let logits: Vec<f32> = case.logits.iter().map(|&z| z as f32).collect();
        case.probabilities = task.activation().probabilities(&logits, 1.0);
    }
    let predictions = Predictions {
        name: out.join(file::PREDICTIONS).display().to_string(),
        labels: task.labels.clone(),
        cases: cases.into_iter().map(|(case, _)| case).collect(),
    };
    // A split of one class has no figures.
    let pooled = ["val", "test"].into_iter().filter_map(|split| evaluate(&predictions, split).ok()).collect();
    let spread = |of: fn(&Summary) -> Option<f64>| Spread::of(summaries.iter().map(of));
    let labels = task.labels.iter().map(|label| {
        let of = |test: bool| {
            let of_run = |summary: &Summary| {
                let figures = summary.labels.get(label)?;
                Some(if test { &figures.test_auroc } else { &figures.val_auroc }.as_ref()?.value)
            };
            Spread::of(summaries.iter().map(of_run))
        };
        (label.clone(), LabelSpread { val_auroc: of(false), test_auroc: of(true) })
    });
    let overview = Overview {
        labels: labels.collect(),
        val_auroc: spread(|s| s.val_auroc),
        test_auroc: spread(|s| s.test_auroc),
        probe_auroc: spread(|s| s.probe_auroc),
        runs,
        pooled,
    };
    Ok(Made { overview, predictions })
}

/// A run folder of the many in `folder`, if it has any.
pub(crate) fn one_of(folder: &Path) -> Option<PathBuf> {
    let first = |folder: &Path, prefix| numbered(folder, prefix).ok()?.into_iter().next();
    let fold = first(folder, "fold-").map_or_else(|| folder.to_path_buf(), |(_, path)| path);
    first(&fold, "seed-").map(|(_, path)| path)
}

/// The folders `PREFIX` + number in `folder`, by number.
fn numbered(folder: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = name.and_then(|name| name.strip_prefix(prefix)?.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Run { path: path.into(), problem: e.to_string() })
}

/// A table for the terminal.
impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.3}"));
        writeln!(
            f,
            "{:>4}  {:>6}  {:>10}  {:>9}  {:>10}",
            "fold", "seed", "best epoch", "val AUROC", "test AUROC"
        )?;
        for run in &self.runs {
            let fold = run.fold.map_or("–".into(), |fold| fold.to_string());
            let (val, test) = (area(run.val_auroc), area(run.test_auroc));
            writeln!(f, "{fold:>4}  {:>6}  {:>10}  {val:>9}  {test:>10}", run.seed, run.best_epoch)?;
        }
        writeln!(f)?;
        for (what, spread) in [
            ("val AUROC", self.val_auroc),
            ("test AUROC", self.test_auroc),
            ("probe's test AUROC", self.probe_auroc),
        ] {
            if let Some(spread) = spread {
                writeln!(f, "{what} of {} runs: {spread}", spread.runs)?;
            }
        }
        for pooled in &self.pooled {
            write!(f, "\npredictions.csv, {pooled}")?;
        }
        Ok(())
    }
}
