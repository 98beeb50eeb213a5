//! Where a finding is planted and what shape it has.

use super::field::Field;
use super::label::{Finding, Form, Region, Target};
use super::random::Dice;
use super::render::Seen;
use super::suite::Grid;

/// Places to try before the best one found is taken.
const TRIES: usize = 200;

/// Standard deviation of a diffuse finding's lattice values, for one of about 1 of the field, which averages them.
const LATTICE: f64 = 3.0;

/// A finding of a subject, whatever grid it is looked at on.
pub(super) struct Planted {
    /// Change of the value, as in [`Finding`].
    pub(super) contrast: f64,
    body: Body,
}

enum Body {
    /// Shapes and their centres, in mm.
    Focal(Vec<(Shape, [f64; 3])>),
    Diffuse(Form, Field<1>, Option<Region>),
}

impl Planted {
    /// Plants a target into a subject, seen on `grid`. Each centre lies in tissue and in the target's region; the first place is taken
    /// where at least `finding.inside` of the shape lies in tissue, or else the best of those tried. Nothing where there is no tissue.
    pub(super) fn random(target: &Target, grid: &Grid, seen: &Seen, dice: &mut Dice) -> Self {
        let finding = &target.finding;
        let contrast = dice.within(finding.contrast);
        if finding.form != Form::Focal {
            let field = Field::random(grid, dice.within(finding.radius_mm), LATTICE, dice);
            return Self { contrast, body: Body::Diffuse(finding.form, field, target.region) };
        }
        let [least, most] = finding.count;
        let allowed =
            |&i: &usize| seen.tissue[i] > 0.8 && target.region.is_none_or(|r| r.holds(seen.points[i]));
        let centres: Vec<usize> = (0..seen.tissue.len()).filter(allowed).collect();
        let shapes = (0..least + dice.below(most - least + 1)).filter_map(|_| {
            let shape = Shape::random(finding, dice);
            let centre = place(&shape, finding.inside, grid, &seen.tissue, &centres, dice)?;
            Some((shape, centre))
        });
        Self { contrast, body: Body::Focal(shapes.collect()) }
    }

    /// How much of it is in each voxel of a grid on which the subject is `seen`: 0 to 1 in tissue, 0 elsewhere; of a mottled finding
    /// about -2 to 2. `planted_on` is the grid that it was planted on.
    pub(super) fn amount(&self, planted_on: &Grid, grid: &Grid, seen: &Seen) -> Vec<f64> {
        let mut amount = vec![0.0_f64; seen.tissue.len()];
        match &self.body {
            Body::Focal(shapes) => {
                for (shape, centre) in shapes {
                    for (voxel, weight) in voxels(shape, grid, *centre) {
                        amount[voxel] = amount[voxel].max(weight * seen.tissue[voxel]);
                    }
                }
            }
            Body::Diffuse(form, field, region) => {
                let field = field.over(planted_on, grid);
                for (i, voxel) in grid.voxels().enumerate() {
                    if seen.tissue[i] > 0.0 && region.is_none_or(|r| r.holds(seen.points[i])) {
                        let [value] = field.at(voxel);
                        let share = if *form == Form::Patchy { smooth_step(0.5 + value) } else { value };
                        amount[i] = share * seen.tissue[i];
                    }
                }
            }
        }
        amount
    }
}

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
        smooth_step(0.5 + (1.0 - distance) * self.radius / self.edge)
    }

    /// Half the size of a box that holds it, in mm.
    fn reach(&self) -> [f64; 3] {
        let most = 1.0 + self.waves.iter().map(|w| w.0).fold(0.0, f64::max) + self.edge / self.radius;
        [self.radius * most, self.radius * most, self.half_thickness * most]
    }
}

/// From 0 at 0 to 1 at 1, level at both ends.
fn smooth_step(t: f64) -> f64 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A centre, in mm, near one of the voxels `centres`.
fn place(
    shape: &Shape,
    inside: f64,
    grid: &Grid,
    tissue: &[f64],
    centres: &[usize],
    dice: &mut Dice,
) -> Option<[f64; 3]> {
    if centres.is_empty() {
        return None;
    }
    let (mut best, mut best_share) = (None, -1.0);
    for _ in 0..TRIES {
        let at = grid.position(grid.voxel(centres[dice.below(centres.len())]));
        let centre = std::array::from_fn(|a| at[a] + 0.5 * grid.spacing_mm[a] * dice.signed());
        let (mut whole, mut within) = (0.0, 0.0);
        for (voxel, weight) in voxels(shape, grid, centre) {
            whole += weight;
            within += weight * tissue[voxel];
        }
        let share = within / f64::max(whole, 1e-9);
        if share > best_share {
            (best, best_share) = (Some(centre), share);
        }
        if best_share >= inside {
            break;
        }
    }
    best
}

