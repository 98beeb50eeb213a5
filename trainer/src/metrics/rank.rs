//! Area under the ROC curve, from ranks.

/// Area under the ROC curve: the chance that a random positive scores above a random negative, ties
/// counting one half (the Mann–Whitney statistic, from mid-ranks).
///
/// `None` where the slices differ in length, a score is not a number, or only one class is present.
///
/// ```
/// let labels = [false, true, false, true];
/// assert_eq!(trainer::metrics::auroc(&[0.1, 0.4, 0.35, 0.8], &labels), Some(1.0));
/// assert_eq!(trainer::metrics::auroc(&[0.5, 0.5, 0.5, 0.5], &labels), Some(0.5));
/// ```
pub fn auroc(scores: &[f64], labels: &[bool]) -> Option<f64> {
    if scores.len() != labels.len() || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let positives = labels.iter().filter(|&&l| l).count();
    let negatives = labels.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let ranks = mid_ranks(scores);
    let sum: f64 = ranks.iter().zip(labels).filter(|&(_, &l)| l).map(|(r, _)| r).sum();
    let (m, n) = (positives as f64, negatives as f64);
    Some((sum - m * (m + 1.0) / 2.0) / (m * n))
}

/// Ranks from 1; equal values share the mean of the ranks that they cover.
pub(super) fn mid_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        // `==` rather than `total_cmp`, so that -0.0 ties with 0.0; the two are neighbours in the order.
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let rank = (start + 1 + end) as f64 / 2.0;
        for &i in &order[start..end] {
            ranks[i] = rank;
        }
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn by_pairs(scores: &[f64], labels: &[bool]) -> f64 {
        let (mut won, mut pairs) = (0.0, 0.0);
        for (p, _) in scores.iter().zip(labels).filter(|&(_, &l)| l) {
            for (n, _) in scores.iter().zip(labels).filter(|&(_, &l)| !l) {
                pairs += 1.0;
                won += if p > n {
                    1.0
                } else if p < n {
                    0.0
                } else {
                    0.5
                };
            }
        }
        won / pairs
    }

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(mid_ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(mid_ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    #[test]
    fn auroc_is_the_share_of_pairs_won() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [2, 3, 10, 57] {
            for _ in 0..20 {
                // Few distinct values, so that there are many ties.
                let scores: Vec<f64> = (0..n).map(|_| f64::from(rng.random_range(0..7_u8))).collect();
                let mut labels: Vec<bool> = (0..n).map(|_| rng.random()).collect();
                (labels[0], labels[1]) = (true, false);
                let found = auroc(&scores, &labels).unwrap();
                assert!((found - by_pairs(&scores, &labels)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn undefined_is_none() {
        assert_eq!(auroc(&[], &[]), None);
        assert_eq!(auroc(&[0.1, 0.2], &[true, true]), None);
        assert_eq!(auroc(&[0.1, f64::NAN], &[true, false]), None);
        assert_eq!(auroc(&[0.1], &[true, false]), None);
    }
}
