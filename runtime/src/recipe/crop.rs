//! The part of the volume that is looked at.

use std::ops::Range;

use firmware_config::Crop;

use super::statistics::{background, sampled, step};
use super::view::Lattice;

/// Left around the body, in mm.
const MARGIN_MM: f64 = 5.0;

/// Part of a plane that must lie above the background for the plane to count: one voxel in 1000, so that
/// specks of noise do not keep empty planes.
const PART: usize = 1000;

/// The index range along R, A, S that the recipe keeps; never empty.
///
/// `Body` keeps the bounding box of the planes, along each axis, in which more than one voxel in 1000 lies
/// above the [`background`], and 5 mm around it; all of it where no plane does. It looks at a regular
/// subsample of at most 128 positions an axis.
pub(super) fn ranges(lattice: &Lattice, crop: Crop) -> [Range<usize>; 3] {
    match crop {
        Crop::None => lattice.dims.map(|n| 0..n),
        Crop::Body => body(lattice),
    }
}

fn body(lattice: &Lattice) -> [Range<usize>; 3] {
    let threshold = background(lattice);
    let [nr, na, ns] = lattice.dims;
    let mut above = lattice.dims.map(|n| vec![0_usize; sampled(n).count()]);
    for (k, s) in sampled(ns).enumerate() {
        for (j, a) in sampled(na).enumerate() {
            for (i, r) in sampled(nr).enumerate() {
                if lattice.value([r, a, s]) > threshold {
                    above[0][i] += 1;
                    above[1][j] += 1;
                    above[2][k] += 1;
                }
            }
        }
    }
    let counted: usize = above.iter().map(Vec::len).product();
    std::array::from_fn(|axis| {
        let (length, step) = (lattice.dims[axis], step(lattice.dims[axis]));
        let plane = counted / above[axis].len();
        let is_body = |&n: &usize| n * PART > plane;
        let first = above[axis].iter().position(is_body);
        let last = above[axis].iter().rposition(is_body);
        let (Some(first), Some(last)) = (first, last) else { return 0..length };
        // The body may begin anywhere after the last empty sample. A thousandth of a voxel is forgiven, so
        // that 1 mm read from another file format as 0.999_999_9 mm gives the same margin.
        let margin = (MARGIN_MM / lattice.spacing[axis] - 1e-3).ceil() as usize + step - 1;
        (first * step).saturating_sub(margin)..(last * step + 1 + margin).min(length)
    })
}
