//! Which stored axis runs along which patient axis.

use std::fmt;
use std::str::FromStr;

use super::Geometry;

/// How the stored axes map to RAS+: nearest axes, no resampling. Oblique volumes are permuted, not resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reorientation {
    /// The stored axis that runs along R, along A, along S.
    pub axis: [usize; 3],
    /// Whether the stored index falls as the RAS index grows.
    pub flip: [bool; 3],
}

impl Reorientation {
    /// Number of voxels along R, A, S of a volume stored with `dims`.
    pub fn ras_dims(&self, dims: [usize; 3]) -> [usize; 3] {
        self.axis.map(|axis| dims[axis])
    }

    /// The stored index of the voxel at RAS index `ras`, each from the leftmost, hindmost, lowest voxel.
    pub fn stored_index(&self, ras: [usize; 3], dims: [usize; 3]) -> [usize; 3] {
        let mut stored = [0; 3];
        for (index, (&axis, &flip)) in ras.into_iter().zip(self.axis.iter().zip(&self.flip)) {
            stored[axis] = if flip { dims[axis] - 1 - index } else { index };
        }
        stored
    }

    /// The RAS index of the voxel stored at `stored`; undoes [`Self::stored_index`].
    pub fn ras_index(&self, stored: [usize; 3], dims: [usize; 3]) -> [usize; 3] {
        std::array::from_fn(|r| {
            let axis = self.axis[r];
            if self.flip[r] { dims[axis] - 1 - stored[axis] } else { stored[axis] }
        })
    }

    /// The direction in which each stored index grows.
    pub fn codes(&self) -> AxisCodes {
        let mut codes = [Axis::R; 3];
        for r in 0..3 {
            codes[self.axis[r]] = Axis::along(r, self.flip[r]);
        }
        AxisCodes(codes)
    }
}

/// Gives each patient axis a stored axis of its own so that the sum of |cos| is largest.
///
/// At 45° two assignments are equally near. The tie is broken by where the axes point in the patient, not by
/// how they are stored, so that the same scan stored in another order is still seen in the same way.
pub(super) fn nearest_axes(geometry: &Geometry) -> Reorientation {
    const PERMUTATIONS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let spacing = geometry.spacing();
    let cosine = |ras: usize, axis: usize| geometry.affine[ras][axis] / spacing[axis];
    // What a choice is judged by: nearness first, then directions seen in the patient.
    let key = |axis: [usize; 3]| {
        let toward = |ras: usize, other: usize| {
            cosine(other, axis[ras]) * if cosine(ras, axis[ras]) < 0.0 { -1.0 } else { 1.0 }
        };
        let near: f64 = (0..3).map(|ras| cosine(ras, axis[ras]).abs()).sum();
        [near, toward(0, 1), toward(0, 2), toward(1, 2)]
    };
    let mut best = PERMUTATIONS[0];
    for candidate in &PERMUTATIONS[1..] {
        let difference = key(*candidate).into_iter().zip(key(best)).map(|(a, b)| a - b);
        if difference.into_iter().find(|d| d.abs() > 1e-6).is_some_and(|d| d > 0.0) {
            best = *candidate;
        }
    }
    Reorientation { axis: best, flip: std::array::from_fn(|ras| cosine(ras, best[ras]) < 0.0) }
}

/// A direction in the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// To the patient's right.
    R,
    /// To the patient's left.
    L,
    /// To the front.
    A,
    /// To the back.
    P,
    /// To the head.
    S,
    /// To the feet.
    I,
}

impl Axis {
    /// 0 for R and L, 1 for A and P, 2 for S and I.
    pub fn index(self) -> usize {
        self as usize / 2
    }

    /// Whether it points against RAS+: L, P and I.
    pub fn negative(self) -> bool {
        self as usize % 2 == 1
    }

    fn along(index: usize, negative: bool) -> Self {
        [[Self::R, Self::L], [Self::A, Self::P], [Self::S, Self::I]][index][usize::from(negative)]
    }
}

/// The direction in which each stored index grows, such as `RAS` or `LPS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisCodes(pub [Axis; 3]);

impl AxisCodes {
    /// An affine with these directions, voxels of `spacing` mm, and 0 in the middle of a volume of `dims`.
    pub fn centred(&self, spacing: [f64; 3], dims: [usize; 3]) -> Geometry {
        let mut affine = [[0.0; 4]; 3];
        for (stored, code) in self.0.iter().enumerate() {
            let step = if code.negative() { -spacing[stored] } else { spacing[stored] };
            affine[code.index()][stored] = step;
            affine[code.index()][3] = -step * (dims[stored] - 1) as f64 / 2.0;
        }
        Geometry { affine }
    }
}

/// Axis codes that are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "axis codes are {0:?}, expected three letters, one each of R or L, A or P, S or I, such as RAS or LPS"
)]
pub struct InvalidAxisCodes(pub String);

impl FromStr for AxisCodes {
    type Err = InvalidAxisCodes;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAxisCodes(text.to_owned());
        let letters = text.chars().map(|letter| match letter.to_ascii_uppercase() {
            'R' => Some(Axis::R),
            'L' => Some(Axis::L),
            'A' => Some(Axis::A),
            'P' => Some(Axis::P),
            'S' => Some(Axis::S),
            'I' => Some(Axis::I),
            _ => None,
        });
        let axes: Vec<Axis> = letters.collect::<Option<_>>().ok_or_else(invalid)?;
        let codes: [Axis; 3] = axes.try_into().map_err(|_| invalid())?;
        let mut seen = [false; 3];
        for axis in codes {
            seen[axis.index()] = true;
        }
        if seen == [true; 3] { Ok(Self(codes)) } else { Err(invalid()) }
    }
}

impl fmt::Display for AxisCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|axis| write!(f, "{axis:?}"))
    }
}

impl Geometry {
    /// The direction in which each stored index grows, to the nearest axis.
    pub fn axis_codes(&self) -> AxisCodes {
        self.reorientation().codes()
    }
}

#[cfg(test)]
mod tests;
