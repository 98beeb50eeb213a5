//! Random numbers that are the same on every machine: ChaCha, and `libm` for what is not plain arithmetic.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::suite::{Range, Split};

/// The generator of one volume; what is drawn for it depends on nothing else.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    pub(super) fn new(seed: u64, split: Split, index: usize) -> Self {
        Self::keyed(seed, split as u64, index)
    }

    fn keyed(seed: u64, stream: u64, index: usize) -> Self {
        let mut key = *b"scanside phantom 1 .............";
        key[8..16].copy_from_slice(&seed.to_le_bytes());
        key[16..24].copy_from_slice(&stream.to_le_bytes());
        key[24..32].copy_from_slice(&(index as u64).to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The generator of what a label has in its `nth` stretch of volumes.
    pub(super) fn of_label(seed: u64, split: Split, label: usize, nth: usize) -> Self {
        // No split has so high a number, so that these streams are no volume's.
        Self::keyed(seed, split as u64 | (label as u64 + 1) << 8, nth)
    }

    /// Uniform in `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[-1, 1)`.
    pub(super) fn signed(&mut self) -> f64 {
        2.0 * self.unit() - 1.0
    }

    /// Uniform in a range.
    pub(super) fn within(&mut self, [low, high]: Range) -> f64 {
        low + (high - low) * self.unit()
    }

    /// One of `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    /// Two independent standard normal values (Box and Muller).
    pub(super) fn normal(&mut self) -> [f64; 2] {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        let (sin, cos) = libm::sincos(std::f64::consts::TAU * self.unit());
        [radius * cos, radius * sin]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_volume_has_its_own_stream() {
        let first = |seed, split, index| Dice::new(seed, split, index).unit().to_bits();
        let all = [
            first(1, Split::Train, 0),
            first(1, Split::Train, 1),
            first(1, Split::Test, 0),
            first(2, Split::Train, 0),
        ];
        assert_eq!(all[0], first(1, Split::Train, 0));
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        let mut dice = Dice::new(3, Split::Val, 0);
        let values: Vec<f64> = (0..20_000).flat_map(|_| dice.normal()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
