use firmware_config::{Intensity, Recipe};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::draw::Drawn;
use super::filter::Filter;

/// What stands for 0 and 1 while intensities are changed.
///
/// Where the recipe clips to windows or percentiles, these are the ends of each channel before normalisation. A z-score has no
/// ends, so they are the least and greatest value of the volume's slices. What is changed is clipped to them again, since the
/// recipe never gives anything beyond.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Of each channel, as the recipe normalises.
    mean: [f32; 3],
    std: [f32; 3],
    /// For each channel the first one that shows the same window.
    first: [usize; 3],
    clipped: bool,
}

impl Scale {
    /// As a recipe has it.
    pub fn of(recipe: &Recipe) -> Self {
        let (mean, std) = recipe.normalize.mean_std();
        let (first, clipped) = match &recipe.intensity {
            Intensity::Window { windows } if windows.len() == 3 => ([0, 1, 2], true),
            Intensity::Window { windows } if windows.len() == 2 => ([0, 0, 2], true),
            Intensity::Window { .. } | Intensity::Percentile { .. } => ([0, 0, 0], true),
            Intensity::ZScore { .. } => ([0, 0, 0], false),
        };
        Self { mean, std, first, clipped }
    }

    /// `(low, range)` of channel `c`, so that `(x - low) / range` is 0 to 1 of its normalised values.
    fn ends<'a>(&self, c: usize, planes: impl Iterator<Item = &'a [f32]>) -> (f32, f32) {
        if self.clipped {
            return (-self.mean[c] / self.std[c], 1.0 / self.std[c]);
        }
        let [low, high] = planes
            .flatten()
            .fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], &x| [low.min(x), high.max(x)]);
        (low, if high > low { high - low } else { 1.0 })
    }
}

