//! A mask that lies on the voxels of a prepared volume.

use super::view::Lattice;
use super::{Prepared, RecipeError, check};
use crate::volume::Volume;

/// Voxels above this are inside, so that label numbers count as well as 1.
const INSIDE: f32 = 0.5;

/// Largest distance, in voxels, between a corner of the mask and the same corner of the image; the two may be from different
/// file formats, which keep differently many digits.
const TOLERANCE: f64 = 0.1;

impl Prepared<'_> {
    /// Which voxels of the prepared volume a mask covers, in that volume's stored order: 1 inside (above 0.5), else 0.
    ///
    /// The mask must have the same voxels at the same places; their stored order may differ, as between a DICOM series and
    /// the NIfTI file that was made of it.
    ///
    /// # Errors
    /// A mask of another grid or geometry, or with a voxel that is not finite.
    pub fn mask_voxels(&self, mask: &Volume) -> Result<Vec<u8>, RecipeError> {
        check(mask)?;
        let lattice = Lattice::new(mask);
        let other = |what, expected, found| RecipeError::OtherGrid {
            image: self.volume.source.path.clone(),
            mask: mask.source.path.clone(),
            what,
            expected,
            found,
        };
        let (expected, found) = (self.lattice.dims, lattice.dims);
        if expected != found {
            return Err(other("voxels along R, A and S", format!("{expected:?}"), format!("{found:?}")));
        }
        let least = self.lattice.spacing.into_iter().fold(f64::INFINITY, f64::min);
        for corner in 0..8 {
            let at: [usize; 3] =
                std::array::from_fn(|r| if corner >> r & 1 == 1 { expected[r] - 1 } else { 0 });
            let place = |lattice: &Lattice<'_>, volume: &Volume| {
                let mut index = [0.0; 3];
                for r in 0..3 {
                    index[lattice.stored_axis[r]] = lattice.stored(r, at[r]) as f64;
                }
                volume.geometry.position(index)
            };
            let (mine, its) = (place(&self.lattice, self.volume), place(&lattice, mask));
            if mine.iter().zip(its).any(|(a, b)| (a - b).abs() > TOLERANCE * least) {
                let mm = |p: [f64; 3]| format!("({:.2}, {:.2}, {:.2}) mm", p[0], p[1], p[2]);
                return Err(other("the centre of a corner voxel at", mm(mine), mm(its)));
            }
        }
        let [nr, na, ns] = expected;
        let mut inside = vec![0; mask.voxels.len()];
        for ras in (0..ns).flat_map(|s| (0..na).flat_map(move |a| (0..nr).map(move |r| [r, a, s]))) {
            inside[self.lattice.offset(ras)] = u8::from(lattice.value(ras) > INSIDE);
        }
        Ok(inside)
    }

    /// Values on the volume's voxels, in its stored order, at the pixels of the prepared slices: `[S, H, W]`, C order, the value
    /// of the voxel that a pixel's centre lies in; `T::default()` in the padding.
    ///
    /// # Panics
    /// If there are not as many values as voxels.
    pub fn nearest<T: Copy + Default>(&self, voxels: &[T]) -> Vec<T> {
        assert_eq!(voxels.len(), self.volume.voxels.len(), "a value for each voxel");
        let ([height, width], [top, left]) = (self.size, self.corner);
        let content = [self.height, self.columns.output()];
        let pixels = [self.view.row, self.view.column].map(|axis| self.crop[axis].len());
        // floor((o + 1/2) pixels / content), in whole numbers.
        let source = |side: usize, o: usize| (2 * o + 1) * pixels[side] / (2 * content[side]);
        let columns: Vec<isize> = (0..content[1]).map(|x| source(1, x) as isize).collect();
        let mut out = vec![T::default(); self.slices() * height * width];
        for (plane, &index) in out.chunks_exact_mut(height * width).zip(&self.slices) {
            for y in 0..content[0] {
                let (start, step) = self.lattice.line(self.view, &self.crop, index, source(0, y));
                let row = &mut plane[(top + y) * width + left..][..content[1]];
                for (value, x) in row.iter_mut().zip(&columns) {
                    *value = voxels[(start + x * step) as usize];
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use firmware_config::{Crop, Fit, Intensity, Normalize, Plane, Recipe, SliceSelection};

    use super::*;
    use crate::volume::Geometry;

    fn recipe(size: [usize; 2], fit: Fit) -> Recipe {
        Recipe {
            plane: Plane::Axial,
            size,
            fit,
            crop: Crop::None,
            slices: SliceSelection::All,
            intensity: Intensity::Window { windows: vec![[0.0, 1.0]] },
            normalize: Normalize::None,
        }
    }

    /// Stored R, A, S with voxels of 2, 2 and 5 mm.
    fn ras(dims: [usize; 3], inside: &[[usize; 3]]) -> Volume {
        let mut voxels = vec![0.0; dims.iter().product()];
        for [i, j, k] in inside {
            voxels[i + dims[0] * (j + dims[1] * k)] = 3.0;
        }
        let affine = [[2.0, 0.0, 0.0, -9.0], [0.0, 2.0, 0.0, 4.0], [0.0, 0.0, 5.0, 1.0]];
        Volume::from_parts(dims, voxels, Geometry { affine })
    }

    #[test]
    fn a_mask_follows_the_slices() {
        let image = ras([4, 6, 2], &[]);
        // Most anterior row but one, the patient's rightmost column; the upper slice.
        let mask = ras([4, 6, 2], &[[3, 4, 1]]);
        let recipe = recipe([12, 12], Fit::Pad);
        let prepared = Prepared::new(&image, &recipe).unwrap();
        let slices = prepared.nearest(&prepared.mask_voxels(&mask).unwrap());
        // 6 rows become 12, 4 columns become 8 with 2 of padding at either side; right is at the left, anterior on top.
        let found: Vec<usize> = (0..slices.len()).filter(|&i| slices[i] == 1).collect();
        let at = |row: usize, column: usize| (12 + row) * 12 + column;
        assert_eq!(found, [at(2, 2), at(2, 3), at(3, 2), at(3, 3)]);
        assert_eq!(slices.len(), 2 * 12 * 12);
    }

    #[test]
    fn shrinking_takes_the_voxel_under_the_centre() {
        let image = ras([9, 5, 1], &[]);
        let recipe = recipe([5, 3], Fit::Stretch);
        let prepared = Prepared::new(&image, &recipe).unwrap();
        let number: Vec<u8> = (0..45).collect();
        // Centres of 3 pixels over 9 voxels lie in voxels 1, 4 and 7, which run from right to left: 7, 4, 1.
        assert_eq!(prepared.nearest(&number)[..3], [36 + 7, 36 + 4, 36 + 1]);
    }

    #[test]
    fn the_mask_may_be_stored_otherwise_but_must_lie_on_the_image() {
        let image = ras([4, 6, 3], &[]);
        let recipe = recipe([12, 12], Fit::Stretch);
        let prepared = Prepared::new(&image, &recipe).unwrap();
        let expected = prepared.mask_voxels(&ras([4, 6, 3], &[[3, 4, 1], [0, 0, 2]])).unwrap();
        assert_eq!(expected.iter().map(|&x| usize::from(x)).sum::<usize>(), 2);
        // The same mask stored S, L, P.
        let affine = [[0.0, -2.0, 0.0, -3.0], [0.0, 0.0, -2.0, 14.0], [5.0, 0.0, 0.0, 1.0]];
        let mut voxels = vec![0.0; 72];
        for [i, j, k] in [[3, 4, 1], [0, 0, 2]] {
            voxels[k + 3 * ((3 - i) + 4 * (5 - j))] = 1.0;
        }
        let turned = Volume::from_parts([3, 4, 6], voxels, Geometry { affine });
        assert_eq!(prepared.mask_voxels(&turned).unwrap(), expected);

        let refused = |mask: &Volume, told: &str| {
            let error = prepared.mask_voxels(mask).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(told), "{error}");
        };
        refused(&ras([4, 6, 2], &[]), "voxels along R, A and S [4, 6, 2], expected [4, 6, 3]");
        let mut moved = ras([4, 6, 3], &[]);
        moved.geometry.affine[0][3] += 1.0;
        refused(&moved, "(-8.00, 4.00, 1.00) mm");
        let mut longer = ras([4, 6, 3], &[]);
        longer.geometry.affine[2][2] = 5.2;
        refused(&longer, "11.40");
        let mut close = ras([4, 6, 3], &[]);
        close.geometry.affine[0][3] += 0.1;
        prepared.mask_voxels(&close).unwrap();
        close.voxels[0] = f32::NAN;
        refused(&close, "finite");
    }
}
