use firmware_config::{GoldenCase, Intensity, Origin, Recipe, Tolerance};
use runtime::backbone::Tensor;
use runtime::engine::Engine;
use runtime::infer::{golden_peak, golden_weights};
use runtime::recipe::Prepared;
use runtime::volume::{Geometry, Volume};

use super::parity::{Parity, both};
use super::short;
use crate::Error;
use crate::data::{Slices, Study, Table, single};
use crate::model::Network;
use crate::random::{Purpose, generator, unit};
use crate::task::Task;

/// Synthetic golden cases in a plugin.
const CASES: u64 = 2;
/// Voxels along x, y and z.
const DIMS: [usize; 3] = [24, 24, 6];
/// Voxel spacing in mm.
const SPACING_MM: [f64; 3] = [4.0, 4.0, 12.0];
/// Smooth blobs in a volume.
const BLOBS: usize = 5;

/// A golden case with its input.
pub(super) struct Golden {
    pub(super) case: GoldenCase,
    /// `[nz, ny, nx]`.
    pub(super) voxels: Tensor,
}

/// The input of a golden case, axes along RAS+.
struct Input {
    name: String,
    origin: Origin,
    dims: [usize; 3],
    spacing_mm: [f64; 3],
    voxels: Vec<f32>,
}

impl Input {
    /// What the engine makes of it; the engine is compared with libtorch on it as well.
    fn run(
        self,
        parity: &mut Parity,
        task: &Task,
        network: &Network,
        engine: &Engine,
    ) -> Result<Golden, Error> {
        let ([x, y, z], [nx, ny, nz]) = (self.spacing_mm, self.dims);
        let geometry = Geometry::from_columns([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, z]], [0.0; 3]);
        let volume = Volume::from_parts(self.dims, self.voxels.clone(), geometry);
        let view = |(_, recipe): (_, &Recipe)| {
            let prepared = Prepared::new(&volume, recipe).map_err(runtime::Error::from)?;
            Ok(Some(Slices::of(&prepared).into()))
        };
        let views = task.inputs().into_iter().map(view).collect::<Result<_, Error>>()?;
        let (expected, found) = both(&Study { views }, task, network, engine)?;
        parity.add(&expected, &found);
        let grids: Vec<_> = engine.views().iter().map(|view| view.grid).collect();
        let case = GoldenCase {
            name: self.name,
            origin: self.origin,
            spacing_mm: self.spacing_mm,
            heatmap_peak: golden_peak(&found, &grids),
            slice_weights: golden_weights(&found),
            logits: found.logits,
            tolerance: Tolerance::default(),
        };
        Ok(Golden { case, voxels: Tensor::new([nz, ny, nx], self.voxels) })
    }
}

/// Synthetic volumes, and the scans of the table's rows `ids`.
pub(super) fn cases(
    parity: &mut Parity,
    table: &Table,
    ids: &[String],
    task: &Task,
    network: &Network,
    engine: &Engine,
) -> Result<Vec<Golden>, Error> {
    let synthetic = (0..CASES).map(|index| {
        Ok(Input {
            name: format!("blobs-{}", index + 1),
            origin: Origin::Synthetic,
            dims: DIMS,
            spacing_mm: SPACING_MM,
            voxels: blobs(&task.recipe.intensity, index),
        })
    });
    let scans = ids.iter().map(|id| scan(table, id));
    synthetic.chain(scans).map(|input| input?.run(parity, task, network, engine)).collect()
}

/// The scan of a row as a golden case holds it: its axes along RAS+, an oblique one not resampled.
fn scan(table: &Table, id: &str) -> Result<Input, Error> {
    let sample = table.samples.iter().find(|sample| sample.id == id).ok_or_else(|| Error::Flag {
        flag: "--golden",
        problem: format!("{} has no row with the id `{id}`", table.path.display()),
    })?;
    let volume = single(table, sample, sample.image(), "image")?;
    let (turn, spacing) = (volume.reorientation(), volume.spacing());
    let dims = turn.ras_dims(volume.dims);
    let [nx, ny, nz] = dims;
    let mut voxels = Vec::with_capacity(volume.voxels.len());
    for (z, y, x) in (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| (z, y, x)))) {
        let [i, j, k] = turn.stored_index([x, y, z], volume.dims);
        voxels.push(volume.voxels[i + volume.dims[0] * (j + volume.dims[1] * k)]);
    }
    Ok(Input {
        name: format!("scan-{id}"),
        origin: Origin::Patient,
        dims,
        spacing_mm: turn.axis.map(|axis| short(spacing[axis])),
        voxels,
    })
}

/// A few smooth blobs with noise on a dark ground: whole numbers within the recipe's windows, or 0 to 1000.
fn blobs(intensity: &Intensity, index: u64) -> Vec<f32> {
    let [low, high] = match intensity {
        Intensity::Window { windows } => windows
            .iter()
            .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], w| [low.min(w[0]), high.max(w[1])]),
        _ => [0.0, 1000.0],
    };
    let mut rng = generator(0, Purpose::Golden, 0, index);
    let centres: Vec<([f64; 3], f64, f64)> = (0..BLOBS)
        .map(|_| {
            let centre = DIMS.map(|n| n as f64 * (0.2 + 0.6 * f64::from(unit(&mut rng))));
            (centre, 2.0 + 4.0 * f64::from(unit(&mut rng)), 0.3 + 0.6 * f64::from(unit(&mut rng)))
        })
        .collect();
    let [nx, ny, nz] = DIMS;
    let mut voxels = Vec::with_capacity(nx * ny * nz);
    for (z, y, x) in (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| (z, y, x)))) {
        let mut value = 0.03 * f64::from(unit(&mut rng));
        for &(centre, radius, height) in &centres {
            // Along z the voxels are three times as long.
            let offset = [x as f64 - centre[0], y as f64 - centre[1], 3.0 * (z as f64 - centre[2])];
            let square: f64 = offset.iter().map(|d| d * d).sum();
            value += height * libm::exp(-0.5 * square / (radius * radius));
        }
        let value = low + (high - low) * value.min(1.0);
        voxels.push(value.round().clamp(f64::from(i16::MIN), f64::from(i16::MAX)) as f32);
    }
    voxels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_whole_numbers_with_contrast_inside_the_windows() {
        let windows = Intensity::Window { windows: vec![[-1000.0, 400.0], [0.0, 80.0]] };
        let voxels = blobs(&windows, 0);
        assert!(voxels.iter().all(|v| v.fract() == 0.0 && (-1000.0..=400.0).contains(v)));
        let spread = voxels.iter().fold(0.0f32, |m, v| m.max(v - voxels[0]));
        assert!(spread > 300.0, "{spread}");
        assert_ne!(voxels, blobs(&windows, 1));
        assert_eq!(voxels, blobs(&windows, 0));
    }
}
