//! What a fitted method says of the volumes, as they are and as other series of them.

use std::sync::Arc;
use std::time::Instant;

use super::cell::{Fitted, Job, Made};
use crate::Error;
use crate::data::{Cache, Slices, Split, Study};
use crate::predict::{self, Row};
use crate::random::{Purpose, generator, permutation};
use crate::run::file;

/// Test volumes of which the slices were shuffled.
pub(super) const SHUFFLED: &str = "shuffled.csv";
/// Test volumes of which every second slice was left out.
pub(super) const THINNED: &str = "thinned.csv";

/// Writes predictions of validation and test volumes, and of test volumes whose slices were changed; notes the seconds a volume, and how
/// many volumes the method had to resample.
pub(super) fn write(job: &Job<'_>, model: &dyn Fitted, made: &mut Made) -> Result<(), Error> {
    let (task, table) = (&job.task, &job.table);
    let cache =
        Cache::new(table, task, 0).stored_in(Some(&job.slices()))?.skipping(task.train.skip_unreadable);
    let (mut seconds, mut resampled) = (0.0, Vec::new());
    let [mut rows, mut shuffled, mut thinned] = [const { Vec::new() }; 3];
    for split in [Split::Val, Split::Test] {
        for index in table.split(split) {
            let Some(study) = cache.get(index)? else { continue };
            let started = Instant::now();
            let logits = model.logits(&study)?;
            seconds += started.elapsed().as_secs_f64();
            resampled.extend(model.resampled(&study));
            rows.push(Row { index, logits, located: None });
            if split == Split::Test {
                let changed = |change: &dyn Fn(&Slices) -> Slices| {
                    let views = study.views.iter();
                    let views =
                        views.map(|view| view.as_ref().map(|slices| Arc::new(change(slices)))).collect();
                    Ok::<_, Error>(Row { index, logits: model.logits(&Study { views })?, located: None })
                };
                shuffled.push(changed(&|slices| shuffle(slices, index as u64))?);
                thinned.push(changed(&thin)?);
            }
        }
    }
    let val: Vec<&Row> = rows.iter().filter(|row| table.samples[row.index].split == Split::Val).collect();
    let temperature = predict::temperature(table, task, &val);
    for (name, rows) in [(file::PREDICTIONS, &rows), (SHUFFLED, &shuffled), (THINNED, &thinned)] {
        let path = job.folder.join(name);
        let csv = predict::csv(table, task, rows, temperature)?;
        runtime::files::write_atomically(&path, &csv).map_err(Error::io(&path))?;
    }
    made.seconds_predict = seconds / rows.len().max(1) as f64;
    if let Some([s, h, w]) = resampled.first() {
        made.notes.push(format!(
            "{} of {} predicted volumes were resampled, since the network takes no such size, the first of them to {s}×{h}×{w} voxels",
            resampled.len(),
            rows.len()
        ));
    }
    Ok(())
}

/// The slices in random order, the same for every method.
fn shuffle(slices: &Slices, sample: u64) -> Slices {
    let order = permutation(slices.count, &mut generator(0, Purpose::Order, 0, sample));
    chosen(slices, &order)
}

/// Every second slice, as of a series with twice the spacing.
fn thin(slices: &Slices) -> Slices {
    chosen(slices, &(0..slices.count).step_by(2).collect::<Vec<_>>())
}

fn chosen(slices: &Slices, order: &[usize]) -> Slices {
    let each = 3 * slices.size[0] * slices.size[1];
    let values = order.iter().flat_map(|&s| &slices.values[s * each..(s + 1) * each]).copied().collect();
    Slices { count: order.len(), size: slices.size, values, mask: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_series_hold_the_same_slices() {
        let slices =
            Slices { count: 5, size: [1, 1], values: (0..15).map(|i| i as f32).collect(), mask: None };
        let first = |s: &Slices| s.values.iter().step_by(3).copied().collect::<Vec<_>>();
        assert_eq!(first(&thin(&slices)), [0.0, 6.0, 12.0]);
        let mixed = first(&shuffle(&slices, 1));
        let mut sorted = mixed.clone();
        sorted.sort_by(f32::total_cmp);
        assert!(mixed != sorted && sorted == first(&slices), "{mixed:?}");
        assert_eq!(mixed, first(&shuffle(&slices, 1)));
    }
}
