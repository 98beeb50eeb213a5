//! How well a heat map shows where the finding is: compared, in the scan's own voxels, with a mask.
//!
//! The heat map is the device's: last block's attention to the patches times the slice's weight, brought to the voxels by
//! [`Prepared::heatmap_volume`]. It is class-agnostic, so a volume of several findings is compared with all that its mask covers.

use firmware_config::Recipe;
use runtime::recipe::Prepared;
use runtime::volume::Geometry;

use crate::Error;
use crate::data::{Sample, Table, single, unusable};

/// Levels at which a heat map is cut, as shares of its peak: 1, 2^(-1/4), 2^(-1/2), … 2^(-10). Most of a map lies far below its
/// peak, hence powers.
pub const LEVELS: usize = 41;

/// The share of the peak at level `k`.
pub fn level(k: usize) -> f64 {
    libm::exp2(-0.25 * k as f64)
}

/// A heat map against a mask that is not empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// Pointing game (Zhang et al., arXiv 1608.00507): whether the hottest voxel, the first in stored order of several, lies in the
    /// mask, or no further from the centre of one of its voxels than is tolerated.
    pub hit: bool,
    /// The mask's share of the volume: how often a voxel taken at random would hit.
    pub share: f64,
    /// Dice of the mask and the voxels that are at least as hot as each level.
    pub dice: Vec<f64>,
}

impl Located {
    /// Compares heat with a mask (1 inside) on the same voxels, `dims` along the stored axes, the first fastest; `None` where
    /// the mask is empty.
    pub fn of(
        heat: &[f32],
        inside: &[u8],
        dims: [usize; 3],
        geometry: &Geometry,
        tolerance_mm: f64,
    ) -> Option<Self> {
        let size = inside.iter().map(|&x| usize::from(x)).sum();
        if size == 0 || heat.len() != inside.len() {
            return None;
        }
        // The first of the hottest: `max_by` would give the last.
        let peak = (0..heat.len()).reduce(|best, i| if heat[i] > heat[best] { i } else { best })?;
        let place = |at: usize| {
            let index = [at % dims[0], at / dims[0] % dims[1], at / dims[0] / dims[1]];
            geometry.position(index.map(|i| i as f64))
        };
        let near = |at: usize| {
            let (a, b) = (place(at), place(peak));
            let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
            square <= tolerance_mm * tolerance_mm
        };
        let hit = inside[peak] == 1
            || (tolerance_mm > 0.0 && (0..inside.len()).any(|at| inside[at] == 1 && near(at)));
        Some(Self {
            hit,
            share: size as f64 / inside.len() as f64,
            dice: dice(heat, inside, f64::from(heat[peak]), size),
        })
    }

    /// Dice at the level that suits this one volume best.
    pub fn best(&self) -> f64 {
        self.dice.iter().copied().fold(0.0, f64::max)
    }
}

/// Dice at each level. One pass: each voxel is counted at the highest level that it reaches.
fn dice(heat: &[f32], inside: &[u8], peak: f64, size: usize) -> Vec<f64> {
    if peak <= 0.0 {
        return vec![0.0; LEVELS];
    }
    let levels: Vec<f64> = (0..LEVELS).map(|k| level(k) * peak).collect();
    let mut reached = [[0usize; 2]; LEVELS + 1];
    for (&heat, &inside) in heat.iter().zip(inside) {
        let heat = f64::from(heat);
        // Most voxels are below all levels.
        let k =
            if heat < levels[LEVELS - 1] { LEVELS } else { levels.partition_point(|&level| heat < level) };
        reached[k][usize::from(inside)] += 1;
    }
    let (mut marked, mut both) = (0, 0);
    let at = |[outside, inside]: &[usize; 2]| {
        marked += outside + inside;
        both += inside;
        2.0 * both as f64 / (marked + size) as f64
    };
    reached[..LEVELS].iter().map(at).collect()
}

/// The level with the best mean Dice, the highest of several; `None` of none.
pub fn best_level<'a>(located: impl IntoIterator<Item = &'a Located>) -> Option<usize> {
    let mut sums = [0.0; LEVELS];
    let mut any = false;
    for found in located {
        any = true;
        sums.iter_mut().zip(&found.dice).for_each(|(sum, dice)| *sum += dice);
    }
    any.then(|| (0..LEVELS).reduce(|best, k| if sums[k] > sums[best] { k } else { best }))?
}

