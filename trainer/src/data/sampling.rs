use serde::{Deserialize, Serialize};

use super::table::Sample;
use crate::loss::Loss;
use crate::random::{Purpose, generator, permutation, unit_f64};

/// Which volumes an epoch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// Each once, in random order.
    #[default]
    All,
    /// As many, drawn with replacement so that classes come up alike: see [`weights`].
    Balanced,
}

/// One place in an epoch's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The sample's index in its table.
    pub index: usize,
    /// How often the epoch has had it before; its augmentation is drawn anew each time.
    pub repeat: usize,
}

impl Place {
    /// The number under which a generator is made for this place; without repeats, that of the sample.
    pub fn key(self) -> u64 {
        self.index as u64 | (self.repeat as u64) << 32
    }
}

/// The order in which an epoch takes the volumes `indices` of a table; it depends on seed and epoch alone.
pub fn order(
    samples: &[Sample],
    indices: &[usize],
    loss: Loss,
    sampling: Sampling,
    seed: u64,
    epoch: u64,
) -> Vec<Place> {
    let mut rng = generator(seed, Purpose::Order, epoch, 0);
    let drawn = match sampling {
        Sampling::All => permutation(indices.len(), &mut rng),
        Sampling::Balanced => {
            let targets: Vec<&[Option<bool>]> =
                indices.iter().map(|&i| samples[i].targets.as_slice()).collect();
            let mut sum = 0.0;
            let ends: Vec<f64> = weights(&targets, loss)
                .into_iter()
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect();
            let draw = |_| {
                let at = unit_f64(&mut rng) * sum;
                ends.partition_point(|&end| end <= at)
            };
            (0..indices.len()).map(draw).collect()
        }
    };
    let mut times = vec![0; indices.len()];
    let place = |i: usize| {
        times[i] += 1;
        Place { index: indices[i], repeat: times[i] - 1 }
    };
    drawn.into_iter().map(place).collect()
}

