//! Separable bilinear resampling with antialiasing, as weights computed once.

/// Weights that bring a line of samples to another length: a triangle filter, pixel-centre aligned, widened
/// by the scale when shrinking (so that every input sample counts), cut and renormalised at the borders.
///
/// The same definition as Pillow's `Image.BILINEAR` and PyTorch's `interpolate(mode = "bilinear", antialias = True)`.
#[derive(Debug)]
pub(super) struct Filter {
    input: usize,
    /// First input sample of each output sample, and where its weights end in `weights`.
    taps: Vec<(usize, usize)>,
    weights: Vec<f32>,
}

impl Filter {
    /// Weights from `input` to `output` samples, both at least 1.
    pub fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let support = scale.max(1.0);
        let mut taps = Vec::with_capacity(output);
        let mut weights = Vec::new();
        for o in 0..output {
            let centre = (o as f64 + 0.5) * scale;
            let first = (centre - support - 0.5).ceil().max(0.0) as usize;
            let last = ((centre + support - 0.5).floor().max(0.0) as usize).min(input - 1);
            let weight = |i: usize| (1.0 - (i as f64 + 0.5 - centre).abs() / support).max(0.0);
            let start = (first..=last).find(|&i| weight(i) > 0.0).unwrap_or(last);
            let end = (start..=last).rev().find(|&i| weight(i) > 0.0).unwrap_or(start);
            let total: f64 = (start..=end).map(weight).sum();
            weights.extend((start..=end).map(|i| (weight(i) / total) as f32));
            taps.push((start, weights.len()));
        }
        Self { input, taps, weights }
    }

    /// Number of output samples.
    pub fn output(&self) -> usize {
        self.taps.len()
    }

    /// Resamples one line.
    pub fn apply(&self, input: &[f32], output: &mut [f32]) {
        let mut from = 0;
        for (out, &(start, to)) in output.iter_mut().zip(&self.taps) {
            let weights = &self.weights[from..to];
            let samples = &input[start..start + weights.len()];
            *out = samples.iter().zip(weights).fold(0.0, |sum, (x, w)| sum + x * w);
            from = to;
        }
    }

    /// For each input sample, the output samples it counts in and its weight there.
    pub fn transposed(&self) -> Vec<Vec<(usize, f32)>> {
        let mut targets = vec![Vec::new(); self.input];
        let mut from = 0;
        for (out, &(start, to)) in self.taps.iter().enumerate() {
            for (i, &weight) in self.weights[from..to].iter().enumerate() {
                targets[start + i].push((out, weight));
            }
            from = to;
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &[f32], output: usize) -> Vec<f32> {
        let mut out = vec![0.0; output];
        Filter::new(input.len(), output).apply(input, &mut out);
        out
    }

    #[test]
    fn equals_pillow() {
        // Image.resize((n, 1), Image.BILINEAR) of Pillow, mode "F".
        let x = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0];
        let close = |a: Vec<f32>, b: &[f32]| {
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} is not {b:?}");
        };
        close(run(&x, 3), &[1.5, 0.647_058_84, 3.5]);
        close(run(&x, 10), &[3.0, 0.8, 0.25, 3.75, 2.05, -1.1, -4.3, 5.5, 5.85, 2.0]);
    }

    #[test]
    fn the_same_length_is_the_identity_and_flat_stays_flat() {
        let x = [0.25, -3.5, 1e6, 7.0];
        assert_eq!(run(&x, 4), x);
        for n in [1, 3, 5, 17] {
            assert!(run(&[2.0; 9], n).iter().all(|v| (v - 2.0).abs() < 1e-6));
        }
        assert_eq!(run(&[5.0], 3), [5.0; 3]);
    }

    #[test]
    fn the_transpose_says_the_same() {
        let filter = Filter::new(11, 4);
        let x: Vec<f32> = (0..11).map(|i| ((i * 7) % 5) as f32).collect();
        let mut sums = [0.0; 4];
        for (i, targets) in filter.transposed().iter().enumerate() {
            assert!(!targets.is_empty(), "every input sample counts when shrinking");
            for &(o, w) in targets {
                sums[o] += w * x[i];
            }
        }
        assert_eq!(sums.to_vec(), run(&x, 4));
    }
}
