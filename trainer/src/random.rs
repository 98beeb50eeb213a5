//! Random numbers that depend on nothing but (seed, purpose, epoch, sample).
//!
//! Every draw of a fit comes from a generator made here on the spot, never from a running state. So a resumed fit
//! draws what an uninterrupted one would have drawn, and checkpoints need to keep no generator.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What a generator is for; different purposes draw independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Initial values; `sample` is the parameter's position among all parameters.
    Init = 1,
    /// The order of the training volumes in an epoch.
    Order = 2,
    /// Augmentation of one training volume in one epoch; `sample` is its index, with its repeats in the upper half.
    Augment = 3,
    /// Golden cases; `sample` is the case.
    Golden = 4,
    /// Which fold of a cross-validation a row belongs to.
    Folds = 16,
    /// A resample of the cases; `sample` is its number.
    Bootstrap = 17,
}

/// The generator of one purpose in one epoch for one sample.
pub fn generator(seed: u64, purpose: Purpose, epoch: u64, sample: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (part, value) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, sample]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Uniform in `[0, 1)`, 24 bits.
pub fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / 16_777_216.0
}

/// Uniform in `[0, 1)`, 53 bits.
pub fn unit_f64(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / 9_007_199_254_740_992.0
}

/// The numbers `0..n` in random order.
pub fn permutation(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut keyed: Vec<(u64, usize)> = (0..n).map(|i| (rng.next_u64(), i)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, i)| i).collect()
}

/// How the initial values of a parameter are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Draw {
    /// The same everywhere.
    Fill(f32),
    /// Uniform between minus and plus this.
    Uniform(f64),
    /// Normal around zero with this standard deviation.
    Normal(f64),
    /// The same, drawn again beyond two standard deviations.
    NormalWithinTwo(f64),
}

impl Draw {
    /// So many values.
    pub(crate) fn values(self, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let normal = |rng: &mut ChaCha8Rng| -> f32 { StandardNormal.sample(rng) };
        let mut value = || match self {
            Self::Fill(value) => value,
            Self::Uniform(bound) => (2.0 * unit(rng) - 1.0) * bound as f32,
            Self::Normal(deviation) => normal(rng) * deviation as f32,
            Self::NormalWithinTwo(deviation) => loop {
                let x = normal(rng);
                if x.abs() <= 2.0 {
                    break x * deviation as f32;
                }
            },
        };
        (0..count).map(|_| value()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_each_index_once_and_depends_on_epoch_and_seed() {
        let order = |seed, epoch| permutation(50, &mut generator(seed, Purpose::Order, epoch, 0));
        let mut sorted = order(7, 1);
        assert_eq!(sorted, order(7, 1));
        assert_ne!(sorted, order(7, 2));
        assert_ne!(sorted, order(8, 1));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn purposes_draw_independently() {
        let first = |purpose| generator(1, purpose, 0, 0).next_u64();
        assert_ne!(first(Purpose::Order), first(Purpose::Augment));
    }

    #[test]
    fn unit_values_fill_their_range_evenly() {
        let mut rng = generator(3, Purpose::Init, 0, 0);
        let values: Vec<f32> = (0..10_000).map(|_| unit(&mut rng)).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
