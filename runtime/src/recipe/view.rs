//! Reading a stored volume in patient order, and how a plane is displayed.

use std::ops::Range;

use firmware_config::Plane;

use crate::volume::Volume;

/// The voxels of a volume addressed along R, A, S, whatever order they are stored in; nothing is copied.
#[derive(Debug)]
pub(super) struct Lattice<'a> {
    voxels: &'a [f32],
    /// Number of voxels along R, A, S.
    pub dims: [usize; 3],
    /// Distance between voxels along R, A, S, in mm.
    pub spacing: [f64; 3],
    /// Stored axis that runs along R, A, S.
    pub stored_axis: [usize; 3],
    flip: [bool; 3],
    origin: isize,
    step: [isize; 3],
}

impl<'a> Lattice<'a> {
    pub fn new(volume: &'a Volume) -> Self {
        let map = volume.reorientation();
        let strides = [1, volume.dims[0], volume.dims[0] * volume.dims[1]];
        let spacing = volume.spacing();
        let mut origin = 0;
        let step = std::array::from_fn(|r| {
            let stride = strides[map.axis[r]] as isize;
            if map.flip[r] {
                origin += stride * (volume.dims[map.axis[r]] as isize - 1);
                -stride
            } else {
                stride
            }
        });
        Self {
            voxels: &volume.voxels,
            dims: map.axis.map(|a| volume.dims[a]),
            spacing: map.axis.map(|a| spacing[a]),
            stored_axis: map.axis,
            flip: map.flip,
            origin,
            step,
        }
    }

    /// Position of a voxel in the stored array.
    pub fn offset(&self, ras: [usize; 3]) -> usize {
        let along = |r: usize| ras[r] as isize * self.step[r];
        (self.origin + along(0) + along(1) + along(2)) as usize
    }

    /// Stored index along the stored axis that runs along RAS axis `r`.
    pub fn stored(&self, r: usize, index: usize) -> usize {
        if self.flip[r] { self.dims[r] - 1 - index } else { index }
    }

    /// Where displayed row `y` of the slice at `index` begins in the stored array, and the step from there to
    /// each next column.
    pub fn line(&self, view: View, crop: &[Range<usize>; 3], index: usize, y: usize) -> (isize, isize) {
        let at = |x: usize| self.offset(view.index(crop, index, y, x)) as isize;
        let step = if crop[view.column].len() > 1 { at(1) - at(0) } else { 0 };
        (at(0), step)
    }

    /// Reads displayed row `y` of the slice at `index`, as long as `out`.
    pub fn read_line(&self, view: View, crop: &[Range<usize>; 3], index: usize, y: usize, out: &mut [f32]) {
        let (start, step) = self.line(view, crop, index, y);
        for (x, out) in out.iter_mut().enumerate() {
            *out = self.voxels[(start + x as isize * step) as usize];
        }
    }

    pub fn value(&self, ras: [usize; 3]) -> f32 {
        self.voxels[self.offset(ras)]
    }

    /// Every voxel, R fastest, then A, then S: an order that does not depend on how the file is stored, so
    /// that floating-point sums do not either.
    pub fn values(&self) -> impl Iterator<Item = f32> + Clone + '_ {
        let [nr, na, ns] = self.dims;
        (0..ns).flat_map(move |s| (0..na).map(move |a| (a, s))).flat_map(move |(a, s)| {
            let start = self.offset([0, a, s]) as isize;
            (0..nr as isize).map(move |r| self.voxels[(start + r * self.step[0]) as usize])
        })
    }
}

/// The RAS axes of a slice. Rows and columns both run against their axis, which is the radiological display:
/// anterior or superior at the top, the patient's right (or front, in a sagittal slice) at the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// RAS axis from slice to slice.
    pub slice: usize,
    /// RAS axis down a column, from row to row.
    pub row: usize,
    /// RAS axis along a row, from column to column.
    pub column: usize,
}

/// Letter of each RAS axis' end, `[low, high]`.
const ENDS: [[char; 2]; 3] = [['L', 'R'], ['P', 'A'], ['I', 'S']];

impl View {
    /// The view of a plane; `Acquisition` is the plane nearest to the third stored axis.
    pub fn new(plane: Plane, stored_axis: [usize; 3]) -> Self {
        let slice = match plane {
            Plane::Sagittal => 0,
            Plane::Coronal => 1,
            Plane::Axial => 2,
            Plane::Acquisition => (0..3).find(|&r| stored_axis[r] == 2).unwrap_or(2),
        };
        let [column, row] = [[1, 2], [0, 2], [0, 1]][slice];
        Self { slice, row, column }
    }

    /// The anatomical plane.
    pub fn plane(self) -> Plane {
        [Plane::Sagittal, Plane::Coronal, Plane::Axial][self.slice]
    }

    /// Index along a RAS axis of display position `at`, within the cropped range of that axis.
    fn ras(crop: &Range<usize>, at: usize) -> usize {
        crop.end - 1 - at
    }

    /// Letters of the left and right edge of a displayed slice, from the way [`Self::ras`] runs.
    pub fn edges(self) -> [char; 2] {
        let [first, last] = [Self::ras(&(0..2), 0), Self::ras(&(0..2), 1)];
        [ENDS[self.column][first], ENDS[self.column][last]]
    }

    /// RAS index of display position `(slice index, row, column)`.
    pub fn index(self, crop: &[Range<usize>; 3], slice: usize, row: usize, column: usize) -> [usize; 3] {
        let mut ras = [0; 3];
        ras[self.slice] = slice;
        ras[self.row] = Self::ras(&crop[self.row], row);
        ras[self.column] = Self::ras(&crop[self.column], column);
        ras
    }
}
