//! The heat map as a volume in the input's space.

use std::path::Path;

use super::ReportError;
use crate::recipe::Prepared;
use crate::volume::write_nifti;

/// Writes a heat map `[S, gh, gw]` as NIfTI (f32, `.nii` or `.nii.gz`) with the voxels and affine of the
/// volume that `prepared` reads, so that any viewer lays it over the input.
pub fn write(path: &Path, prepared: &Prepared, heat: &[f32], grid: [usize; 2]) -> Result<(), ReportError> {
    let volume = prepared.volume();
    write_nifti(path, volume.dims, &prepared.heatmap_volume(heat, grid), &volume.geometry)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use firmware_config::{Crop, Fit, Intensity, Normalize, Plane, Recipe, SliceSelection};

    use super::*;
    use crate::volume::{Geometry, ReadOptions, Volume, read};

    #[test]
    fn the_file_lies_over_its_input() {
        // Stored S, L, A.
        let affine = [[0.0, -2.0, 0.0, 9.0], [0.0, 0.0, 2.0, -4.0], [5.0, 0.0, 0.0, 1.5]];
        let volume = Volume::from_parts([4, 6, 8], vec![1.0; 192], Geometry { affine });
        let recipe = Recipe {
            plane: Plane::Axial,
            size: [16, 12],
            fit: Fit::Stretch,
            crop: Crop::None,
            slices: SliceSelection::All,
            intensity: Intensity::Window { windows: vec![[0.0, 1.0]] },
            normalize: Normalize::None,
        };
        let prepared = Prepared::new(&volume, &recipe).unwrap();
        // The second lowest slice, in front (first row), on the patient's left (last column).
        let mut heat = vec![0.0; 4 * 2 * 3];
        heat[6 + 2] = 1.0;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heatmap.nii.gz");
        write(&path, &prepared, &heat, [2, 3]).unwrap();

        let map = read(&path, &ReadOptions::default()).unwrap().remove(0);
        assert_eq!((map.dims, map.geometry), (volume.dims, volume.geometry));
        let at = |i: usize, j: usize, k: usize| map.voxels[i + 4 * (j + 6 * k)];
        assert!(at(1, 5, 7) > 0.99, "lowest but one, leftmost, foremost");
        assert!([at(0, 5, 7), at(1, 0, 7), at(1, 5, 0), at(2, 5, 7)].iter().all(|heat| heat.abs() < 1e-6));
    }
}
