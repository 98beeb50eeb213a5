//! Smooth random fields: cubic B-splines over a coarse lattice of normal values, as in free-form
//! deformation (Rueckert et al., IEEE TMI 1999).

use super::random::Dice;
use super::suite::Grid;

/// A smooth field with `C` components over a grid.
#[derive(Clone)]
pub(super) struct Field<const C: usize> {
    /// Distance of the lattice points, in mm; the first lies at the grid's first voxel, or before it.
    spacing_mm: f64,
    /// Lattice points along each axis.
    dims: [usize; 3],
    /// `[z][y][x]`, x fastest.
    values: Vec<[f64; C]>,
    /// For each axis and grid index: the first lattice point that counts there and the weights of four.
    weights: [Vec<(usize, [f64; 4])>; 3],
}

impl<const C: usize> Field<C> {
    /// Values of standard deviation `sigma` on a lattice of `spacing_mm`, cut at two deviations so that a
    /// deformation cannot fold where `sigma` is well below the spacing.
    pub(super) fn random(grid: &Grid, spacing_mm: f64, sigma: f64, dice: &mut Dice) -> Self {
        let weights = weights(grid, spacing_mm, [0.0; 3], [usize::MAX; 3]);
        let dims = std::array::from_fn(|axis: usize| weights[axis].last().map_or(4, |(first, _)| first + 4));
        let draw = |dice: &mut Dice| std::array::from_fn(|_| sigma * dice.normal()[0].clamp(-2.0, 2.0));
        let values = (0..dims.iter().product()).map(|_| draw(dice)).collect();
        Self { spacing_mm, dims, values, weights }
    }

    /// The same field over another grid than the one it was drawn for. Beyond that one's ends it stays as it is there.
    pub(super) fn over(&self, drawn_for: &Grid, grid: &Grid) -> Self {
        let (from, to) = (drawn_for.position([0; 3]), grid.position([0; 3]));
        let offset = std::array::from_fn(|a| to[a] - from[a]);
        Self { weights: weights(grid, self.spacing_mm, offset, self.dims), ..self.clone() }
    }

    /// The field at a voxel of the grid.
    pub(super) fn at(&self, [i, j, k]: [usize; 3]) -> [f64; C] {
        let [(x, wx), (y, wy), (z, wz)] = [self.weights[0][i], self.weights[1][j], self.weights[2][k]];
        let mut sum = [0.0; C];
        for (c, wz) in wz.iter().enumerate() {
            for (b, wy) in wy.iter().enumerate() {
                let row = x + self.dims[0] * (y + b + self.dims[1] * (z + c));
                for (value, wx) in self.values[row..row + 4].iter().zip(wx) {
                    let w = wx * wy * wz;
                    for (sum, v) in sum.iter_mut().zip(value) {
                        *sum += w * v;
                    }
                }
            }
        }
        sum
    }
}

/// For each axis and grid index what [`axis_weights`] says, the grid's first voxel being `offset` mm from the first lattice
/// point, of which there are `dims`.
fn weights(grid: &Grid, spacing_mm: f64, offset: [f64; 3], dims: [usize; 3]) -> [Vec<(usize, [f64; 4])>; 3] {
    std::array::from_fn(|axis| {
        let most = dims[axis].saturating_sub(3) as f64 - 1e-9;
        let at = |i| ((offset[axis] + i as f64 * grid.spacing_mm[axis]) / spacing_mm).clamp(0.0, most);
        (0..grid.dims[axis]).map(|i| axis_weights(at(i))).collect()
    })
}

/// Weights of the uniform cubic B-spline at `t` lattice steps from the first grid point.
fn axis_weights(t: f64) -> (usize, [f64; 4]) {
    let first = t.floor();
    let u = t - first;
    let v = 1.0 - u;
    let weights = [
        v * v * v / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        (3.0 * v * v * v - 6.0 * v * v + 4.0) / 6.0,
        u * u * u / 6.0,
    ];
    (first as usize, weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::suite::Split;

    #[test]
    fn weights_are_a_partition_of_one() {
        for t in [0.0, 0.3, 1.0, 2.999] {
            let (_, w) = axis_weights(t);
            assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-12 && w.iter().all(|w| *w >= 0.0));
        }
    }

    #[test]
    fn a_field_is_smooth_and_as_strong_as_asked() {
        let grid = Grid { dims: [60, 60, 6], spacing_mm: [2.0, 2.0, 10.0], centre_mm: [0.0; 3] };
        let field = Field::<1>::random(&grid, 40.0, 5.0, &mut Dice::new(1, Split::Train, 0));
        let mut largest: f64 = 0.0;
        for i in 1..60 {
            let [a] = field.at([i - 1, 30, 3]);
            let [b] = field.at([i, 30, 3]);
            largest = largest.max(b.abs());
            // The steepest cubic B-spline of values within ±10 over 40 mm climbs 20 in 40 mm.
            assert!((b - a).abs() <= 20.0 * 2.0 / 40.0 + 1e-9);
        }
        assert!(largest > 0.5 && largest <= 10.0, "{largest}");
    }
}
