//! One volume of a suite.

use runtime::volume::Geometry;

use super::deal::deal;
use super::field::Field;
use super::finding::Planted;
use super::random::Dice;
use super::suite::{Grid, Modality, Split, Suite, Tone, View};
use super::template::{Anatomy, Templates};

/// What an MR template's tissue median becomes, before `variation.level`.
const MR_UNIT: f64 = 500.0;

/// A subject: its scans, what it has, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Phantom {
    /// One a view of the suite, by the view's name, or one without a name.
    pub scans: Vec<Scan>,
    /// One a target of the suite, in the order of [`Suite::targets`].
    pub labels: Vec<bool>,
    /// On the voxels of the only scan: 1 where a finding of a label with a column changes the values by more than half of
    /// its contrast, 0 elsewhere. `None` for a volume without one, and of suites without masks.
    pub mask: Option<Vec<f32>>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// The view's name.
    pub view: Option<String>,
    /// Voxels along R, A and S.
    pub dims: [usize; 3],
    /// Values, whole numbers; R fastest.
    pub voxels: Vec<f32>,
    /// Where the voxels are.
    pub geometry: Geometry,
}

/// Makes volume `index` of a split; `None` where the suite has no template for the split.
///
/// Each voxel looks up its template through a smooth deformation and an affine; then come tone, the values'
/// exponent, the findings, bias field and level, and noise last. Views share the deformed subject and its findings.
pub fn render(suite: &Suite, templates: &Templates, split: Split, index: usize) -> Option<Phantom> {
    let targets = suite.targets();
    let (labels, nth) = deal(suite, &targets, split, index);
    let anatomy = templates.pick(split, nth)?;
    let mut dice = Dice::new(suite.seed, split, index);
    let (grid, variation) = (&suite.grid, &suite.variation);

    let pose = Pose::random(suite, &mut dice);
    let deform = Field::<3>::random(grid, variation.deform_spacing_mm, variation.deform_mm, &mut dice);
    let subject = Subject { anatomy, pose, deform, grid };
    let seen = subject.on(grid);
    let one = View { grid: None, tone: None, contrast: 1.0 };
    let views: Vec<(Option<&String>, &View)> = if suite.views.is_empty() {
        vec![(None, &one)]
    } else {
        suite.views.iter().map(|(name, view)| (Some(name), view)).collect()
    };
    let gammas: Vec<f64> = views.iter().map(|_| dice.within(variation.gamma)).collect();
    // Each with whether it has a column.
    let planted: Vec<(Planted, bool)> = targets
        .iter()
        .zip(&labels)
        .filter(|(_, has)| **has)
        .map(|(target, _)| (Planted::random(target, grid, &seen, &mut dice), !target.hidden))
        .collect();

    let mut mask = None;
    let mut scan = |(&(name, view), gamma): (&(Option<&String>, &View), f64)| {
        let elsewhere = view.grid.filter(|other| other != grid).map(|other| (other, subject.on(&other)));
        let (grid, seen) = elsewhere.as_ref().map_or((grid, &seen), |(grid, seen)| (grid, seen));
        let mut values = seen.values.clone();
        if let Some(tone) = view.tone.as_ref().or(suite.tone.as_ref()) {
            for value in &mut values {
                *value = curve(tone, *value);
            }
        }
        if suite.modality == Modality::Mr {
            for value in &mut values {
                *value = libm::pow(value.max(0.0), gamma);
            }
        }
        for (planted, has_column) in &planted {
            let amount = planted.amount(subject.grid, grid, seen);
            let contrast = planted.contrast * view.contrast;
            for (value, amount) in values.iter_mut().zip(&amount) {
                match suite.modality {
                    Modality::Mr => *value *= 1.0 + contrast * amount,
                    Modality::Ct => *value += contrast * amount,
                }
            }
            if suite.masks && *has_column {
                let mask = mask.get_or_insert_with(|| vec![0.0; values.len()]);
                for (mask, amount) in mask.iter_mut().zip(&amount) {
                    *mask = if amount.abs() > 0.5 { 1.0 } else { *mask };
                }
            }
        }
        disturb(suite, grid, &mut values, &mut dice);
        Scan {
            view: name.cloned(),
            dims: grid.dims,
            voxels: values.into_iter().map(|v| v.round() as f32).collect(),
            geometry: grid.geometry(),
        }
    };
    let scans = views.iter().zip(gammas).map(&mut scan).collect();
    Some(Phantom { scans, labels, mask })
}