/// Changes the intensities of all slices `[S, 3, H, W]` of a volume as drawn.
pub(super) fn recolour(values: &mut [f32], [height, width]: [usize; 2], scale: &Scale, drawn: &Drawn) {
    let plane = height * width;
    let slices = |values: &mut [f32], c: usize, change: &mut dyn FnMut(&mut [f32])| {
        values.chunks_exact_mut(3 * plane).for_each(|slice| change(&mut slice[c * plane..][..plane]));
    };
    for c in (0..3).filter(|&c| scale.first[c] == c) {
        let (low, range) =
            scale.ends(c, values.chunks_exact(3 * plane).map(|slice| &slice[c * plane..][..plane]));
        // The same noise in every channel: they show one scan.
        let mut noise = drawn.noise.map(|(sigma, seed)| (sigma, ChaCha8Rng::seed_from_u64(seed)));
        let blur = drawn.blur.map(|sigma| [width, height].map(|n| Filter::gaussian(n, sigma)));
        let mut sum = 0.0;
        slices(values, c, &mut |plane| {
            for x in plane.iter_mut() {
                *x = (*x - low) / range;
            }
            if let Some((sigma, rng)) = &mut noise {
                for x in plane.iter_mut() {
                    let normal: f32 = StandardNormal.sample(rng);
                    *x += *sigma * normal;
                }
            }
            if let Some([rows, columns]) = &blur {
                plane.copy_from_slice(&columns.down_columns(&rows.along_rows(plane, width), width));
            }
            if let Some(factor) = drawn.brightness {
                for x in plane.iter_mut() {
                    *x *= factor;
                }
            }
            sum += plane.iter().map(|&x| f64::from(x)).sum::<f64>();
        });
        let mean = (sum * 3.0 / values.len() as f64) as f32;
        let smaller = drawn.low_resolution.map(|share| {
            let side = |n: usize| ((n as f64 * share).round() as usize).max(1);
            let (rows, columns) = (side(height), side(width));
            let shrink = (Filter::resize(width, columns), Filter::resize(height, rows));
            (columns, shrink, Filter::resize(columns, width), Filter::resize(rows, height))
        });
        slices(values, c, &mut |plane| {
            if let Some(factor) = drawn.contrast {
                for x in plane.iter_mut() {
                    *x = (*x - mean) * factor + mean;
                }
            }
            if let Some((columns, shrink, wider, higher)) = &smaller {
                let small = shrink.1.down_columns(&shrink.0.along_rows(plane, width), *columns);
                plane.copy_from_slice(&higher.down_columns(&wider.along_rows(&small, *columns), width));
            }
            for x in plane.iter_mut() {
                *x = x.clamp(0.0, 1.0);
                *x = drawn.gamma.map_or(*x, |gamma| x.powf(gamma));
                *x = drawn.gamma_inverted.map_or(*x, |gamma| 1.0 - (1.0 - *x).powf(gamma));
                *x = *x * range + low;
            }
        });
    }
    // A channel of the same window has the same value before normalisation.
    for slice in values.chunks_exact_mut(3 * plane) {
        for (c, first) in scale.first.into_iter().enumerate().filter(|&(c, first)| c != first) {
            let (before, at) = slice.split_at_mut(c * plane);
            for (x, same) in at.iter_mut().zip(&before[first * plane..][..plane]) {
                *x = (*same * scale.std[first] + scale.mean[first] - scale.mean[c]) / scale.std[c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    const SIZE: [usize; 2] = [4, 6];
    const PLANE: usize = 24;

    fn recipe(intensity: &str) -> Recipe {
        toml::from_str(&format!("plane = 'axial'\nsize = [4, 6]\nintensity = {intensity}")).unwrap()
    }

    fn scale(intensity: &str) -> Scale {
        Scale::of(&recipe(intensity))
    }

    const ONE: &str = "{ kind = 'window', windows = [[0, 80]] }";
    const THREE: &str = "{ kind = 'window', windows = [[0, 80], [-50, 50], [0, 1000]] }";
    const Z: &str = "{ kind = 'z-score' }";

    /// Values of 0 to 1 for each of three slices.
    fn units() -> Vec<f32> {
        (0..3 * PLANE).map(|i| (i * 29 % 72) as f32 / 71.0).collect()
    }

    /// `[3, 3, H, W]`, all channels the same but for ImageNet's normalisation.
    fn normalised(units: &[f32]) -> Vec<f32> {
        let (mean, std) = firmware_config::Normalize::Imagenet.mean_std();
        let planes = units.chunks_exact(PLANE);
        planes
            .flat_map(|plane| (0..3).flat_map(move |c| plane.iter().map(move |x| (x - mean[c]) / std[c])))
            .collect()
    }

    /// Channel `c` between 0 and 1 again.
    fn channel(values: &[f32], c: usize) -> Vec<f32> {
        let (mean, std) = firmware_config::Normalize::Imagenet.mean_std();
        let slices = values.chunks_exact(3 * PLANE);
        slices.flat_map(|slice| slice[c * PLANE..][..PLANE].iter().map(|x| x * std[c] + mean[c])).collect()
    }

    fn changed(intensity: &str, drawn: Drawn) -> Vec<f32> {
        let mut values = normalised(&units());
        recolour(&mut values, SIZE, &scale(intensity), &drawn);
        values
    }

    #[track_caller]
    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() < 2e-6, "{i}: {a} {b}");
        }
    }

    /// All three channels are `expected` between 0 and 1, with one window as with three.
    #[track_caller]
    fn is(drawn: Drawn, expected: impl Fn(f32) -> f32) {
        let expected: Vec<f32> = units().iter().map(|&x| expected(x)).collect();
        for intensity in [ONE, THREE, "{ kind = 'percentile', low = 1, high = 99 }"] {
            let found = changed(intensity, drawn);
            (0..3).for_each(|c| close(&channel(&found, c), &expected));
        }
    }

    #[test]
    fn pointwise_changes_follow_their_formulas_on_the_scale_of_0_to_1() {
        is(Drawn { gamma: Some(1.5), ..Drawn::default() }, |x| x.powf(1.5));
        is(Drawn { gamma_inverted: Some(0.7), ..Drawn::default() }, |x| 1.0 - (1.0 - x).powf(0.7));
        is(Drawn { brightness: Some(1.25), ..Drawn::default() }, |x| (1.25 * x).min(1.0));
        is(Drawn { brightness: Some(0.75), ..Drawn::default() }, |x| 0.75 * x);
        // The units are 0/71 to 71/71, each once: their mean is 1/2.
        is(Drawn { contrast: Some(0.75), ..Drawn::default() }, |x| 0.5 + 0.75 * (x - 0.5));
        is(Drawn { contrast: Some(1.25), ..Drawn::default() }, |x| (0.5 + 1.25 * (x - 0.5)).clamp(0.0, 1.0));
        is(Drawn { blur: Some(0.0), low_resolution: Some(1.0), ..Drawn::default() }, |x| x);
    }

    #[test]
    fn a_z_score_is_changed_between_its_own_ends() {
        // Values of a volume after (x - mean) / std have no fixed ends; here they run from -2 to 3.
        let units = units();
        let plain = Recipe { normalize: firmware_config::Normalize::None, ..recipe(Z) };
        let mut values: Vec<f32> =
            units.chunks_exact(PLANE).flat_map(|plane| [plane; 3].concat()).map(|x| 5.0 * x - 2.0).collect();
        recolour(&mut values, SIZE, &Scale::of(&plain), &Drawn { gamma: Some(2.0), ..Drawn::default() });
        for (slice, plane) in values.chunks_exact(3 * PLANE).zip(units.chunks_exact(PLANE)) {
            for (i, x) in slice.iter().enumerate() {
                let expected = 5.0 * plane[i % PLANE].powi(2) - 2.0;
                assert!((x - expected).abs() < 1e-5, "{i}: {x} {expected}");
            }
        }
        // With ImageNet's figures on top, the channels still show the same.
        let found = changed(Z, Drawn { brightness: Some(0.8), ..Drawn::default() });
        close(&channel(&found, 2), &channel(&found, 0));
        // A constant volume stays what it is.
        let mut flat = vec![0.7; 9 * PLANE];
        recolour(&mut flat, SIZE, &Scale::of(&plain), &Drawn { contrast: Some(2.0), ..Drawn::default() });
        close(&flat, &[0.7; 9 * PLANE]);
    }

    #[test]
    fn noise_is_gaussian_and_the_same_in_every_channel() {
        let [height, width] = [64, 64];
        let mut values = vec![0.0; 3 * 3 * height * width];
        let scale = Scale { mean: [0.0; 3], std: [1.0; 3], ..scale(THREE) };
        values.fill(0.5);
        recolour(&mut values, [height, width], &scale, &Drawn { noise: Some((0.02, 7)), ..Drawn::default() });
        let planes: Vec<&[f32]> = values.chunks_exact(height * width).collect();
        assert!(planes[0] == planes[1] && planes[3] == planes[5] && planes[0] != planes[3]);
        let noise: Vec<f64> =
            [0, 3, 6].iter().flat_map(|&s| planes[s]).map(|&x| f64::from(x) - 0.5).collect();
        let n = noise.len() as f64;
        let mean = noise.iter().sum::<f64>() / n;
        let sigma = (noise.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        // Four standard errors each.
        assert!(mean.abs() < 4.0 * 0.02 / n.sqrt(), "{mean}");
        assert!((sigma - 0.02).abs() < 4.0 * 0.02 / (2.0 * n).sqrt(), "{sigma}");
    }

    #[test]
    fn low_resolution_is_libtorchs_shrinking_and_enlarging() {
        let found = channel(&changed(ONE, Drawn { low_resolution: Some(0.5), ..Drawn::default() }), 1);
        let input = Tensor::from_slice(&units()).view([3, 1, 4, 6]);
        let small = input.internal_upsample_bilinear2d_aa([2, 3], false, None, None);
        let expected = small.upsample_bilinear2d([4, 6], false, None, None).flatten(0, -1);
        close(&found, &Vec::<f32>::try_from(expected).unwrap());
    }
}