/// Compares the heat map `[S, gh, gw]` of a sample's prepared slices with its mask; `None` without a mask, or with an empty one.
pub fn locate(
    table: &Table,
    sample: &Sample,
    recipe: &Recipe,
    heat: &[f32],
    grid: [usize; 2],
    tolerance_mm: f64,
) -> Result<Option<Located>, Error> {
    let Some(mask) = &sample.mask else { return Ok(None) };
    let unusable = |e: runtime::recipe::RecipeError| unusable(table, sample, e.into());
    let volume = single(table, sample, sample.image(), "image")?;
    let prepared = Prepared::new(&volume, recipe).map_err(unusable)?;
    let inside = prepared.mask_voxels(&single(table, sample, mask, "mask")?).map_err(unusable)?;
    let heat = prepared.heatmap_volume(heat, grid);
    Ok(Located::of(&heat, &inside, volume.dims, &volume.geometry, tolerance_mm))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [usize; 3] = [4, 3, 2];

    fn geometry() -> Geometry {
        Geometry::from_columns([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, -5.0]], [7.0, 0.0, 1.0])
    }

    fn located(heat: &[f32], inside: &[u8], tolerance: f64) -> Located {
        Located::of(heat, inside, DIMS, &geometry(), tolerance).unwrap()
    }

    #[test]
    fn the_peak_has_to_lie_in_the_mask_or_near_it() {
        let mut inside = [0; 24];
        (inside[5], inside[6]) = (1, 1);
        let peak = |at: &[usize]| {
            let mut heat = [0.1; 24];
            for &at in at {
                heat[at] = 0.9;
            }
            heat
        };
        assert!(located(&peak(&[6]), &inside, 0.0).hit);
        assert!(!located(&peak(&[7]), &inside, 0.0).hit);
        // The first of two.
        assert!(!located(&peak(&[4, 5]), &inside, 0.0).hit && located(&peak(&[5, 7]), &inside, 0.0).hit);
        // Voxel 7 is 2 mm from voxel 6, voxel 10 is 3 mm, voxel 11 their diagonal, voxel 18 is 5 mm: one slice further.
        for (at, mm) in [(7, 2.0), (10, 3.0), (11, 13f64.sqrt()), (18, 5.0)] {
            assert!(!located(&peak(&[at]), &inside, mm - 0.01).hit, "{at}");
            assert!(located(&peak(&[at]), &inside, mm + 0.01).hit, "{at}");
        }
        assert!((located(&peak(&[6]), &inside, 0.0).share - 2.0 / 24.0).abs() < 1e-12);
        assert_eq!(Located::of(&[0.5; 24], &[0; 24], DIMS, &geometry(), 0.0), None);
    }

    #[test]
    fn dice_at_each_level_is_that_of_the_voxels_above_it() {
        let heat: Vec<f32> = (0..24).map(|i| ((i * 7 + 5) % 24) as f32 / 30.0 - 0.05).collect();
        let inside: Vec<u8> = (0..24).map(|i| u8::from((i * 7 + 5) % 24 > 15 || i == 0)).collect();
        let found = located(&heat, &inside, 0.0);
        let peak = heat.iter().copied().fold(0.0, f32::max);
        for (k, dice) in found.dice.iter().enumerate() {
            let cut = f64::from(peak) * 2f64.powf(-(k as f64) / 4.0);
            let marked: Vec<bool> = heat.iter().map(|&h| f64::from(h) >= cut * (1.0 - 1e-9)).collect();
            let both = marked.iter().zip(&inside).filter(|&(&m, &i)| m && i == 1).count();
            let sum =
                marked.iter().filter(|m| **m).count() + inside.iter().map(|&i| usize::from(i)).sum::<usize>();
            assert!((dice - 2.0 * both as f64 / sum as f64).abs() < 1e-12, "{k}");
        }
        assert!(found.best() > found.dice[0] && found.best() > found.dice[LEVELS - 1]);
        assert_eq!(located(&[0.0; 24], &inside, 0.0).dice, [0.0; LEVELS]);
    }

    #[test]
    fn the_level_is_chosen_for_all_together() {
        let of = |dice: &[f64]| {
            let mut all = vec![0.0; LEVELS];
            all[..dice.len()].copy_from_slice(dice);
            Located { hit: true, share: 0.1, dice: all }
        };
        let found = [of(&[0.0, 0.5, 0.6]), of(&[0.9, 0.6, 0.5])];
        assert_eq!(best_level(&found[..1]), Some(2));
        assert_eq!(best_level(&found), Some(1));
        assert_eq!(best_level([]), None);
        assert!((level(4) - 0.5).abs() < 1e-12 && (level(40) - 1.0 / 1024.0).abs() < 1e-12);
    }
}
