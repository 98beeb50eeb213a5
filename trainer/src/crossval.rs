//! Many fits of one task: several seeds, the folds of a cross-validation, or both.
//!
//! | under OUT | content |
//! | --- | --- |
//! | `fold-K/split.csv` | the split of fold K's fits: `id`, `split`, and `fold`, the part that the row belongs to |
//! | `fold-K/seed-S/` | an ordinary run folder ([`crate::run`]); without folds it is `seed-S/` |
//! | `summary.json` | [`Overview`]: every run, mean and spread over them, out-of-fold figures |
//! | `predictions.csv` | out-of-fold predictions, and those of test rows, means over the runs |
//!
//! Each fit depends on nothing but its own fold and seed, so that fits may run one after another or as jobs of their own on
//! many machines over one folder. Each of them writes the overview of what is finished.

mod folds;
mod overview;
mod spread;

use std::path::{Path, PathBuf};

pub use folds::{Folds, assign};
pub(crate) use overview::one_of;
pub use overview::{LabelSpread, Made, OneRun, Overview, overview};
pub use spread::{Spread, t_quantile};

use crate::Error;
use crate::data::Table;
use crate::fit::{self, fit};

/// Which fits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Number of folds; `None` takes the table's own split.
    pub folds: Option<usize>,
    /// The folds to fit now, from 0; all where empty.
    pub only: Vec<usize>,
    /// Seeds, in the place of the task's; the task's own where empty.
    pub seeds: Vec<u64>,
}

/// Name of fold `fold`'s folder under OUT.
pub(crate) fn fold_folder(fold: usize) -> String {
    format!("fold-{fold}")
}

/// Name of a fold's split in its folder.
pub(crate) const SPLIT: &str = "split.csv";

/// Fits everything of `plan` into folders under `options.out` and sums up what is finished there.
///
/// Folds are drawn from the task's own seed, whatever `plan.seeds` are: each seed sees the same folds.
pub fn run(options: &fit::Options, plan: &Plan) -> Result<Overview, Error> {
    let flag = |flag, problem| Err(Error::Flag { flag, problem });
    let seeds = if plan.seeds.is_empty() { vec![options.task.train.seed] } else { plan.seeds.clone() };
    if (1..seeds.len()).any(|i| seeds[..i].contains(&seeds[i])) {
        return flag("--seeds", "a seed stands there twice, expected each once".into());
    }
    let splits = match plan.folds {
        None => vec![(options.out.clone(), None)],
        Some(count) => {
            if let Some(fold) = plan.only.iter().find(|&&fold| fold >= count) {
                return flag("--fold", format!("it is {fold}, expected 0 to {}", count.saturating_sub(1)));
            }
            let table = Table::read(&options.data, &options.task, false)?;
            let folds = Folds::of(&table, count, options.task.train.seed)?;
            let wanted = (0..count).filter(|fold| plan.only.is_empty() || plan.only.contains(fold));
            let split = |fold: usize| {
                let folder = options.out.join(fold_folder(fold));
                let path = write_split(&folder, &folds.csv(&table, fold)?)?;
                Ok((folder, Some(path)))
            };
            wanted.map(split).collect::<Result<_, Error>>()?
        }
    };
    for (folder, split) in &splits {
        for &seed in &seeds {
            let mut one = options.clone();
            one.task.train.seed = seed;
            one.split.clone_from(split);
            one.out = folder.join(format!("seed-{seed}"));
            tracing::info!("{}", one.out.display());
            fit(&one)?;
        }
    }
    let made = overview(&options.out)?;
    made.write(&options.out)?;
    Ok(made.overview)
}

/// Writes a fold's split, unless the same one is there already.
fn write_split(folder: &Path, csv: &[u8]) -> Result<PathBuf, Error> {
    let path = folder.join(SPLIT);
    match std::fs::read(&path) {
        Ok(there) if there == csv => return Ok(path),
        Ok(_) => {
            let problem =
                "it is the split of other folds or of another table; choose another --out, or remove it";
            return Err(Error::Run { path, problem: problem.into() });
        }
        Err(_) => {}
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    runtime::files::write_atomically(&path, csv).map_err(Error::io(&path))?;
    Ok(path)
}

#[cfg(test)]
mod tests;
