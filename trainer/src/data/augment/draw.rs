use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::random::unit;
use crate::task::{Augment, Change};

/// What happens to one volume; `None` is what does not.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Drawn {
    pub flip_columns: bool,
    pub flip_rows: bool,
    pub flip_slices: bool,
    /// Down and to the right, in whole pixels.
    pub shift: Option<[f64; 2]>,
    /// Degrees, counter-clockwise.
    pub rotate: Option<f64>,
    pub zoom: Option<f64>,
    /// Standard deviation, and the seed of the noise.
    pub noise: Option<(f32, u64)>,
    pub blur: Option<f64>,
    pub brightness: Option<f32>,
    pub contrast: Option<f32>,
    pub low_resolution: Option<f64>,
    pub gamma: Option<f32>,
    pub gamma_inverted: Option<f32>,
}

impl Drawn {
    /// Always the same numbers are drawn in the same order, so that switching one change on leaves the others as they were.
    pub fn new(settings: &Augment, rng: &mut ChaCha8Rng) -> Self {
        let [columns, rows] = [f64::from(unit(rng)), f64::from(unit(rng))];
        let [down, right] = [unit(rng), unit(rng)].map(|u| whole(settings.shift.range, f64::from(u)));
        let slices = f64::from(unit(rng));
        let shifted = f64::from(unit(rng)) < settings.shift.p;
        let mut draw = |change: Change| {
            let [chance, strength] = [unit(rng), unit(rng)].map(f64::from);
            let [low, high] = change.range;
            (chance < change.p).then_some(low + strength * (high - low))
        };
        let (rotate, zoom) = (draw(settings.rotate), draw(settings.zoom));
        let noise = draw(settings.noise);
        let (blur, brightness, contrast) =
            (draw(settings.blur), draw(settings.brightness), draw(settings.contrast));
        let low_resolution = draw(settings.low_resolution);
        let (gamma, gamma_inverted) = (draw(settings.gamma), draw(settings.gamma_inverted));
        let seed = rng.next_u64();
        Self {
            flip_columns: columns < settings.flip_columns,
            flip_rows: rows < settings.flip_rows,
            flip_slices: slices < settings.flip_slices,
            shift: shifted.then_some([down, right]),
            rotate,
            zoom,
            noise: noise.map(|sigma| (sigma as f32, seed)),
            blur,
            brightness: brightness.map(|x| x as f32),
            contrast: contrast.map(|x| x as f32),
            low_resolution,
            gamma: gamma.map(|x| x as f32),
            gamma_inverted: gamma_inverted.map(|x| x as f32),
        }
    }

    /// Whether pixels move.
    pub fn moves(&self) -> bool {
        self.flip_columns
            || self.flip_rows
            || self.shift.is_some()
            || self.rotate.is_some()
            || self.zoom.is_some()
    }

    /// Whether values change beyond being moved.
    pub fn recolours(&self) -> bool {
        let Self { noise, blur, brightness, contrast, low_resolution, gamma, gamma_inverted, .. } = *self;
        noise.is_some()
            || [blur, low_resolution].iter().any(Option::is_some)
            || [brightness, contrast, gamma, gamma_inverted].iter().any(Option::is_some)
    }
}

/// One of the whole numbers of a range, all alike likely; `u` is uniform in `[0, 1)`.
fn whole([low, high]: [f64; 2], u: f64) -> f64 {
    let [low, high] = [low.ceil(), high.floor()];
    if low > high { 0.0 } else { (low + (u * (high - low + 1.0)).floor()).min(high) }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;
    use crate::random::{Purpose, generator};

    fn drawn(settings: &Augment, n: u64) -> Vec<Drawn> {
        (0..n).map(|i| Drawn::new(settings, &mut generator(5, Purpose::Augment, 1, i))).collect()
    }

    #[test]
    fn each_change_comes_as_often_and_as_strong_as_the_paper_says() {
        const N: u64 = 20_000;
        let all = drawn(&Augment::PAPER, N);
        let check = |name: &str, p: f64, found: Vec<f64>, [low, high]: [f64; 2]| {
            let (n, count) = (N as f64, found.len() as f64);
            // Four standard deviations of a binomial share, and of the mean of uniform strengths.
            let off = (count / n - p).abs();
            assert!(off < 4.0 * (p * (1.0 - p) / n).sqrt(), "{name}: {count} of {N}");
            assert!(found.iter().all(|x| (low - 1e-6..=high + 1e-6).contains(x)), "{name}");
            let mean = found.iter().sum::<f64>() / count;
            assert!(
                (mean - f64::midpoint(low, high)).abs() <= 4.0 * (high - low + 1e-6) / (12.0 * count).sqrt(),
                "{name} {mean}"
            );
        };
        let count = |flag: fn(&Drawn) -> bool| vec![0.0; all.iter().filter(|d| flag(d)).count()];
        check("columns", 0.5, count(|d| d.flip_columns), [0.0; 2]);
        check("rows", 0.5, count(|d| d.flip_rows), [0.0; 2]);
        check("slices", 0.5, count(|d| d.flip_slices), [0.0; 2]);
        let of = |value: fn(&Drawn) -> Option<f64>| all.iter().filter_map(value).collect::<Vec<f64>>();
        check("down", 0.2, of(|d| d.shift.map(|s| s[0])), [-10.0, 10.0]);
        check("right", 0.2, of(|d| d.shift.map(|s| s[1])), [-10.0, 10.0]);
        check("rotate", 0.2, of(|d| d.rotate), [-30.0, 30.0]);
        check("zoom", 0.2, of(|d| d.zoom), [0.7, 1.4]);
        check("noise", 0.25, of(|d| d.noise.map(|n| n.0.into())), [0.02, 0.02]);
        check("blur", 0.2, of(|d| d.blur), [0.5, 1.0]);
        check("brightness", 0.15, of(|d| d.brightness.map(f64::from)), [0.75, 1.25]);
        check("contrast", 0.15, of(|d| d.contrast.map(f64::from)), [0.75, 1.25]);
        check("low resolution", 0.2, of(|d| d.low_resolution), [0.5, 1.0]);
        check("gamma", 0.25, of(|d| d.gamma.map(f64::from)), [0.7, 1.5]);
        check("inverted gamma", 0.15, of(|d| d.gamma_inverted.map(f64::from)), [0.7, 1.5]);
        // Independent of each other: both at once as often as the product.
        let both = all.iter().filter(|d| d.gamma.is_some() && d.rotate.is_some()).count() as f64 / N as f64;
        assert!((both - 0.05).abs() < 4.0 * (0.05f64 * 0.95 / N as f64).sqrt(), "{both}");
    }

    #[test]
    fn switching_one_change_off_leaves_the_others_as_they_were() {
        let off = Change { p: 0.0, range: [0.0; 2] };
        let all = drawn(&Augment::PAPER, 200);
        let without =
            drawn(&Augment { shift: off, noise: off, zoom: off, flip_rows: 0.0, ..Augment::PAPER }, 200);
        for (all, without) in all.iter().zip(without) {
            assert_eq!(Drawn { shift: None, noise: None, zoom: None, flip_rows: false, ..*all }, without);
        }
    }

    #[test]
    fn shifts_are_whole_and_reach_both_ends() {
        assert_eq!([0.0, 0.2, 0.5, 0.999].map(|u| whole([-1.0, 1.0], u)), [-1.0, -1.0, 0.0, 1.0]);
        assert_eq!(whole([0.2, 0.8], 0.5), 0.0);
    }
}
