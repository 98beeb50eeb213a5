//! Area under the ROC curve with its confidence interval, from ranks.

use serde::{Deserialize, Serialize};

use super::{class_sizes, tie};

/// Standard normal quantile of a two-sided 95 % interval.
pub(super) const Z: f64 = 1.959_963_984_540_054;

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
    let [positives, negatives] = class_sizes(scores, labels)?;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let ranks = mid_ranks(scores);
    let sum: f64 = ranks.iter().zip(labels).filter(|&(_, &l)| l).map(|(r, _)| r).sum();
    let (m, n) = (positives as f64, negatives as f64);
    Some((sum - m * (m + 1.0) / 2.0) / (m * n))
}

/// An area under the ROC curve with its uncertainty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Auroc {
    /// The area.
    pub value: f64,
    /// DeLong's standard error; `None` with fewer than two positives or two negatives.
    pub standard_error: Option<f64>,
    /// 95 % confidence interval, lower and upper bound.
    pub ci: [f64; 2],
    /// Where the interval comes from.
    pub interval: Interval,
}

/// Where a confidence interval comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interval {
    /// DeLong's variance, on the logit scale.
    DelongLogit,
    /// Newcombe's score interval, where DeLong's variance is zero or undefined.
    Newcombe,
}

/// [`auroc`] with a 95 % confidence interval.
///
/// The variance is DeLong's (DeLong et al., Biometrics 1988; by mid-ranks as in Sun and Xu, IEEE SPL
/// 2014). The interval is symmetric on the logit scale, so that it stays inside 0..1. Where that
/// variance is zero (an area of exactly 0 or 1) or undefined (fewer than two of a class), an interval of no
/// width would claim certainty: there it is Newcombe's method 5 (Statistics in Medicine 2006), the
/// score-type inversion of Hanley and McNeil's variance, which depends on the class sizes alone.
pub fn auroc_with_ci(scores: &[f64], labels: &[bool]) -> Option<Auroc> {
    let value = auroc(scores, labels)?;
    let [positives, negatives] = class_sizes(scores, labels)?;
    let standard_error =
        (positives >= 2 && negatives >= 2).then(|| delong_variance(scores, labels).max(0.0).sqrt());
    let spread = value * (1.0 - value);
    let (ci, interval) = match standard_error {
        Some(se) if se > 0.0 && spread > 0.0 => {
            let centre = (value / (1.0 - value)).ln();
            let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
            let half = Z * se / spread;
            ([sigmoid(centre - half), sigmoid(centre + half)], Interval::DelongLogit)
        }
        _ => (newcombe(value, positives as f64, negatives as f64), Interval::Newcombe),
    };
    Some(Auroc { value, standard_error, ci, interval })
}

/// DeLong's variance of the area; both classes hold at least two.
fn delong_variance(scores: &[f64], labels: &[bool]) -> f64 {
    let of_class = |class: bool| {
        let placements = placements(scores, labels, class);
        variance(&placements) / placements.len() as f64
    };
    of_class(true) + of_class(false)
}

/// DeLong's placements of the cases of `class`: the share of the other class below each, ties counting one half.
pub(super) fn placements(scores: &[f64], labels: &[bool], class: bool) -> Vec<f64> {
    let all = mid_ranks(scores);
    let own: Vec<f64> = scores.iter().zip(labels).filter(|&(_, &l)| l == class).map(|(&s, _)| s).collect();
    let others = (labels.len() - own.len()) as f64;
    let of_class = all.iter().zip(labels).filter(|&(_, &l)| l == class).map(|(r, _)| r);
    // A score's rank among all, less its rank within its own class, counts the other class below it.
    of_class.zip(mid_ranks(&own)).map(|(rank, inner)| (rank - inner) / others).collect()
}

/// Sample variance; at least two values.
pub(super) fn variance(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)
}

/// Newcombe's method 5: the areas `t` with `|value - t| <= Z sqrt(V(t))`.
fn newcombe(value: f64, positives: f64, negatives: f64) -> [f64; 2] {
    let n = f64::midpoint(positives, negatives) - 1.0;
    let excess = |t: f64| {
        let variance =
            t * (1.0 - t) / (positives * negatives) * (1.0 + n * (1.0 - t) / (2.0 - t) + n * t / (1.0 + t));
        (value - t).abs() - Z * variance.sqrt()
    };
    // The bound lies between the estimate, where the excess is not positive, and the end of the scale.
    let bound = |end: f64| {
        let (mut inside, mut outside) = (value, end);
        for _ in 0..60 {
            let middle = f64::midpoint(inside, outside);
            if excess(middle) <= 0.0 { inside = middle } else { outside = middle }
        }
        inside
    };
    [bound(0.0), bound(1.0)]
}

