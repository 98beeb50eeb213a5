//! What can be said of a series while it is arriving.
//!
//! After each quarter of the slices that the images announce, a task that takes them one by one is asked what it says of those that
//! are there. Which these are is the scanner's choice, and they may lie close together in one half of the scan; pooling
//! would then count that half twice. So slices are taken that are evenly spread over what has been covered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use firmware_config::Plane;

use super::core::{Core, locked};
use super::early::Done;
use crate::Error;
use crate::infer::{Encoded, LoadedTask, Scan, SliceName};
use crate::publish::Message;
use crate::result::{Completion, Kind};
use crate::volume::{Header, Source, SourceKind, series_digest};

/// Fewer announced slices than this are not worth a result before the last.
const LEAST: u32 = 8;

/// Called after each slice that was encoded on arrival.
pub(super) fn observe(core: &Core, series_uid: &str) {
    if !core.preliminary.load(Ordering::Relaxed) {
        return;
    }
    for task in core.tasks.of_series(&core.early.began_with(series_uid)) {
        if !task.plugin.manifest.is_streamable() {
            continue;
        }
        let done = core.early.done(series_uid, &task);
        let Some(quarter) = quarter(&done) else { continue };
        let key = (series_uid.to_owned(), task.plugin_sha256.clone());
        let mut quarters = locked(&core.quarters);
        if quarters.get(&key).is_some_and(|&last| last >= quarter) {
            continue;
        }
        quarters.insert(key, quarter);
        drop(quarters);
        let published = message(core, &task, &done).and_then(|message| {
            let Some(message) = message else { return Ok(()) };
            core.store.enqueue(&[message], core.clock.wall())?;
            core.count(Kind::Preliminary);
            Ok(())
        });
        match published {
            Ok(()) => core.wake_session(),
            // The final result does not depend on it.
            Err(error) => tracing::warn!(%error, "a preliminary result was not published"),
        }
    }
}

/// Which quarter of the announced slices is there as a whole: 1, 2 or 3.
fn quarter(done: &[Done]) -> Option<u32> {
    let expected = done.iter().filter_map(|(header, _)| header.images_in_acquisition).max()?;
    let there = u32::try_from(done.len()).ok()?;
    (expected >= LEAST && there < expected)
        .then(|| there.saturating_mul(4) / expected)
        .filter(|&quarter| quarter > 0)
}

/// The preliminary result of the slices that are there; none if their place is not known.
fn message(core: &Core, task: &LoadedTask, done: &[Done]) -> Result<Option<Message>, Error> {
    let places: Option<Vec<f64>> = done.iter().map(|(header, _)| height(header)).collect();
    let Some(places) = places else { return Ok(None) };
    let chosen: Vec<&Done> = spread(&places).into_iter().map(|n| &done[n]).collect();
    let Some((first, _)) = chosen.first() else { return Ok(None) };
    let source = Source {
        kind: SourceKind::Dicom,
        path: "the slices that have arrived".into(),
        digest: series_digest(chosen.iter().map(|(_, ready)| ready.read.sha256.clone())),
        study_uid: first.study_uid.clone(),
        series_uid: first.series_uid.clone(),
        instances: chosen.iter().map(|(header, _)| header.sop_uid.clone()).collect(),
        frames: Vec::new(),
        modality: first.modality.clone(),
        body_part: first.body_part.clone(),
    };
    let names = chosen.iter().enumerate().map(|(index, (header, _))| SliceName {
        index,
        sop_instance_uid: Some(header.sop_uid.clone()),
        frame_number: None,
    });
    let expected = done.iter().filter_map(|(header, _)| header.images_in_acquisition).max().unwrap_or(0);
    let warning = format!(
        "preliminary: computed on {} of {expected} slices, of which {} have arrived; indices of slices count those \
         that were used",
        chosen.len(),
        done.len()
    );
    let scan = Scan { source: &source, observed: None, warnings: &[warning], slices: names.collect() };
    let parts: Option<Vec<&Encoded>> = chosen.iter().map(|(_, ready)| ready.of(task)).collect();
    let Some(parts) = parts else { return Ok(None) };
    let mut context = core.context(Completion::Arriving);
    context.kind = Kind::Preliminary;
    Ok(Some(core.message(&task.conclude(scan, &parts, &context)?.result)))
}

/// Where a slice lies along the patient axis across its plane, in mm in RAS.
fn height(header: &Arc<Header>) -> Option<f64> {
    let [x, y, z] = header.position?;
    // Positions are in LPS.
    match header.plane()? {
        Plane::Sagittal => Some(-x),
        Plane::Coronal => Some(-y),
        _ => Some(z),
    }
}

/// Indices of slices that are evenly spread between the lowest and the highest, ascending: of as many places at equal
/// distances as there are slices, the slice nearest to each.
fn spread(places: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let (Some(&first), Some(&last)) = (order.first(), order.last()) else { return order };
    let step = (places[last] - places[first]) / (order.len() - 1).max(1) as f64;
    let mut chosen = Vec::new();
    for n in 0..order.len() {
        let wanted = places[first] + step * n as f64;
        let far = |&&n: &&usize| (places[n] - wanted).abs();
        let nearest = order.iter().min_by(|a, b| far(a).total_cmp(&far(b)));
        chosen.extend(nearest.copied().filter(|n| chosen.last() != Some(n)));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_at_equal_distances_all_count() {
        let places: Vec<f64> = (0..9).map(|n| f64::from(n) * 2.5).collect();
        assert_eq!(spread(&places), (0..9).collect::<Vec<_>>());
        // Whatever the order in which they came, and also where every second is still missing.
        assert_eq!(spread(&[10.0, 0.0, 5.0]), [1, 2, 0]);
        assert_eq!(spread(&[7.0]), [0]);
        assert_eq!(spread(&[]), [0usize; 0]);
    }

    #[test]
    fn what_lies_close_together_is_thinned() {
        let chosen = spread(&[0.0, 1.0, 2.0, 3.0, 20.0]);
        assert_eq!(chosen, [0, 3, 4]);
        let half: Vec<f64> = (0..10).map(f64::from).chain([20.0, 30.0]).collect();
        let chosen = spread(&half);
        let low = chosen.iter().filter(|&&n| half[n] < 10.0).count();
        assert!(low <= 5 && chosen.len() >= 5, "{chosen:?}");
    }
}