/// Level, bias field and noise.
fn disturb(suite: &Suite, grid: &Grid, values: &mut [f64], dice: &mut Dice) {
    let variation = &suite.variation;
    let level = dice.within(variation.level);
    let bias = Field::<1>::random(grid, variation.bias_spacing_mm, variation.bias, dice);
    let noise = dice.within(variation.noise);
    for (value, voxel) in values.iter_mut().zip(grid.voxels()) {
        let [a, b] = dice.normal();
        *value = match suite.modality {
            Modality::Mr => {
                let signal = *value * level * libm::exp(bias.at(voxel)[0]);
                MR_UNIT * ((signal + noise * a).powi(2) + (noise * b).powi(2)).sqrt()
            }
            Modality::Ct => *value + noise * a,
        };
    }
}

/// A tone at a value.
fn curve(tone: &Tone, value: f64) -> f64 {
    let after = tone.iter().position(|[from, _]| *from > value).unwrap_or(tone.len());
    match (after.checked_sub(1).map(|before| tone[before]), tone.get(after).copied()) {
        (Some([x, shown]), Some([next_x, next])) => shown + (next - shown) * (value - x) / (next_x - x),
        (Some([_, shown]), None) | (None, Some([_, shown])) => shown,
        (None, None) => value,
    }
}

/// A template in its pose and deformed, before anything is done to its values.
struct Subject<'a> {
    anatomy: &'a Anatomy,
    pose: Pose,
    deform: Field<3>,
    /// The grid that the deformation was drawn for.
    grid: &'a Grid,
}

/// What a grid's voxels see of a subject.
pub(super) struct Seen {
    /// The template's values.
    pub(super) values: Vec<f64>,
    /// Shares of tissue.
    pub(super) tissue: Vec<f64>,
    /// Places in the template's space, in mm.
    pub(super) points: Vec<[f64; 3]>,
}

impl Subject<'_> {
    fn on(&self, grid: &Grid) -> Seen {
        let deform = self.deform.over(self.grid, grid);
        let place = |voxel| self.pose.apply(grid.position(voxel), deform.at(voxel));
        let points: Vec<[f64; 3]> = grid.voxels().map(place).collect();
        let (values, tissue) = points.iter().map(|point| self.anatomy.at(*point)).unzip();
        Seen { values, tissue, points }
    }
}

/// The affine part of the way from the volume to its template: turned and scaled about the volume's middle.
struct Pose {
    centre: [f64; 3],
    matrix: [[f64; 3]; 3],
    shift: [f64; 3],
}

impl Pose {
    fn random(suite: &Suite, dice: &mut Dice) -> Self {
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
        }
    }

    fn apply(&self, point: [f64; 3], displacement: [f64; 3]) -> [f64; 3] {
        let p: [f64; 3] = std::array::from_fn(|a| point[a] - self.centre[a] + displacement[a]);
        std::array::from_fn(|r| {
            let row = self.matrix[r];
            row[0] * p[0] + row[1] * p[1] + row[2] * p[2] + self.centre[r] + self.shift[r]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pose_that_varies_nothing_leaves_points_alone() {
        let pose = Pose {
            centre: [5.0, -18.0, 14.0],
            matrix: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            shift: [0.0; 3],
        };
        let found = pose.apply([30.0, 2.0, 1.0], [0.0; 3]);
        assert!(found.iter().zip([30.0, 2.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn a_tone_is_straight_between_its_points_and_level_beyond() {
        let tone = vec![[0.0, -1000.0], [0.5, 0.0], [1.0, 40.0]];
        let found = [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 3.0].map(|value| curve(&tone, value));
        let expected = [-1000.0, -1000.0, -500.0, 0.0, 20.0, 40.0, 40.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
    }
}
