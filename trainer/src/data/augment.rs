use rand_chacha::ChaCha8Rng;

use super::Slices;
use crate::random::unit;
use crate::task::Augment;

/// Random changes of all slices of a volume alike, and of its mask.
pub fn augment(slices: &Slices, settings: &Augment, rng: &mut ChaCha8Rng) -> Slices {
    // Always the same number of draws, so that switching one change on leaves the others as they were.
    let [columns, rows] = [unit(rng), unit(rng)].map(|x| x < 0.5);
    let reach = settings.shift as f32;
    let [down, right] = [unit(rng), unit(rng)].map(|x| ((2.0 * x - 1.0) * (reach + 0.5)).round() as isize);
    let limit = settings.shift as isize;
    let [down, right] = [down, right].map(|n| n.clamp(-limit, limit));
    let (flip_columns, flip_rows) = (settings.flip_columns && columns, settings.flip_rows && rows);

    let [h, w] = slices.size;
    let source = |at: usize, length: usize, by: isize, flip: bool| {
        let at = (at as isize - by).clamp(0, length as isize - 1) as usize;
        if flip { length - 1 - at } else { at }
    };
    let columns: Vec<usize> = (0..w).map(|x| source(x, w, right, flip_columns)).collect();
    let rows: Vec<usize> = (0..h).map(|y| source(y, h, down, flip_rows)).collect();
    let values = moved(&slices.values, &rows, &columns);
    Slices { values, mask: slices.mask.as_ref().map(|mask| moved(mask, &rows, &columns)), ..*slices }
}

/// Planes whose row `y` and column `x` are row `rows[y]` and column `columns[x]` of `planes`.
fn moved<T: Copy>(planes: &[T], rows: &[usize], columns: &[usize]) -> Vec<T> {
    let each = rows.len() * columns.len();
    let lines = planes
        .chunks_exact(each)
        .flat_map(|plane| rows.iter().map(move |row| &plane[row * columns.len()..][..columns.len()]));
    lines.flat_map(|line| columns.iter().map(|&x| line[x])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, generator};

    fn changed(settings: Augment) -> Vec<Vec<f32>> {
        let values = (0..18).map(|x| x as f32).collect();
        let slices = Slices { count: 1, size: [2, 3], values, mask: Some((0..6).collect()) };
        let run = |n| {
            let found = augment(&slices, &settings, &mut generator(1, Purpose::Augment, 0, n));
            let mask: Vec<f32> = found.mask.unwrap().into_iter().map(f32::from).collect();
            assert_eq!(mask, found.values[..6], "the mask goes where the pixels go");
            found.values
        };
        let mut all: Vec<Vec<f32>> = (0..64).map(run).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all.dedup();
        all
    }

    #[test]
    fn nothing_changes_by_default() {
        let identity: Vec<f32> = (0..18).map(|x| x as f32).collect();
        assert_eq!(changed(Augment::default()), [identity]);
    }

    #[test]
    fn flips_mirror_rows_and_columns_of_every_channel() {
        let flip = changed(Augment { flip_columns: true, ..Augment::default() });
        assert_eq!(flip.len(), 2);
        assert_eq!(flip[1][..6], [2.0, 1.0, 0.0, 5.0, 4.0, 3.0]);
        assert_eq!(flip[1][12..15], [14.0, 13.0, 12.0]);
        let flip = changed(Augment { flip_rows: true, ..Augment::default() });
        assert_eq!(flip[1][..6], [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn shifts_reach_every_offset_and_repeat_the_edge() {
        let shifted = changed(Augment { shift: 1, ..Augment::default() });
        assert_eq!(shifted.len(), 9);
        let right: [f32; 6] = [0.0, 0.0, 1.0, 3.0, 3.0, 4.0];
        assert!(shifted.iter().any(|s| s[..6] == right));
    }
}
