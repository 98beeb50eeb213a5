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
