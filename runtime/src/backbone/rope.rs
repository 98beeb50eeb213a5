//! Rotary positions of patches, as DINOv3 has them.

use super::Tensor;

/// Cosines and sines by which the queries and keys of patches are rotated, each `[gh * gw, e]` for heads `e` wide, rows of the
/// grid first: `x cos + rotate_half(x) sin`, where `rotate_half` puts the second half, negated, before the first.
///
/// Computed in f64 with `libm`, so that every machine gets the same bits: the platform's own functions differ in the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rope {
    /// Patch centres `(i + 0.5) / n` along each axis are mapped to -1..1; the angles are `2 π c f` with frequencies
    /// `f_k = theta^(-4 k / e)`, `k < e / 4`, those of y before those of x, and all of them twice.
    pub(super) fn new([gh, gw]: [usize; 2], width: usize, theta: f32) -> Self {
        let quarter = width / 4;
        let centre = |i: usize, n: usize| 2.0 * ((i as f64 + 0.5) / n as f64) - 1.0;
        let frequencies: Vec<f64> =
            (0..quarter).map(|k| libm::pow(f64::from(theta), -4.0 * k as f64 / width as f64)).collect();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for y in 0..gh {
            for x in 0..gw {
                let along = |c: f64| frequencies.iter().map(move |f| std::f64::consts::TAU * c * f);
                let angles: Vec<f64> = along(centre(y, gh)).chain(along(centre(x, gw))).collect();
                for angle in angles.iter().chain(&angles) {
                    cos.push(libm::cos(*angle) as f32);
                    sin.push(libm::sin(*angle) as f32);
                }
            }
        }
        let shape = [gh * gw, 4 * quarter];
        Self { cos: Tensor::new(shape, cos), sin: Tensor::new(shape, sin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_not_rotated_and_the_edges_are_opposite() {
        let rope = Rope::new([3, 3], 8, 100.0);
        let row = |t: &Tensor, n: usize| t.data[8 * n..][..8].to_vec();
        assert_eq!((row(&rope.cos, 4), row(&rope.sin, 4)), (vec![1.0; 8], vec![0.0; 8]));
        // The first and the last patch: centres of -2/3 and 2/3 along both axes.
        assert_eq!(row(&rope.cos, 0), row(&rope.cos, 8));
        let opposite: Vec<f32> = row(&rope.sin, 8).iter().map(|x| -x).collect();
        assert_eq!(row(&rope.sin, 0), opposite);
        assert!(opposite.iter().all(|x| x.abs() > 0.1));
        let angle = std::f64::consts::TAU * 2.0 / 3.0;
        let expected = [angle, angle / 10.0, angle, angle / 10.0].map(|a| a.sin() as f32);
        for (found, expected) in row(&rope.sin, 8).iter().zip(expected.iter().chain(&expected)) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
        // The second patch of the first row: x alone is in the middle.
        assert_eq!(row(&rope.sin, 1)[2..4], [0.0, 0.0]);
        assert_eq!(row(&rope.sin, 1)[..2], row(&rope.sin, 0)[..2]);
    }
}
