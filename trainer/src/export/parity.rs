use std::sync::Arc;

use runtime::engine::{Engine, Output, ViewOutput};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::data::{Cache, Slices, Split, Study, Table};
use crate::model::Network;
use crate::task::Task;

/// Largest difference of a logit that is let through.
const LOGITS: f64 = 1e-3;
/// Largest difference of an embedding, relative to its length, that is let through.
const EMBEDDINGS: f64 = 1e-3;
/// Largest difference of a heat map, relative to its peak, that is let through.
const HEATMAP: f64 = 1e-2;
/// Scans compared, of validation and test each.
const SCANS: usize = 2;

/// Largest differences between libtorch and the exported graph run by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Parity {
    /// Volumes compared, golden cases included.
    pub volumes: usize,
    /// Largest absolute difference of a logit.
    pub logits: f64,
    /// Largest `|Δh| / |h|` over all slices.
    pub embeddings: f64,
    /// Largest absolute difference of a slice weight.
    pub slice_weights: f64,
    /// Largest difference of a heat map's value, relative to the map's peak.
    #[serde(default)]
    pub heatmap: f64,
}

impl Parity {
    /// Compares one sample.
    pub(super) fn add(&mut self, expected: &Output, found: &Output) {
        self.volumes += 1;
        self.logits = self.logits.max(largest(&expected.logits, &found.logits));
        self.slice_weights = self.slice_weights.max(largest(&expected.view_weights, &found.view_weights));
        for (expected, found) in expected.views.iter().zip(&found.views) {
            self.add_view(expected, found);
        }
    }

    fn add_view(&mut self, expected: &ViewOutput, found: &ViewOutput) {
        self.slice_weights = self.slice_weights.max(largest(&expected.slice_weights, &found.slice_weights));
        let peak = expected.heatmap.iter().fold(f32::MIN_POSITIVE, |peak, heat| peak.max(heat.abs()));
        self.heatmap = self.heatmap.max(largest(&expected.heatmap, &found.heatmap) / f64::from(peak));
        let dim = (expected.embeddings.len() / expected.slice_weights.len().max(1)).max(1);
        for (a, b) in expected.embeddings.chunks_exact(dim).zip(found.embeddings.chunks_exact(dim)) {
            let square = |x: f32| f64::from(x) * f64::from(x);
            let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
            let length: f64 = a.iter().map(|&a| square(a)).sum();
            let off = (off / length.max(f64::MIN_POSITIVE)).sqrt();
            // A NaN must not vanish in `max`.
            self.embeddings = self.embeddings.max(if off.is_nan() { f64::INFINITY } else { off });
        }
    }

    /// An error where a difference is larger than is let through.
    pub(super) fn enforce(&self) -> Result<(), Error> {
        for (what, found, limit) in [
            ("the logits", self.logits, LOGITS),
            ("the slice embeddings", self.embeddings, EMBEDDINGS),
            ("the heat map", self.heatmap, HEATMAP),
        ] {
            if found > limit {
                return Err(Error::Parity { what: what.into(), found, limit });
            }
        }
        Ok(())
    }
}

fn largest(a: &[f32], b: &[f32]) -> f64 {
    let off = a.iter().zip(b).map(|(a, b)| f64::from(a - b).abs());
    let off = off.map(|d| if d.is_nan() { f64::INFINITY } else { d });
    if a.len() == b.len() { off.fold(0.0, f64::max) } else { f64::INFINITY }
}

/// Runs a sample through libtorch and through the engine.
pub(super) fn both(
    study: &Study,
    task: &Task,
    network: &Network,
    engine: &Engine,
) -> Result<(Output, Output), Error> {
    let encode = |(view, slices): (usize, &Option<Arc<Slices>>)| {
        let Some(slices) = slices else { return Ok(None) };
        let each = 3 * slices.size[0] * slices.size[1];
        let write = |s: usize, out: &mut [f32]| out.copy_from_slice(&slices.values[s * each..][..each]);
        engine.encode(view, slices.count, &write).map(Some)
    };
    let encoded = study.views.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>();
    let found = encoded.and_then(|encoded| engine.pool(encoded)).map_err(runtime::Error::from)?;
    Ok((network.predict(study, task.train.chunk)?, found))
}

/// Compares on the first scans of validation and test, or of whatever there is.
pub(super) fn on_scans(
    parity: &mut Parity,
    table: &Table,
    task: &Task,
    network: &Network,
    engine: &Engine,
) -> Result<(), Error> {
    let cache = Cache::new(table, task, 0).skipping(task.train.skip_unreadable);
    // The first of a split that can be read; how many there were.
    let mut compare = |split| -> Result<usize, Error> {
        let readable = table.split(split).into_iter().filter_map(|i| cache.get(i).transpose());
        let mut compared = 0;
        for study in readable.take(SCANS) {
            let (expected, found) = both(&*study?, task, network, engine)?;
            parity.add(&expected, &found);
            compared += 1;
        }
        Ok(compared)
    };
    if compare(Split::Val)? + compare(Split::Test)? == 0 {
        compare(Split::Train)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(logit: f32, embedding: f32) -> Output {
        let embeddings = vec![3.0, 4.0, 0.0, embedding];
        let view = ViewOutput { slice_weights: vec![0.5; 2], heatmap: vec![0.02, 0.01], embeddings };
        Output { logits: vec![logit], view_weights: vec![1.0], views: vec![view] }
    }

    #[test]
    fn the_largest_difference_counts_and_is_enforced() {
        let mut parity = Parity::default();
        parity.add(&output(1.0, 2.0), &output(1.0005, 2.001));
        parity.add(&output(1.0, 2.0), &output(1.0, 2.0));
        assert!((parity.logits - 5e-4).abs() < 1e-6 && (parity.embeddings - 5e-4).abs() < 1e-6);
        assert_eq!(parity.volumes, 2);
        parity.enforce().unwrap();
        parity.add(&output(1.0, 2.0), &output(1.002, 2.0));
        assert!(parity.enforce().unwrap_err().to_string().contains("the logits"));
        let mut parity = Parity::default();
        parity.add(&output(1.0, 2.0), &output(1.0, 2.003));
        assert!(parity.enforce().unwrap_err().to_string().contains("embeddings"));
        // A hundredth of the peak is 2e-4.
        for (off, passes) in [(1e-4, true), (4e-4, false)] {
            let mut parity = Parity::default();
            let mut found = output(1.0, 2.0);
            found.views[0].heatmap[1] += off;
            parity.add(&output(1.0, 2.0), &found);
            assert!((parity.heatmap - f64::from(off) / 0.02).abs() < 1e-6);
            assert_eq!(parity.enforce().is_ok(), passes);
        }
    }

    #[test]
    fn values_that_are_not_numbers_never_pass() {
        for bad in [output(f32::NAN, 2.0), output(1.0, f32::NAN)] {
            let mut parity = Parity::default();
            parity.add(&output(1.0, 2.0), &bad);
            parity.add(&output(1.0, 2.0), &output(1.0, 2.0));
            assert!(parity.enforce().is_err());
        }
    }
}
