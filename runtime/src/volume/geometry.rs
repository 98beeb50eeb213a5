//! The affine from voxel indices to patient space.

use firmware_config::Plane;

use super::Reorientation;
use super::orientation;

/// Largest cosine between two axes that still counts as a right angle (about 3°). Axes are permuted and flipped,
/// never resampled, so what is more skewed than this cannot be shown truthfully.
const MAX_SHEAR: f64 = 0.05;

/// Affine from voxel indices to millimetres in RAS+: x grows towards the patient's right, y to the front, z to the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Row `r` gives coordinate `r` of voxel `(i, j, k)`: `m[r][0] i + m[r][1] j + m[r][2] k + m[r][3]`.
    pub affine: [[f64; 4]; 3],
}

impl Geometry {
    /// From the step along each stored axis and the position of voxel (0, 0, 0), all in mm in RAS+.
    pub fn from_columns(steps: [[f64; 3]; 3], origin: [f64; 3]) -> Self {
        Self { affine: std::array::from_fn(|r| [steps[0][r], steps[1][r], steps[2][r], origin[r]]) }
    }

    /// The step along stored axis `axis`, in mm.
    pub fn step(&self, axis: usize) -> [f64; 3] {
        self.affine.map(|row| row[axis])
    }

    /// Distance between voxel centres along each stored axis, in mm.
    pub fn spacing(&self) -> [f64; 3] {
        std::array::from_fn(|axis| norm(self.step(axis)))
    }

    /// Where the centre of a voxel lies, in mm; indices may be fractional.
    pub fn position(&self, index: [f64; 3]) -> [f64; 3] {
        self.affine.map(|row| row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3])
    }

    /// Determinant of the 3×3 part: negative where the stored axes form a left-handed frame, as in LAS.
    pub fn determinant(&self) -> f64 {
        let [a, b, c] = [self.step(0), self.step(1), self.step(2)];
        dot(cross(a, b), c)
    }

    /// Which stored axis runs along which patient axis.
    pub fn reorientation(&self) -> Reorientation {
        orientation::nearest_axes(self)
    }

    /// The plane across the patient axis nearest to the third stored axis.
    pub fn plane(&self) -> Plane {
        let axis = self.reorientation().axis;
        if axis[0] == 2 {
            Plane::Sagittal
        } else if axis[1] == 2 {
            Plane::Coronal
        } else {
            Plane::Axial
        }
    }

    /// What makes this affine unusable, if anything: numbers that are not finite, an axis of no length, axes far
    /// from right angles.
    pub(super) fn fault(&self) -> Option<Fault> {
        if !self.affine.as_flattened().iter().all(|x| x.is_finite()) {
            return Some(Fault::Singular);
        }
        let spacing = self.spacing();
        if spacing.iter().any(|&s| !(1e-6..=1e6).contains(&s)) {
            return Some(Fault::Singular);
        }
        let unit: [[f64; 3]; 3] = std::array::from_fn(|a| self.step(a).map(|x| x / spacing[a]));
        if dot(cross(unit[0], unit[1]), unit[2]).abs() < 1e-3 {
            return Some(Fault::Singular);
        }
        let worst = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| dot(unit[a], unit[b]).abs());
        let worst = worst.into_iter().fold(0.0, f64::max);
        (worst > MAX_SHEAR).then_some(Fault::Sheared { degrees: 90.0 - worst.min(1.0).acos().to_degrees() })
    }
}

/// Why an affine is unusable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// Two axes fall together, or one has no usable length.
    Singular,
    /// Two axes are off the right angle by so much.
    Sheared {
        /// Degrees away from 90.
        degrees: f64,
    },
}

pub(super) fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

pub(super) fn norm(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}
