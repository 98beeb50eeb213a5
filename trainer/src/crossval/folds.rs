use std::collections::HashMap;

use crate::Error;
use crate::data::{Split, Table};
use crate::random::{Purpose, generator, permutation};

/// The parts of a cross-validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folds {
    /// Number of folds.
    pub count: usize,
    /// The part that each row of the table belongs to, from 0; `None` for test rows.
    pub of: Vec<Option<usize>>,
}

impl Folds {
    /// Parts the train and val rows of `table` into `count` folds, see [`assign`]; rows of one patient, or else
    /// of one scan, stay together.
    pub fn of(table: &Table, count: usize, seed: u64) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Table { path: table.path.clone(), problem };
        let rows: Vec<usize> =
            (0..table.samples.len()).filter(|&i| table.samples[i].split != Split::Test).collect();
        let mut numbers = HashMap::new();
        let mut group = |row: usize| {
            let sample = &table.samples[row];
            // Without a patient, rows of one scan are one; the same file by another way, as through a link, is the same scan.
            let key = sample.patient.clone().ok_or_else(|| {
                std::fs::canonicalize(sample.image()).unwrap_or_else(|_| sample.image().to_owned())
            });
            let next = numbers.len();
            *numbers.entry(key).or_insert(next)
        };
        let groups: Vec<usize> = rows.iter().map(|&row| group(row)).collect();
        let least = if table.split(Split::Test).is_empty() { 3 } else { 2 };
        if count < least {
            let why = if least == 3 { ", since without test rows each fit needs three parts" } else { "" };
            let problem = format!("it is {count}, expected at least {least}{why}");
            return Err(Error::Flag { flag: "--folds", problem });
        }
        if numbers.len() < count {
            let units = if table.samples.iter().any(|s| s.patient.is_some()) { "patients" } else { "scans" };
            return Err(wrong(format!(
                "its train and val rows are of {} {units}, expected at least one for each of {count} folds",
                numbers.len()
            )));
        }
        let targets: Vec<&[Option<bool>]> =
            rows.iter().map(|&i| table.samples[i].targets.as_slice()).collect();
        let mut of = vec![None; table.samples.len()];
        for (&row, fold) in rows.iter().zip(assign(&groups, &targets, count, seed)) {
            of[row] = Some(fold);
        }
        Ok(Self { count, of })
    }

    /// What the row `row` of `table` is used for in the fits of `fold`.
    ///
    /// Where the table has test rows, they stay such, and the fold is validated on. Where it has none, the fold is tested on,
    /// and the next one chooses the checkpoint: no figure comes from volumes that chose anything.
    pub fn split(&self, row: usize, fold: usize) -> Split {
        let tested = self.of.iter().any(Option::is_none);
        match self.of[row] {
            None => Split::Test,
            Some(part) if part == fold => {
                if tested {
                    Split::Val
                } else {
                    Split::Test
                }
            }
            Some(part) if !tested && part == (fold + 1) % self.count => Split::Val,
            Some(_) => Split::Train,
        }
    }

    /// CSV with `id`, `split` and `fold` (empty for test rows) of the fits of `fold`, in the table's order.
    pub fn csv(&self, table: &Table, fold: usize) -> Result<Vec<u8>, Error> {
        let failed = |e: csv::Error| Error::io("split")(std::io::Error::other(e));
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["id", "split", "fold"]).map_err(failed)?;
        for (row, sample) in table.samples.iter().enumerate() {
            let part = self.of[row].map_or(String::new(), |part| part.to_string());
            let record = [sample.id.as_str(), self.split(row, fold).name(), &part];
            writer.write_record(record).map_err(failed)?;
        }
        writer.into_inner().map_err(|e| Error::io("split")(e.into_error()))
    }
}

/// Parts rows into `count` folds such that each holds about the same share of every label's positives and negatives, and rows
/// of one group stay together: `groups[i]` (numbered from 0) and `targets[i]` belong to row `i`.
///
/// Greedy, as scikit-learn's `StratifiedGroupKFold`, for several labels at once: groups that hold most of something rare come
/// first, in random order among equals; each goes to the fold where the sum of squares of all shares grows least, then to
/// the smallest one. With one label and a row a group, the folds' numbers of positives differ by at most one, and so do those
/// of negatives.
pub fn assign(groups: &[usize], targets: &[&[Option<bool>]], count: usize, seed: u64) -> Vec<usize> {
    let labels = targets.first().map_or(0, |t| t.len());
    let number = groups.iter().max().map_or(0, |last| last + 1);
    let mut held = vec![vec![0.0; 2 * labels]; number];
    let mut sizes = vec![0usize; number];
    for (&group, row) in groups.iter().zip(targets) {
        sizes[group] += 1;
        for (label, target) in row.iter().enumerate() {
            if let Some(positive) = target {
                held[group][2 * label + usize::from(*positive)] += 1.0;
            }
        }
    }
    let totals: Vec<f64> = (0..2 * labels).map(|c| held.iter().map(|h| h[c]).sum::<f64>().max(1.0)).collect();
    let largest: Vec<f64> =
        held.iter().map(|h| h.iter().zip(&totals).map(|(n, total)| n / total).fold(0.0, f64::max)).collect();
    let mut order = permutation(number, &mut generator(seed, Purpose::Folds, 0, 0));
    order.sort_by(|&a, &b| largest[b].total_cmp(&largest[a]).then(sizes[b].cmp(&sizes[a])));

    let mut have = vec![(vec![0.0; 2 * labels], 0usize); count];
    let mut fold_of = vec![0; number];
    for group in order {
        let growth = |fold: usize| -> f64 {
            let terms = have[fold].0.iter().zip(&held[group]).zip(&totals);
            terms.map(|((have, more), total)| have * more / (total * total)).sum()
        };
        let cheaper =
            |a: &usize, b: &usize| growth(*a).total_cmp(&growth(*b)).then(have[*a].1.cmp(&have[*b].1));
        let fold = (0..count).min_by(cheaper).unwrap_or(0);
        fold_of[group] = fold;
        have[fold].1 += sizes[group];
        have[fold].0.iter_mut().zip(&held[group]).for_each(|(have, more)| *have += more);
    }
    groups.iter().map(|&group| fold_of[group]).collect()
}
