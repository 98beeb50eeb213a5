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
        self.check_golden_while(&|| true)
    }

    /// As [`Self::check_golden`]; `go_on` is asked before each slice, as by [`crate::engine::Engine::encode_while`].
    pub fn check_golden_while(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<GoldenReport, Error> {
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
            let output = self.output_while(&volume, go_on)?;
            let logits = difference(&output.logits, &case.logits);
            let weights = difference(&golden_weights(&output), &case.slice_weights);
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

    /// What the engine makes of a golden case's volume, given as every view.
    pub fn output(&self, volume: &Volume) -> Result<Output, Error> {
        self.output_while(volume, &|| true)
    }

    fn output_while(&self, volume: &Volume, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Output, Error> {
        let encode = |view: usize| -> Result<_, Error> {
            let prepared = self.prepare(view, volume)?;
            let write = |s: usize, out: &mut [f32]| prepared.write_slice(s, out);
            Ok(Some(self.engine.encode_while(view, prepared.slices(), &write, go_on)?))
        };
        Ok(self.engine.pool((0..self.engine.views().len()).map(encode).collect::<Result<_, _>>()?)?)
    }

    /// Whether the heat map is nowhere notably larger than at the expected place, so that rounding decides no tie.
    fn peaks_at(&self, output: &Output, [s, y, x]: [usize; 3]) -> bool {
        let maps = || output.views.iter().map(|view| view.heatmap.iter().copied());
        let largest = maps().flatten().fold(f32::NEG_INFINITY, f32::max);
        let mut before = s;
        for (of, view) in output.views.iter().zip(self.engine.views()) {
            let (slices, [height, width]) = (of.slice_weights.len(), view.grid);
            if before < slices {
                let there = of.heatmap.get((before * height + y) * width + x);
                return y < height && x < width && there.is_some_and(|&value| value >= 0.999 * largest);
            }
            before -= slices;
        }
        false
    }
}

/// The weights of all slices, view after view, as [`GoldenCase::slice_weights`] has them.
pub fn golden_weights(output: &Output) -> Vec<f32> {
    output.views.iter().flat_map(|view| view.slice_weights.iter().copied()).collect()
}

/// Slice, row and column of the heat map's largest value, as [`GoldenCase::heatmap_peak`] has them; `grids` are the views'.
pub fn golden_peak(output: &Output, grids: &[[usize; 2]]) -> [usize; 3] {
    let (mut peak, mut most, mut before) = ([0; 3], f32::NEG_INFINITY, 0);
    for (view, [height, width]) in output.views.iter().zip(grids) {
        for (at, &value) in view.heatmap.iter().enumerate() {
            if value > most {
                (peak, most) = ([before + at / (height * width), at / width % height, at % width], value);
            }
        }
        before += view.slice_weights.len();
    }
    peak
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ViewOutput;

    #[test]
    fn the_peak_counts_slices_through_the_views() {
        let view = |slices: usize, [h, w]: [usize; 2]| ViewOutput {
            slice_weights: vec![0.5; slices],
            heatmap: vec![0.0; slices * h * w],
            embeddings: Vec::new(),
        };
        let grids = [[3, 4], [2, 5]];
        let mut output = Output {
            logits: Vec::new(),
            view_weights: vec![0.5; 2],
            views: grids.map(|g| view(2, g)).into(),
        };
        output.views[0].heatmap[12 + 2 * 4 + 3] = 1.0;
        assert_eq!(golden_peak(&output, &grids), [1, 2, 3]);
        output.views[1].heatmap[5 + 4] = 2.0;
        assert_eq!(golden_peak(&output, &grids), [2, 1, 4]);
        assert_eq!(golden_weights(&output).len(), 4);
    }
}
