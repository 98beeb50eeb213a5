//! Golden cases: what a plugin must do here as it did where it was exported, before it goes live.

use firmware_config::GoldenCase;

use super::{InferError, LoadedTask};
use crate::Error;
use crate::engine::Output;
use crate::tensor::Tensor;
use crate::volume::{Geometry, Volume};

/// How near this machine comes to the golden cases, all of them within their tolerance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoldenReport {
    /// Number of cases.
    pub cases: usize,
    /// Largest difference of a logit.
    pub logits: f32,
    /// Largest difference of a slice's weight.
    pub slice_weights: f32,
}

impl LoadedTask {
    /// Runs every golden case through recipe, engine, pooling and head.
    ///
    /// # Errors
    /// [`InferError::NoGolden`] for a plugin that has none, [`InferError::Golden`] for a case that is not reproduced.
    pub fn check_golden(&self) -> Result<GoldenReport, Error> {
        let cases = &self.plugin.manifest.golden;
        let task = || self.plugin.manifest.task.name.clone();
        if cases.is_empty() {
            return Err(InferError::NoGolden { task: task() }.into());
        }
        let mut report = GoldenReport { cases: cases.len(), logits: 0.0, slice_weights: 0.0 };
        for case in cases {
            let differs = |detail: String| -> Error {
                InferError::Golden { task: task(), case: case.name.clone(), detail }.into()
            };
            let volume = golden_volume(case, self.plugin.golden.get(&case.name)).map_err(differs)?;
            let prepared = self.prepare(&volume)?;
            let output = self.engine.run(prepared.slices(), &|s, out| prepared.write_slice(s, out))?;
            let logits = difference(&output.logits, &case.logits);
            let weights = difference(&output.slice_weights, &case.slice_weights);
            for (what, found, limit) in [
                ("a logit", logits, case.tolerance.logits),
                ("a slice weight", weights, case.tolerance.slice_weights),
            ] {
                // Also where it is no number.
                if found.is_nan() || found > limit {
                    return Err(differs(format!("{what} is off by {found:e}, {limit:e} is allowed")));
                }
            }
            if !self.peaks_at(&output, case.heatmap_peak) {
                return Err(differs(format!("the heat map does not peak at {:?}", case.heatmap_peak)));
            }
            report.logits = report.logits.max(logits);
            report.slice_weights = report.slice_weights.max(weights);
        }
        Ok(report)
    }

    /// Whether the heat map is nowhere notably larger than at the expected place, so that rounding decides no tie.
    fn peaks_at(&self, output: &Output, [s, y, x]: [usize; 3]) -> bool {
        let [height, width] = self.engine.grid();
        let largest = output.heatmap.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let inside = y < height && x < width;
        let there = output.heatmap.get((s * height + y) * width + x).filter(|_| inside);
        there.is_some_and(|&value| value >= 0.999 * largest)
    }
}

fn golden_volume(case: &GoldenCase, voxels: Option<&Tensor>) -> Result<Volume, String> {
    let Tensor { shape, data } = voxels.ok_or("the plugin holds no volume of this name")?;
    let &[nz, ny, nx] = shape.as_slice() else {
        return Err(format!("its volume has {} axes, expected 3", shape.len()));
    };
    let [x, y, z] = case.spacing_mm;
    let geometry = Geometry::from_columns([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, z]], [0.0; 3]);
    Ok(Volume::from_parts([nx, ny, nz], data.clone(), geometry))
}

/// Largest absolute difference; infinite where the lengths differ.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let far = |(a, b): (&f32, &f32)| (a - b).abs();
    // `f32::max` would pass over a NaN.
    found.iter().zip(expected).map(far).fold(0.0, |most, d| if d.is_nan() || d > most { d } else { most })
}