/// Weight of each volume in balanced sampling.
///
/// With one label, and with cross-entropy's exclusive ones, the inverse of how many volumes are of its class, so that each class
/// has the same expected share. With several labels at once no weights do so for every label in general: a volume weighs the
/// mean, over its known labels, of `N / (2 n)`, where `n` of the label's `N` known volumes are of its class. A volume
/// without a term in the loss weighs nothing.
fn weights(targets: &[&[Option<bool>]], loss: Loss) -> Vec<f64> {
    let labels = targets.first().map_or(0, |t| t.len());
    let count = |l: usize, value: bool| targets.iter().filter(|t| t[l] == Some(value)).count() as f64;
    let counts: Vec<[f64; 2]> = (0..labels).map(|l| [count(l, false), count(l, true)]).collect();
    let weight = |targets: &[Option<bool>]| {
        let terms = loss.terms(targets);
        if terms == 0 {
            return 0.0;
        }
        let known = targets.iter().zip(&counts).filter_map(|(t, n)| t.map(|t| (t, n)));
        if loss == Loss::Ce {
            return known.filter(|(t, _)| *t).map(|(_, n)| 1.0 / n[1]).sum();
        }
        known.map(|(t, n)| (n[0] + n[1]) / (2.0 * n[usize::from(t)])).sum::<f64>() / terms as f64
    };
    targets.iter().map(|t| weight(t)).collect()
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;
    use crate::data::Split;

    const T: Option<bool> = Some(true);
    const F: Option<bool> = Some(false);

    fn samples(targets: &[&[Option<bool>]]) -> Vec<Sample> {
        let sample = |(i, targets): (usize, &&[Option<bool>])| Sample {
            id: i.to_string(),
            patient: None,
            split: Split::Train,
            images: vec![Some("scan.nii".into())],
            mask: None,
            targets: targets.to_vec(),
            row: i as u64 + 2,
        };
        targets.iter().enumerate().map(sample).collect()
    }

    /// How often each sample comes up in 400 epochs, and the number of all draws.
    fn counts(samples: &[Sample], loss: Loss) -> (Vec<f64>, f64) {
        let indices: Vec<usize> = (0..samples.len()).collect();
        let mut counts = vec![0.0; samples.len()];
        for epoch in 0..400 {
            let order = order(samples, &indices, loss, Sampling::Balanced, 3, epoch);
            assert_eq!(order.len(), samples.len(), "an epoch keeps its length");
            for place in order {
                counts[place.index] += 1.0;
            }
        }
        let all = counts.iter().sum();
        (counts, all)
    }

    #[track_caller]
    fn share(found: f64, all: f64, p: f64) {
        // Four standard deviations of a binomial share.
        assert!(
            (found / all - p).abs() < 4.0 * (p * (1.0 - p) / all).sqrt(),
            "{found} of {all}, expected {p}"
        );
    }

    #[test]
    fn weights_are_the_inverse_frequencies() {
        let one: [&[Option<bool>]; 5] = [&[T], &[F], &[F], &[F], &[None]];
        assert_eq!(weights(&one, Loss::Bce), [2.0, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 0.0]);
        // First label: 1 of 4 is positive; second: 2 of 2 known, so that its class weighs 1/2.
        let two: [&[Option<bool>]; 4] = [&[T, None], &[F, T], &[F, T], &[F, None]];
        let third = 2.0 / 3.0;
        assert_eq!(
            weights(&two, Loss::Bce),
            [2.0, f64::midpoint(third, 0.5), f64::midpoint(third, 0.5), third]
        );
        let exclusive: [&[Option<bool>]; 4] = [&[T, F], &[F, T], &[F, T], &[F, None]];
        assert_eq!(weights(&exclusive, Loss::Ce), [1.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn both_classes_of_a_label_come_up_alike() {
        let targets: Vec<&[Option<bool>]> = (0..21)
            .map(|i| -> &[Option<bool>] {
                match i {
                    0 | 7 => &[T],
                    20 => &[None],
                    _ => &[F],
                }
            })
            .collect();
        let (counts, all) = counts(&samples(&targets), Loss::default());
        share(counts[0] + counts[7], all, 0.5);
        share(counts[0], all, 0.25);
        share(counts[3], all, 0.5 / 18.0);
        assert_eq!(counts[20], 0.0, "nothing is known of it");
    }

    #[test]
    fn all_classes_come_up_alike_with_cross_entropy() {
        let targets: Vec<&[Option<bool>]> = (0..10)
            .map(|i| -> &[Option<bool>] {
                match i {
                    0 => &[T, F, F],
                    1..4 => &[F, T, F],
                    _ => &[F, F, T],
                }
            })
            .collect();
        let (counts, all) = counts(&samples(&targets), Loss::Ce);
        share(counts[0], all, 1.0 / 3.0);
        share(counts[1..4].iter().sum(), all, 1.0 / 3.0);
    }

    #[test]
    fn an_order_follows_from_seed_and_epoch() {
        let targets: [&[Option<bool>]; 4] = [&[T], &[F], &[F], &[F]];
        let (samples, indices) = (samples(&targets), [3, 1, 0, 2]);
        let of = |sampling, seed, epoch| order(&samples, &indices, Loss::Bce, sampling, seed, epoch);
        assert_eq!(of(Sampling::Balanced, 1, 2), of(Sampling::Balanced, 1, 2));
        assert_ne!(of(Sampling::Balanced, 1, 2), of(Sampling::Balanced, 1, 3));
        assert_ne!(of(Sampling::Balanced, 1, 2), of(Sampling::Balanced, 2, 2));
        let mut all: Vec<usize> = of(Sampling::All, 1, 2).iter().map(|place| place.index).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        // A volume that comes again is counted, and augmented under another key.
        let many = (0..50).flat_map(|epoch| of(Sampling::Balanced, 1, epoch));
        let repeated = many.into_iter().find(|place| place.repeat == 1).unwrap();
        assert_eq!(repeated.key(), repeated.index as u64 + (1 << 32));
        assert_eq!(Place { index: 3, repeat: 0 }.key(), 3);
    }
}
