//! Where a finding is planted and what shape it has.

use super::random::Dice;
use super::suite::{Finding, Grid};

/// Places to try before the best one found is taken.
const TRIES: usize = 200;

/// An irregular ellipsoid with a soft edge.
struct Shape {
    radius: f64,
    half_thickness: f64,
    edge: f64,
    /// For each axis: amplitude (a share of the radius), frequencies and phase of a sine that bends the outline.
    waves: [(f64, [f64; 3], f64); 3],
}

impl Shape {
    fn random(finding: &Finding, dice: &mut Dice) -> Self {
        let waves = std::array::from_fn(|_| {
            let amplitude = finding.irregularity * (0.5 + 0.5 * dice.unit());
            let frequency = std::array::from_fn(|_| 2.5 * dice.signed());
            (amplitude, frequency, std::f64::consts::TAU * dice.unit())
        });
        Self {
            radius: dice.within(finding.radius_mm),
            half_thickness: dice.within(finding.thickness_mm) / 2.0,
            edge: finding.edge_mm,
            waves,
        }
    }

    /// How much of the finding is at an offset from its centre, in mm: 1 inside, 0 outside.
    fn at(&self, offset: [f64; 3]) -> f64 {
        let scale = [self.radius, self.radius, self.half_thickness];
        let p: [f64; 3] = std::array::from_fn(|a| offset[a] / scale[a]);
        let bent: [f64; 3] = std::array::from_fn(|a| {
            let (amplitude, f, phase) = self.waves[a];
            p[a] + amplitude * libm::sin(f[0] * p[0] + f[1] * p[1] + f[2] * p[2] + phase)
        });
        let distance = bent.iter().map(|x| x * x).sum::<f64>().sqrt();
        // The edge runs from half its width inside the outline to half outside.
        let t = (0.5 + (1.0 - distance) * self.radius / self.edge).clamp(0.0, 1.0);
        t * t * (3.0 - 2.0 * t)
    }

    /// Half the size of a box that holds it, in mm.
    fn reach(&self) -> [f64; 3] {
        let most = 1.0 + self.waves.iter().map(|w| w.0).fold(0.0, f64::max) + self.edge / self.radius;
        [self.radius * most, self.radius * most, self.half_thickness * most]
    }
}

/// How much of a random finding is in each voxel: `(voxel, 0..1)`, tissue alone.
///
/// `tissue` is 0 to 1 a voxel. The centre lies in tissue; the first place is taken where at least
/// `finding.inside` of the shape does, or else the best of those tried. Empty where there is no tissue.
pub(super) fn plant(finding: &Finding, grid: &Grid, tissue: &[f64], dice: &mut Dice) -> Vec<(usize, f64)> {
    let shape = Shape::random(finding, dice);
    let centres: Vec<usize> = (0..tissue.len()).filter(|&i| tissue[i] > 0.8).collect();
    if centres.is_empty() {
        return Vec::new();
    }
    let (mut best, mut best_share) = (Vec::new(), -1.0);
    for _ in 0..TRIES {
        let centre = centres[dice.below(centres.len())];
        let jitter = std::array::from_fn(|a| 0.5 * grid.spacing_mm[a] * dice.signed());
        let all = voxels(&shape, grid, centre, jitter);
        let whole: f64 = all.iter().map(|(_, w)| w).sum();
        let inside: Vec<(usize, f64)> =
            all.into_iter().map(|(i, w)| (i, w * tissue[i])).filter(|(_, w)| *w > 0.0).collect();
        let share = inside.iter().map(|(_, w)| w).sum::<f64>() / whole.max(1e-9);
        if share > best_share {
            (best, best_share) = (inside, share);
        }
        if best_share >= finding.inside {
            break;
        }
    }
    best
}

/// The voxels of a shape whose centre lies `jitter` mm from that of voxel `centre`. What falls off the grid counts as
/// little as what falls off the tissue: it is left out.
fn voxels(shape: &Shape, grid: &Grid, centre: usize, jitter: [f64; 3]) -> Vec<(usize, f64)> {
    let [nx, ny, _] = grid.dims;
    let at = [centre % nx, centre / nx % ny, centre / (nx * ny)];
    let reach = shape.reach();
    let range = |a: usize| {
        let steps = (reach[a] / grid.spacing_mm[a]).ceil() as usize + 1;
        at[a].saturating_sub(steps)..(at[a] + steps + 1).min(grid.dims[a])
    };
    let offset = |a: usize, i: usize| (i as f64 - at[a] as f64) * grid.spacing_mm[a] - jitter[a];
    let mut found = Vec::new();
    for k in range(2) {
        for j in range(1) {
            for i in range(0) {
                let weight = shape.at([offset(0, i), offset(1, j), offset(2, k)]);
                if weight > 0.0 {
                    found.push((i + nx * (j + ny * k), weight));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::suite::Split;

    fn finding() -> Finding {
        Finding {
            count: [1, 1],
            contrast: [0.6, 0.6],
            radius_mm: [8.0, 8.0],
            thickness_mm: [20.0, 20.0],
            edge_mm: 2.0,
            irregularity: 0.0,
            inside: 0.9,
        }
    }

    fn grid() -> Grid {
        Grid { dims: [40, 40, 8], spacing_mm: [2.0, 2.0, 5.0], centre_mm: [0.0; 3] }
    }

    #[test]
    fn a_finding_has_the_volume_of_its_ellipsoid_and_stays_in_tissue() {
        let grid = grid();
        // Tissue in one half of the volume.
        let tissue: Vec<f64> = (0..40 * 40 * 8).map(|i| f64::from(u8::from(i % 40 < 20))).collect();
        for index in 0..10 {
            let planted = plant(&finding(), &grid, &tissue, &mut Dice::new(1, Split::Train, index));
            assert!(planted.iter().all(|(i, w)| i % 40 < 20 && *w > 0.0 && *w <= 1.0));
            let volume = planted.iter().map(|(_, w)| w).sum::<f64>() * 20.0;
            let ellipsoid = 4.0 / 3.0 * std::f64::consts::PI * 8.0 * 8.0 * 10.0;
            // At least `inside` of it is there, unless the volume's end cut it.
            assert!(volume < 1.15 * ellipsoid && volume > 0.4 * ellipsoid, "{volume} of {ellipsoid}");
        }
    }

    #[test]
    fn without_tissue_nothing_is_planted() {
        let tissue = vec![0.0; 40 * 40 * 8];
        assert!(plant(&finding(), &grid(), &tissue, &mut Dice::new(1, Split::Train, 0)).is_empty());
    }
}
