//! Linear filters along the rows and columns of a plane.

/// For each value out, the first value in that it counts and the weights of it and the next ones.
pub(super) struct Filter {
    from: Vec<(usize, Vec<f32>)>,
}

impl Filter {
    /// From `length` to `to` pixels, their outer edges aligned: linear interpolation, over the whole of what falls into one
    /// pixel when shrinking.
    pub fn resize(length: usize, to: usize) -> Self {
        let step = length as f64 / to as f64;
        let reach = step.max(1.0);
        let of = |out: usize| {
            let centre = (out as f64 + 0.5) * step;
            let first = (centre - reach).floor().max(0.0) as usize;
            let last = ((centre + reach).ceil() as usize).min(length);
            let weight = |i: usize| (1.0 - ((i as f64 + 0.5 - centre) / reach).abs()).max(0.0);
            let sum: f64 = (first..last).map(weight).sum();
            (first, (first..last).map(|i| (weight(i) / sum) as f32).collect())
        };
        Self { from: (0..to).map(of).collect() }
    }

    /// A Gaussian of standard deviation `sigma` pixels, cut at three of them; the plane is mirrored at its edges, which keeps
    /// its mean.
    pub fn gaussian(length: usize, sigma: f64) -> Self {
        let reach = (3.0 * sigma).ceil() as isize;
        let weight = |d: isize| (-0.5 * (d as f64 / sigma).powi(2)).exp();
        let sum: f64 = (-reach..=reach).map(weight).sum();
        let of = |out: usize| {
            let [first, last] = [-reach, reach].map(|d| out as isize + d);
            let [first, last] = [first.max(0), last.min(length as isize - 1)].map(|i| i as usize);
            // A reach beyond both edges mirrors back over all of the line.
            let [first, last] = if reach as usize >= length { [0, length - 1] } else { [first, last] };
            let mut weights = vec![0.0; last - first + 1];
            for d in -reach..=reach {
                weights[mirrored(out as isize + d, length) - first] += weight(d) / sum;
            }
            (first, weights.into_iter().map(|w| w as f32).collect())
        };
        if sigma > 0.0 { Self { from: (0..length).map(of).collect() } } else { Self::resize(length, length) }
    }

    /// Along the rows of a plane of `width` columns.
    pub fn along_rows(&self, plane: &[f32], width: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(plane.len() / width * self.from.len());
        for row in plane.chunks_exact(width) {
            out.extend(self.from.iter().map(|(first, weights)| {
                weights.iter().zip(&row[*first..]).map(|(weight, x)| weight * x).sum::<f32>()
            }));
        }
        out
    }

    /// Down the columns of a plane of `width` columns.
    pub fn down_columns(&self, plane: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.from.len() * width];
        for (out, (first, weights)) in out.chunks_exact_mut(width).zip(&self.from) {
            for (weight, row) in weights.iter().zip(plane[first * width..].chunks_exact(width)) {
                out.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        out
    }
}

/// The index within `0..length` that a line mirrored at its edges, the last pixel twice, has at `i`.
fn mirrored(i: isize, length: usize) -> usize {
    let i = i.rem_euclid(2 * length as isize) as usize;
    if i < length { i } else { 2 * length - 1 - i }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn resizing_is_libtorchs_antialiased_interpolation() {
        let [h, w] = [9, 12];
        let plane: Vec<f32> = (0..h * w).map(|i| (i * 31 % 53) as f32).collect();
        for [to_h, to_w] in [[5, 7], [9, 12], [4, 6], [13, 25], [1, 1]] {
            let shrunk = Filter::resize(w, to_w).along_rows(&plane, w);
            let found = Filter::resize(h, to_h).down_columns(&shrunk, to_w);
            let input = Tensor::from_slice(&plane).view([1, 1, h as i64, w as i64]);
            let expected =
                input.internal_upsample_bilinear2d_aa([to_h as i64, to_w as i64], false, None, None);
            let expected = Vec::<f32>::try_from(expected.flatten(0, -1)).unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-3, "{to_h} {to_w}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_blurred_point_is_the_gaussian() {
        let mut plane = vec![0.0; 11 * 11];
        plane[5 * 11 + 5] = 1.0;
        let blur = Filter::gaussian(11, 0.8);
        let found = blur.down_columns(&blur.along_rows(&plane, 11), 11);
        // exp(-d² / 2σ²), σ = 0.8, over its sum 2.005308 out to three pixels.
        let line = [0.498_676, 0.228_311, 0.021_910, 0.000_441];
        for (y, x) in (0..11usize).flat_map(|y| (0..11usize).map(move |x| (y, x))) {
            let of = |i: usize| line.get(i.abs_diff(5)).copied().unwrap_or(0.0);
            assert!((found[y * 11 + x] - of(y) * of(x)).abs() < 1e-5, "{y} {x}");
        }
    }

    #[test]
    fn a_blur_keeps_the_mean_also_at_the_edges() {
        for (h, w, sigma) in [(6, 8, 0.5), (6, 8, 1.0), (2, 3, 4.0)] {
            let plane: Vec<f32> = (0..h * w).map(|i| if i % 5 == 0 { 100.0 } else { i as f32 }).collect();
            let rows = Filter::gaussian(w, sigma).along_rows(&plane, w);
            let found = Filter::gaussian(h, sigma).down_columns(&rows, w);
            let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
            assert!((mean(&found) - mean(&plane)).abs() < 1e-3, "{} {}", mean(&found), mean(&plane));
            assert!(found != plane);
        }
        let plane = [3.0, 1.0, 2.0];
        assert_eq!(Filter::gaussian(3, 0.0).along_rows(&plane, 3), plane);
    }
}
