//! Values of a whole volume, exact, in bounded memory, and the same whatever the stored order.

use super::view::Lattice;

/// Least and greatest of finite values; `None` when there are none.
pub(super) fn extremes(values: impl Iterator<Item = f32>) -> Option<[f32; 2]> {
    values.fold(None, |found: Option<[f32; 2]>, x| {
        Some(found.map_or([x, x], |[low, high]| [low.min(x), high.max(x)]))
    })
}

/// Mean and population standard deviation in f64, summed in the order given.
pub(super) fn mean_std(values: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let (count, sum) = values.clone().fold((0_u64, 0.0), |(n, sum), x| (n + 1, sum + f64::from(x)));
    let mean = sum / count as f64;
    let squares = values.fold(0.0, |sum, x| {
        let d = f64::from(x) - mean;
        sum + d * d
    });
    (mean, (squares / count as f64).sqrt())
}

/// Two percentiles (0 to 100) of finite values, linear between order statistics as in NumPy's default.
/// `None` when there are no values.
pub(super) fn percentiles(values: impl Iterator<Item = f32> + Clone, percent: [f64; 2]) -> Option<[f64; 2]> {
    let count = values.clone().count();
    let last = count.checked_sub(1)?;
    let at = percent.map(|p| p / 100.0 * last as f64);
    let below = at.map(|x| (x.floor() as usize).min(last));
    let ranks = [below[0], (below[0] + 1).min(last), below[1], (below[1] + 1).min(last)];
    let found = order_statistics(values, ranks).map(f64::from);
    let between = |i: usize| {
        let fraction = at[i] - below[i] as f64;
        found[2 * i] + fraction * (found[2 * i + 1] - found[2 * i])
    };
    Some([between(0), between(1)])
}

/// The values of four ranks, by two counting passes over halves of an order-preserving 32-bit key: exact,
/// with a memory of five histograms instead of a sorted copy.
fn order_statistics(values: impl Iterator<Item = f32> + Clone, ranks: [usize; 4]) -> [f32; 4] {
    let mut high = vec![0_usize; 1 << 16];
    values.clone().for_each(|x| high[(key(x) >> 16) as usize] += 1);
    let halves = ranks.map(|rank| locate(&high, rank));

    let mut buckets = halves.map(|(bucket, _)| bucket).to_vec();
    buckets.dedup();
    let mut low = vec![vec![0_usize; 1 << 16]; buckets.len()];
    for k in values.map(key) {
        if let Some(b) = buckets.iter().position(|&b| b == (k >> 16) as usize) {
            low[b][(k & 0xffff) as usize] += 1;
        }
    }
    halves.map(|(bucket, rest)| {
        let b = buckets.iter().position(|&b| b == bucket).unwrap_or(0);
        value(((bucket as u32) << 16) | locate(&low[b], rest).0 as u32)
    })
}

/// The bin that holds rank `rank`, and the rank within that bin.
fn locate(histogram: &[usize], mut rank: usize) -> (usize, usize) {
    for (bin, &n) in histogram.iter().enumerate() {
        if rank < n {
            return (bin, rank);
        }
        rank -= n;
    }
    (histogram.len() - 1, 0)
}

/// A key that orders as the (finite) value does, after IEEE 754's total order.
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Most sampled positions along an axis.
const SAMPLES: usize = 128;

/// Sampled indices along an axis, at most [`SAMPLES`].
pub(super) fn sampled(length: usize) -> impl Iterator<Item = usize> + Clone {
    (0..length).step_by(step(length))
}

/// Distance between sampled indices.
pub(super) fn step(length: usize) -> usize {
    length.div_ceil(SAMPLES)
}

/// The value above which a voxel is not background: a tenth of the way from the 2nd to the 98th percentile
/// of a regular subsample, the "robust range" rule of Smith's brain extraction tool (Hum. Brain Mapp. 17,
/// 2002). For MR that is just above the noise, for CT about -900 HU, just above air; unlike Otsu's
/// threshold it does not climb into the tissue when some of it is very bright.
pub(super) fn background(lattice: &Lattice) -> f32 {
    let [nr, na, ns] = lattice.dims;
    let mut samples: Vec<f32> = Vec::new();
    for s in sampled(ns) {
        for a in sampled(na) {
            samples.extend(sampled(nr).map(|r| lattice.value([r, a, s])));
        }
    }
    let mut at = |percent: usize| {
        let rank = (samples.len() - 1) * percent / 100;
        *samples.select_nth_unstable_by(rank, f32::total_cmp).1
    };
    let [low, high] = [at(2), at(98)];
    low + 0.1 * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let x: Vec<f32> = (0..1001_i32).map(|i| (i * 619 % 1001 - 500) as f32 * 0.37).collect();
        let mut sorted = x.clone();
        sorted.sort_by(f32::total_cmp);
        // 1001 values: percentile p stands at rank 10 p.
        let found = percentiles(x.iter().copied(), [0.5, 99.9]).unwrap();
        let expected = [sorted[5], sorted[999]].map(f64::from);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {expected:?}");
        let [low, high] = percentiles(x.iter().copied(), [0.05, 100.0]).unwrap();
        let half = f64::midpoint(f64::from(sorted[0]), f64::from(sorted[1]));
        assert!((low - half).abs() < 1e-9);
        assert!((high - f64::from(sorted[1000])).abs() < 1e-9);
        assert!(percentiles(std::iter::empty(), [1.0, 99.0]).is_none());
        assert_eq!(percentiles([7.0_f32].into_iter(), [1.0, 99.0]), Some([7.0, 7.0]));
    }

    #[test]
    fn mean_and_std_survive_a_large_offset() {
        let x = [1e6_f32, 1e6 + 1.0, 1e6 + 2.0, 1e6 + 3.0];
        let (mean, std) = mean_std(x.iter().copied());
        assert!((mean - 1_000_001.5).abs() < 1e-9 && (std - 1.25_f64.sqrt()).abs() < 1e-12);
    }
}
