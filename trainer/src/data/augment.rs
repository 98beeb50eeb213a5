//! Random changes of prepared slices.

mod draw;
mod filter;
mod geometry;
mod intensity;

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::Slices;
use crate::task::Augment;
use draw::Drawn;
use geometry::Grid;
pub use intensity::Scale;
use intensity::recolour;

/// Random changes of all slices of a volume alike, and of its mask; the same slices where nothing is drawn.
pub fn augment(slices: &Arc<Slices>, settings: &Augment, scale: &Scale, rng: &mut ChaCha8Rng) -> Arc<Slices> {
    let drawn = Drawn::new(settings, rng);
    if !(drawn.moves() || drawn.flip_slices || drawn.recolours()) {
        return Arc::clone(slices);
    }
    change(slices, &drawn, scale).into()
}

fn change(slices: &Slices, drawn: &Drawn, scale: &Scale) -> Slices {
    let grid = drawn.moves().then(|| Grid::new(slices.size, drawn));
    let grid = grid.as_ref();
    let bilinear = |plane: &[f32], out: &mut [f32]| match grid {
        Some(grid) => grid.bilinear(plane, out),
        None => out.copy_from_slice(plane),
    };
    let nearest = |plane: &[u8], out: &mut [u8]| match grid {
        Some(grid) => grid.nearest(plane, out),
        None => out.copy_from_slice(plane),
    };
    let plane = slices.size[0] * slices.size[1];
    let mut values = taken(&slices.values, [3, plane], drawn.flip_slices, bilinear);
    if drawn.recolours() {
        recolour(&mut values, slices.size, scale, drawn);
    }
    let mask = slices.mask.as_ref().map(|mask| taken(mask, [1, plane], drawn.flip_slices, nearest));
    Slices { values, mask, ..*slices }
}

/// All planes of `values` `[S, channels, plane]`, each through `take`; the slices in reverse order where `reversed`.
fn taken<T: Copy + Default>(
    values: &[T],
    [channels, plane]: [usize; 2],
    reversed: bool,
    take: impl Fn(&[T], &mut [T]),
) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    let each = channels * plane;
    let count = values.len() / each;
    for (s, out) in out.chunks_exact_mut(each).enumerate() {
        let source = &values[if reversed { count - 1 - s } else { s } * each..][..each];
        out.chunks_exact_mut(plane).zip(source.chunks_exact(plane)).for_each(|(out, plane)| take(plane, out));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, generator};
    use crate::task::Change;

    fn scale() -> Scale {
        let recipe = "plane = 'axial'\nsize = [2, 3]\nintensity = { kind = 'z-score' }";
        Scale::of(&toml::from_str(recipe).unwrap())
    }

    /// A volume of two slices of 2 by 3 pixels and a mask that says where each came from.
    fn volume() -> Slices {
        let values = (0..36).map(|x| x as f32).collect();
        Slices { count: 2, size: [2, 3], values, mask: Some((0..6).chain(18..24).collect()) }
    }

    fn changed(settings: &Augment) -> Vec<Vec<f32>> {
        let volume = Arc::new(volume());
        let run = |n| {
            let rng = &mut generator(1, Purpose::Augment, 0, n);
            let found = augment(&volume, settings, &scale(), rng);
            let mask: Vec<f32> = found.mask.iter().flatten().map(|&x| f32::from(x)).collect();
            assert_eq!(
                mask,
                [&found.values[..6], &found.values[18..24]].concat(),
                "the mask goes with the pixels"
            );
            found.values.clone()
        };
        let mut all: Vec<Vec<f32>> = (0..64).map(run).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all.dedup();
        all
    }

    #[test]
    fn nothing_changes_by_default() {
        assert_eq!(changed(&Augment::default()), [volume().values]);
        // Nothing is copied where nothing is drawn.
        let (volume, rng) = (Arc::new(volume()), &mut generator(1, Purpose::Augment, 0, 0));
        assert!(Arc::ptr_eq(&augment(&volume, &Augment::OFF, &scale(), rng), &volume));
    }

    #[test]
    fn flips_mirror_rows_and_columns_of_every_channel() {
        let flip = changed(&Augment { flip_columns: 0.5, ..Augment::default() });
        assert_eq!(flip.len(), 2);
        assert_eq!(flip[1][..6], [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        assert_eq!(flip[1][12..15], [14.0, 13.0, 12.0]);
        let flip = changed(&Augment { flip_rows: 0.5, ..Augment::default() });
        assert_eq!(flip[1][..6], [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
        let flip = changed(&Augment { flip_slices: 0.5, ..Augment::default() });
        let values = volume().values;
        assert_eq!(flip, [values.clone(), [&values[18..], &values[..18]].concat()]);
        // Three flips, drawn apart: all eight combinations come up.
        let flips = Augment { flip_columns: 0.5, flip_rows: 0.5, flip_slices: 0.5, ..Augment::default() };
        assert_eq!(changed(&flips).len(), 8);
    }

    #[test]
    fn shifts_reach_every_offset_and_repeat_the_edge() {
        let shift = Change { p: 1.0, range: [-1.0, 1.0] };
        let shifted = changed(&Augment { shift, ..Augment::default() });
        assert_eq!(shifted.len(), 9);
        let right: [f32; 6] = [0.0, 0.0, 1.0, 3.0, 3.0, 4.0];
        assert!(shifted.iter().any(|s| s[..6] == right));
    }

    #[test]
    fn all_slices_and_channels_are_turned_alike() {
        // Every plane is the same, so every plane must come out the same.
        let plane = [1.0, 5.0, 2.0, 8.0, 3.0, 9.0];
        let slices = Slices {
            count: 3,
            size: [2, 3],
            values: plane.repeat(9),
            mask: Some([0, 1, 0, 1, 0, 1].repeat(3)),
        };
        let drawn = Drawn { rotate: Some(20.0), zoom: Some(0.9), ..Drawn::default() };
        let found = change(&slices, &drawn, &scale());
        assert!(found.values.chunks_exact(6).all(|p| *p == found.values[..6]) && found.values[..6] != plane);
        assert!(found.mask.unwrap().iter().all(|&x| x <= 1), "a mask stays 0 and 1");
    }
}
