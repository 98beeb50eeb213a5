//! One volume of a suite.

use runtime::volume::Geometry;

use super::field::Field;
use super::finding::plant;
use super::random::Dice;
use super::suite::{Grid, Modality, Split, Suite};
use super::template::{Anatomy, Templates};

/// What an MR template's tissue median becomes, before `variation.level`.
const MR_UNIT: f64 = 500.0;

/// A volume and, where something was planted, its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Phantom {
    /// Voxels along R, A and S.
    pub dims: [usize; 3],
    /// Values, whole numbers; R fastest.
    pub voxels: Vec<f32>,
    /// 1 in the finding, 0 elsewhere; `None` for a negative volume.
    pub mask: Option<Vec<f32>>,
    /// Where the voxels are.
    pub geometry: Geometry,
}

/// Whether volume `index` of a split is positive, and the how many-th of its class it is. Positives are spread
/// evenly, so that the first volumes of a suite are a small suite.
fn class(prevalence: f64, index: usize) -> (bool, usize) {
    let positives = |n: usize| (n as f64 * prevalence + 1e-9).floor() as usize;
    let before = positives(index);
    if positives(index + 1) > before { (true, before) } else { (false, index - before) }
}

/// Makes volume `index` of a split; `None` where the suite has no template for the split.
///
/// Each voxel looks up its template through a smooth deformation and an affine; then come the values'
/// exponent, the finding, bias field and level, and noise last.
pub fn render(suite: &Suite, templates: &Templates, split: Split, index: usize) -> Option<Phantom> {
    let (positive, nth) = class(suite.prevalence, index);
    let anatomy = templates.pick(split, nth)?;
    let mut dice = Dice::new(suite.seed, split, index);
    let (grid, variation) = (&suite.grid, &suite.variation);
    let dims = grid.dims;

    let pose = Pose::random(suite, anatomy, &mut dice);
    let deform = Field::<3>::random(grid, variation.deform_spacing_mm, variation.deform_mm, &mut dice);
    let mut values = Vec::with_capacity(dims.iter().product());
    let mut tissue = Vec::with_capacity(values.capacity());
    for voxel in indices(dims) {
        let point = pose.apply(position(grid, voxel), deform.at(voxel));
        let (value, share) = anatomy.at(point);
        values.push(value);
        tissue.push(share);
    }

    let gamma = dice.within(variation.gamma);
    if suite.modality == Modality::Mr {
        for value in &mut values {
            *value = libm::pow(value.max(0.0), gamma);
        }
    }
    let mask = positive.then(|| plant_all(suite, &tissue, &mut values, &mut dice));

    let level = dice.within(variation.level);
    let bias = Field::<1>::random(grid, variation.bias_spacing_mm, variation.bias, &mut dice);
    let noise = dice.within(variation.noise);
    for (value, voxel) in values.iter_mut().zip(indices(dims)) {
        let [a, b] = dice.normal();
        *value = match suite.modality {
            Modality::Mr => {
                let signal = *value * level * libm::exp(bias.at(voxel)[0]);
                MR_UNIT * ((signal + noise * a).powi(2) + (noise * b).powi(2)).sqrt()
            }
            Modality::Ct => *value + noise * a,
        };
    }
    Some(Phantom {
        dims,
        voxels: values.into_iter().map(|v| v.round() as f32).collect(),
        mask,
        geometry: geometry(grid),
    })
}

/// Plants the findings into `values` and returns their mask.
fn plant_all(suite: &Suite, tissue: &[f64], values: &mut [f64], dice: &mut Dice) -> Vec<f32> {
    let finding = &suite.finding;
    let [least, most] = finding.count;
    let contrast = dice.within(finding.contrast);
    let mut amount = vec![0.0_f64; values.len()];
    for _ in 0..least + dice.below(most - least + 1) {
        for (voxel, weight) in plant(finding, &suite.grid, tissue, dice) {
            amount[voxel] = amount[voxel].max(weight);
        }
    }
    for (value, amount) in values.iter_mut().zip(&amount) {
        match suite.modality {
            Modality::Mr => *value *= 1.0 + contrast * amount,
            Modality::Ct => *value += contrast * amount,
        }
    }
    amount.into_iter().map(|a| if a > 0.5 { 1.0 } else { 0.0 }).collect()
}