/// How much of a shape about `centre`, in mm, is in each voxel, where that is anything. What falls off the grid counts as
/// little as what falls off the tissue: it is left out.
fn voxels(shape: &Shape, grid: &Grid, centre: [f64; 3]) -> Vec<(usize, f64)> {
    let reach = shape.reach();
    let origin = grid.position([0; 3]);
    let range = |a: usize| {
        let index = |mm: f64| (mm - origin[a]) / grid.spacing_mm[a];
        let from = index(centre[a] - reach[a]).floor().max(0.0) as usize;
        let to = (index(centre[a] + reach[a]).ceil().max(-1.0) + 1.0) as usize;
        from..to.min(grid.dims[a])
    };
    let mut found = Vec::new();
    for k in range(2) {
        for j in range(1) {
            for i in range(0) {
                let point = grid.position([i, j, k]);
                let weight = shape.at(std::array::from_fn(|a| point[a] - centre[a]));
                if weight > 0.0 {
                    found.push((grid.index([i, j, k]), weight));
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

    fn target() -> Target {
        let finding = Finding {
            form: Form::Focal,
            count: [1, 1],
            contrast: [0.6, 0.6],
            radius_mm: [8.0, 8.0],
            thickness_mm: [20.0, 20.0],
            edge_mm: 2.0,
            irregularity: 0.0,
            inside: 0.9,
        };
        Target { name: "x".into(), hidden: false, prevalence: 0.5, finding, region: None }
    }

    fn grid() -> Grid {
        Grid { dims: [40, 40, 8], spacing_mm: [2.0, 2.0, 5.0], centre_mm: [0.0; 3] }
    }

    /// Tissue in the left half, and every voxel in its own place.
    fn seen(grid: &Grid) -> Seen {
        let points: Vec<[f64; 3]> = grid.voxels().map(|voxel| grid.position(voxel)).collect();
        let tissue = points.iter().map(|p| if p[0] < 0.0 { 1.0 } else { 0.0 }).collect();
        Seen { values: vec![1.0; points.len()], tissue, points }
    }

    fn planted(target: &Target, index: usize) -> Planted {
        Planted::random(target, &grid(), &seen(&grid()), &mut Dice::new(1, Split::Train, index))
    }

    #[test]
    fn a_finding_has_the_volume_of_its_ellipsoid_and_stays_in_tissue() {
        let (grid, seen) = (grid(), seen(&grid()));
        for index in 0..10 {
            let amount = planted(&target(), index).amount(&grid, &grid, &seen);
            let in_place = |(a, t): (&f64, &f64)| (0.0..=1.0).contains(a) && (*a == 0.0 || *t > 0.0);
            assert!(amount.iter().zip(&seen.tissue).all(in_place));
            let volume = amount.iter().sum::<f64>() * 20.0;
            let ellipsoid = 4.0 / 3.0 * std::f64::consts::PI * 8.0 * 8.0 * 10.0;
            // At least `inside` of it is there, unless the volume's end cut it.
            assert!(volume < 1.15 * ellipsoid && volume > 0.4 * ellipsoid, "{volume} of {ellipsoid}");
        }
    }

    #[test]
    fn without_tissue_nothing_is_planted() {
        let (grid, mut seen) = (grid(), seen(&grid()));
        seen.tissue.fill(0.0);
        let planted = Planted::random(&target(), &grid, &seen, &mut Dice::new(1, Split::Train, 0));
        assert!(planted.amount(&grid, &grid, &seen).iter().all(|a| *a == 0.0));
    }

    #[test]
    fn a_finding_keeps_to_its_region() {
        let (grid, seen) = (grid(), seen(&grid()));
        let region = Region { y_mm: [10.0, f64::INFINITY], ..Region::default() };
        for form in [Form::Focal, Form::Patchy, Form::Mottled] {
            let mut target = Target { region: Some(region), ..target() };
            target.finding.form = form;
            let amount = planted(&target, 3).amount(&grid, &grid, &seen);
            let touched = || amount.iter().zip(&seen.points).filter(|(a, _)| **a != 0.0).map(|(_, p)| p[1]);
            assert!(touched().count() > 50);
            // A focal finding has its centre there; its radius is 8 mm.
            let least = if form == Form::Focal { 0.0 } else { 10.0 };
            assert!(touched().all(|y| y >= least), "{form:?}");
        }
    }

    #[test]
    fn a_diffuse_finding_changes_half_of_the_tissue_or_keeps_its_mean() {
        let (grid, seen) = (grid(), seen(&grid()));
        let mean = |form| {
            let mut target = target();
            target.finding.form = form;
            let all: Vec<f64> =
                (0..20).flat_map(|i| planted(&target, i).amount(&grid, &grid, &seen)).collect();
            let (tissue, square) = (all.len() as f64 / 2.0, all.iter().map(|a| a * a).sum::<f64>());
            (all.iter().sum::<f64>() / tissue, (square / tissue).sqrt())
        };
        let (patchy, _) = mean(Form::Patchy);
        assert!((0.4..0.6).contains(&patchy), "{patchy}");
        let (mottled, deviation) = mean(Form::Mottled);
        assert!(mottled.abs() < 0.05 && (0.8..1.2).contains(&deviation), "{mottled} {deviation}");
    }

    #[test]
    fn a_finding_is_in_the_same_place_on_every_grid() {
        let fine = Grid { dims: [80, 10, 40], spacing_mm: [1.0, 8.0, 1.0], centre_mm: [0.0; 3] };
        let centre = |amount: &[f64], grid: &Grid| -> [f64; 3] {
            let sum = amount.iter().sum::<f64>();
            let at = |a: usize| grid.voxels().zip(amount).map(|(v, w)| w * grid.position(v)[a]).sum::<f64>();
            std::array::from_fn(|a| at(a) / sum)
        };
        for form in [Form::Focal, Form::Patchy] {
            let mut target = target();
            (target.finding.form, target.finding.radius_mm) = (form, [12.0, 12.0]);
            let planted = planted(&target, 1);
            let a = centre(&planted.amount(&grid(), &grid(), &seen(&grid())), &grid());
            let b = centre(&planted.amount(&grid(), &fine, &seen(&fine)), &fine);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1.5), "{form:?}: {a:?} {b:?}");
        }
    }
}