/// Ranks from 1; equal values share the mean of the ranks that they cover.
fn mid_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    for tied in order.chunk_by(|&a, &b| tie(values[a], values[b])) {
        for &i in tied {
            ranks[i] = before + f64::midpoint(1.0, tied.len() as f64);
        }
        before += tied.len() as f64;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

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

    /// DeLong's definition, pair by pair: the structural components' variances over the class sizes.
    fn delong_by_pairs(scores: &[f64], labels: &[bool]) -> f64 {
        let of = |class: bool| -> Vec<f64> {
            scores.iter().zip(labels).filter(|&(_, &l)| l == class).map(|(&s, _)| s).collect()
        };
        let (pos, neg) = (of(true), of(false));
        let psi = |p: f64, n: f64| by_pairs(&[p, n], &[true, false]);
        let v10: Vec<f64> =
            pos.iter().map(|&p| neg.iter().map(|&n| psi(p, n)).sum::<f64>() / neg.len() as f64).collect();
        let v01: Vec<f64> =
            neg.iter().map(|&n| pos.iter().map(|&p| psi(p, n)).sum::<f64>() / pos.len() as f64).collect();
        variance(&v10) / pos.len() as f64 + variance(&v01) / neg.len() as f64
    }

    /// Few distinct values, so that there are many ties; at least two of each class.
    fn random_case(rng: &mut ChaCha8Rng, n: usize) -> (Vec<f64>, Vec<bool>) {
        let scores = (0..n).map(|_| f64::from(rng.random_range(0..7_u8))).collect();
        let labels = (0..n).map(|i| if i < 4 { i % 2 == 0 } else { rng.random() }).collect();
        (scores, labels)
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "ranks are exact halves")]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(mid_ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(mid_ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    #[test]
    fn auroc_and_delong_equal_their_definitions_over_pairs() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [4, 10, 57] {
            for _ in 0..20 {
                let (scores, labels) = random_case(&mut rng, n);
                assert!((auroc(&scores, &labels).unwrap() - by_pairs(&scores, &labels)).abs() < 1e-12);
                let variance = delong_variance(&scores, &labels);
                assert!((variance - delong_by_pairs(&scores, &labels)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_case_worked_by_hand() {
        // Positives 1, 3, 4 and negatives 0, 2: won 1, 2, 2 of 2, so the area is 5/6.
        // Placements .5, 1, 1 (variance 1/12) and 1, 2/3 (variance 1/18): 1/36 + 1/36 = 1/18.
        let found = auroc_with_ci(&[1.0, 3.0, 4.0, 0.0, 2.0], &[true, true, true, false, false]).unwrap();
        assert!((found.value - 5.0 / 6.0).abs() < 1e-12);
        assert!((found.standard_error.unwrap() - (1.0_f64 / 18.0).sqrt()).abs() < 1e-12);
        assert_eq!(found.interval, Interval::DelongLogit);
        // ln 5 ± 1.959964 · 0.2357023 / (5/36)
        assert!((found.ci[0] - 0.152_293).abs() < 1e-5, "{:?}", found.ci);
        assert!((found.ci[1] - 0.992_865).abs() < 1e-5, "{:?}", found.ci);
    }

    #[test]
    fn a_perfect_area_still_has_an_interval() {
        let scores: Vec<f64> = (0..80).map(f64::from).collect();
        let labels: Vec<bool> = (0..80).map(|i| i >= 40).collect();
        let found = auroc_with_ci(&scores, &labels).unwrap();
        assert!((found.value - 1.0).abs() < 1e-12 && (found.ci[1] - 1.0).abs() < 1e-12);
        assert_eq!(found.interval, Interval::Newcombe);
        assert!((0.9..0.97).contains(&found.ci[0]), "{:?}", found.ci);
        // The bound solves its own equation; fewer cases give a wider interval.
        let t = found.ci[0];
        let v = t * (1.0 - t) / 1600.0 * (1.0 + 39.0 * (1.0 - t) / (2.0 - t) + 39.0 * t / (1.0 + t));
        assert!((1.0 - t - Z * v.sqrt()).abs() < 1e-9);
        assert!(auroc_with_ci(&scores[36..44], &labels[36..44]).unwrap().ci[0] < t);
        // One positive alone has no variance, but an interval.
        let single = auroc_with_ci(&[0.2, 0.9, 0.5], &[false, false, true]).unwrap();
        assert!(single.standard_error.is_none() && single.ci[0] < 0.5 && single.ci[1] > 0.5);
    }

    #[test]
    fn undefined_is_none() {
        assert_eq!(auroc(&[], &[]), None);
        assert_eq!(auroc(&[0.1, 0.2], &[true, true]), None);
        assert_eq!(auroc(&[0.1, f64::NAN], &[true, false]), None);
        assert_eq!(auroc(&[0.1], &[true, false]), None);
    }
}