/// The affine part of the way from the volume to its template: turned and scaled about the volume's middle.
struct Pose {
    centre: [f64; 3],
    matrix: [[f64; 3]; 3],
    shift: [f64; 3],
    mirror: bool,
}

impl Pose {
    fn random(suite: &Suite, anatomy: &Anatomy, dice: &mut Dice) -> Self {
        let variation = &suite.variation;
        let mut matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        for axis in 0..3 {
            let (sin, cos) = libm::sincos((variation.rotate_deg * dice.signed()).to_radians());
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            for row in &mut matrix {
                (row[a], row[b]) = (row[a] * cos + row[b] * sin, row[b] * cos - row[a] * sin);
            }
        }
        let scale: [f64; 3] = std::array::from_fn(|_| dice.within(variation.scale));
        // A scale above 1 makes the anatomy larger: the template is looked up closer to the middle.
        let matrix = matrix.map(|row| std::array::from_fn(|a| row[a] / scale[a]));
        Self {
            centre: suite.grid.centre_mm,
            matrix,
            shift: std::array::from_fn(|_| variation.shift_mm * dice.signed()),
            mirror: anatomy.mirror,
        }
    }

    fn apply(&self, point: [f64; 3], displacement: [f64; 3]) -> [f64; 3] {
        let p: [f64; 3] = std::array::from_fn(|a| point[a] - self.centre[a] + displacement[a]);
        let mut out: [f64; 3] = std::array::from_fn(|r| {
            let row = self.matrix[r];
            row[0] * p[0] + row[1] * p[1] + row[2] * p[2] + self.centre[r] + self.shift[r]
        });
        if self.mirror {
            out[0] = -out[0];
        }
        out
    }
}

fn indices(dims: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..dims[2]).flat_map(move |k| (0..dims[1]).flat_map(move |j| (0..dims[0]).map(move |i| [i, j, k])))
}

fn position(grid: &Grid, voxel: [usize; 3]) -> [f64; 3] {
    std::array::from_fn(|a| {
        grid.centre_mm[a] + (voxel[a] as f64 - (grid.dims[a] as f64 - 1.0) / 2.0) * grid.spacing_mm[a]
    })
}

fn geometry(grid: &Grid) -> Geometry {
    let origin = position(grid, [0; 3]);
    let mut affine = [[0.0; 4]; 3];
    for a in 0..3 {
        affine[a][a] = grid.spacing_mm[a];
        affine[a][3] = origin[a];
    }
    Geometry { affine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_spread_evenly_and_exact() {
        let positives = |prevalence, n| (0..n).filter(|&i| class(prevalence, i).0).count();
        assert_eq!(
            [positives(0.5, 80), positives(0.3, 10), positives(0.0, 9), positives(1.0, 9)],
            [40, 3, 0, 9]
        );
        assert_eq!(
            (0..4).map(|i| class(0.5, i)).collect::<Vec<_>>(),
            [(false, 0), (true, 0), (false, 1), (true, 1)]
        );
    }

    #[test]
    fn a_pose_that_varies_nothing_leaves_points_alone_and_mirrors_about_the_midline() {
        let plain = Pose {
            centre: [5.0, -18.0, 14.0],
            matrix: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            shift: [0.0; 3],
            mirror: false,
        };
        let close = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(plain.apply([30.0, 2.0, 1.0], [0.0; 3]), [30.0, 2.0, 1.0]));
        assert!(close(Pose { mirror: true, ..plain }.apply([30.0, 2.0, 1.0], [0.0; 3]), [-30.0, 2.0, 1.0]));
    }
}
