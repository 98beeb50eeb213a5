use rand_chacha::ChaCha8Rng;

use super::Slices;
use crate::random::unit;
use crate::task::Augment;

/// Random changes of all slices of a volume alike.
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
    let from: Vec<usize> = (0..w).map(|x| source(x, w, right, flip_columns)).collect();
    let mut values = vec![0.0; slices.values.len()];
    for (out, plane) in values.chunks_exact_mut(h * w).zip(slices.values.chunks_exact(h * w)) {
        for (y, row) in out.chunks_exact_mut(w).enumerate() {
            let line = &plane[source(y, h, down, flip_rows) * w..][..w];
            for (value, &x) in row.iter_mut().zip(&from) {
                *value = line[x];
            }
        }
    }
    Slices { values, ..*slices }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, generator};

    fn changed(settings: Augment) -> Vec<Vec<f32>> {
        let slices = Slices { count: 1, size: [2, 3], values: (0..18).map(|x| x as f32).collect() };
        let run = |n| augment(&slices, &settings, &mut generator(1, Purpose::Augment, 0, n)).values;
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
