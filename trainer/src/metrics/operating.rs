//! What a threshold makes of scores.

use serde::{Deserialize, Serialize};

use super::rank::Z;
use super::{RocPoint, roc};

/// Counts at a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confusion {
    /// Positives called positive.
    pub true_positives: usize,
    /// Negatives called positive.
    pub false_positives: usize,
    /// Negatives called negative.
    pub true_negatives: usize,
    /// Positives called negative.
    pub false_negatives: usize,
}

impl Confusion {
    /// Counts where a score of at least `threshold` is called positive.
    pub fn at(threshold: f64, scores: &[f64], labels: &[bool]) -> Self {
        let mut counts = Self::default();
        for (&score, &label) in scores.iter().zip(labels) {
            match (score >= threshold, label) {
                (true, true) => counts.true_positives += 1,
                (true, false) => counts.false_positives += 1,
                (false, false) => counts.true_negatives += 1,
                (false, true) => counts.false_negatives += 1,
            }
        }
        counts
    }

    /// Share of the positives called positive (recall).
    pub fn sensitivity(&self) -> Option<f64> {
        share(self.true_positives, self.false_negatives)
    }

    /// Share of the negatives called negative.
    pub fn specificity(&self) -> Option<f64> {
        share(self.true_negatives, self.false_positives)
    }

    /// Share of the called that are positive.
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positives, self.false_positives)
    }

    /// `2 TP / (2 TP + FP + FN)`.
    pub fn f1(&self) -> Option<f64> {
        share(2 * self.true_positives, self.false_positives + self.false_negatives)
    }

    /// Share of the right calls.
    pub fn accuracy(&self) -> Option<f64> {
        share(self.true_positives + self.true_negatives, self.false_positives + self.false_negatives)
    }
}

fn share(of: usize, other: usize) -> Option<f64> {
    (of + other > 0).then(|| of as f64 / (of + other) as f64)
}

/// How a threshold is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// The largest `sensitivity + specificity - 1` (Youden 1950); of equals, the most sensitive.
    #[default]
    Youden,
    /// The most specific of those with at least this sensitivity.
    Sensitivity {
        /// 0 to 1.
        at_least: f64,
    },
    /// The most sensitive of those with at least this specificity.
    Specificity {
        /// 0 to 1.
        at_least: f64,
    },
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Youden => write!(f, "youden"),
            Self::Sensitivity { at_least } => write!(f, "sensitivity of at least {at_least}"),
            Self::Specificity { at_least } => write!(f, "specificity of at least {at_least}"),
        }
    }
}

/// A threshold, and what it makes of the data that it was chosen on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Positive where the score is at least this.
    pub threshold: f64,
    /// Sensitivity on the data that it was chosen on.
    pub sensitivity: f64,
    /// Specificity on the data that it was chosen on.
    pub specificity: f64,
}

/// The threshold that `rule` asks for.
///
/// It stands half way between the lowest score called positive and the next one below, so that it does not sit on a score
/// that the next case misses by a hair. `None` unless both classes are there, and where nothing but calling no case at all
/// is specific enough.
pub fn choose(rule: Rule, scores: &[f64], labels: &[bool]) -> Option<Chosen> {
    // A tolerance, since equal rates come out of different divisions.
    const EPSILON: f64 = 1e-12;
    let points = roc(scores, labels)?;
    let best = match rule {
        Rule::Youden => {
            let (mut best, mut best_j) = (points.len() - 1, 0.0);
            for (i, point) in points.iter().enumerate().skip(1).rev() {
                let j = point.true_positive_rate - point.false_positive_rate;
                if j > best_j + EPSILON {
                    (best, best_j) = (i, j);
                }
            }
            best
        }
        Rule::Sensitivity { at_least } => {
            points.iter().skip(1).position(|p| p.true_positive_rate >= at_least - EPSILON)? + 1
        }
        Rule::Specificity { at_least } => {
            points.iter().rposition(|p| 1.0 - p.false_positive_rate >= at_least - EPSILON)?
        }
    };
    if best == 0 {
        return None;
    }
    let at = points[best].threshold;
    let threshold = points.get(best + 1).map_or(at, |below| {
        let middle = f64::midpoint(at, below.threshold);
        // Neighbouring floats, or an infinite score, have no middle.
        if middle.is_finite() && middle > below.threshold { middle } else { at }
    });
    Some(Chosen {
        threshold,
        sensitivity: points[best].true_positive_rate,
        specificity: 1.0 - points[best].false_positive_rate,
    })
}

/// The largest sensitivity of any threshold with at least this specificity, without interpolation between scores; `None`
/// unless both classes are there.
pub fn sensitivity_at(specificity: f64, scores: &[f64], labels: &[bool]) -> Option<f64> {
    let specific = |point: &&RocPoint| 1.0 - point.false_positive_rate >= specificity - 1e-12;
    roc(scores, labels)?.iter().rfind(specific).map(|point| point.true_positive_rate)
}

/// 95 % score interval of a share of `of` in `all` cases (Wilson, JASA 1927); `None` of no cases.
pub fn wilson(of: usize, all: usize) -> Option<[f64; 2]> {
    let (n, p) = (all as f64, of as f64 / all as f64);
    let z2 = Z * Z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    (all > 0).then(|| [(centre - half).max(0.0), (centre + half).min(1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_shares_worked_by_hand() {
        let scores = [0.9, 0.5, 0.5, 0.4, 0.2];
        let labels = [true, true, false, true, false];
        let counts = Confusion::at(0.5, &scores, &labels);
        assert_eq!(
            counts,
            Confusion { true_positives: 2, false_positives: 1, true_negatives: 1, false_negatives: 1 }
        );
        let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
        assert!(close(counts.sensitivity(), 2.0 / 3.0));
        assert!(close(counts.specificity(), 0.5));
        assert!(close(counts.precision(), 2.0 / 3.0));
        assert!(close(counts.f1(), 4.0 / 6.0));
        assert!(close(counts.accuracy(), 0.6));
        assert_eq!(Confusion::at(1.0, &scores, &labels).precision(), None, "nothing is called");
    }

    #[test]
    fn youden_stands_between_the_classes() {
        let found = choose(Rule::Youden, &[0.1, 0.2, 0.6, 0.9], &[false, false, true, true]).unwrap();
        assert!((found.threshold - 0.4).abs() < 1e-12);
        assert!((found.sensitivity - 1.0).abs() < 1e-12 && (found.specificity - 1.0).abs() < 1e-12);
        // J is 1/2 at 0.8 and at 0.3: the lower one finds more.
        let found = choose(Rule::Youden, &[0.8, 0.6, 0.3, 0.1], &[true, false, true, false]).unwrap();
        assert!((found.threshold - 0.2).abs() < 1e-12 && (found.sensitivity - 1.0).abs() < 1e-12);
        // Worse than chance: everything is called positive.
        let found = choose(Rule::Youden, &[0.1, 0.9], &[true, false]).unwrap();
        assert!((found.threshold - 0.1).abs() < 1e-12 && found.specificity.abs() < 1e-12);
        assert_eq!(choose(Rule::Youden, &[0.1, 0.9], &[true, true]), None);
    }

    #[test]
    fn fixed_sensitivity_and_specificity_worked_by_hand() {
        // From the top: P P N P N N P N N N, at 1.0, 0.9, …, 0.1.
        let scores: Vec<f64> = (1..=10).rev().map(|i| f64::from(i) / 10.0).collect();
        let labels = [true, true, false, true, false, false, true, false, false, false];
        let found = choose(Rule::Sensitivity { at_least: 0.75 }, &scores, &labels).unwrap();
        assert!((found.threshold - 0.65).abs() < 1e-12 && (found.sensitivity - 0.75).abs() < 1e-12);
        assert!((found.specificity - 5.0 / 6.0).abs() < 1e-12);
        let found = choose(Rule::Specificity { at_least: 0.5 }, &scores, &labels).unwrap();
        assert!((found.threshold - 0.35).abs() < 1e-12 && (found.sensitivity - 1.0).abs() < 1e-12);
        let of = |specificity| sensitivity_at(specificity, &scores, &labels).unwrap();
        for (specificity, sensitivity) in
            [(0.95, 0.5), (5.0 / 6.0, 0.75), (0.6, 0.75), (0.5, 1.0), (0.0, 1.0)]
        {
            assert!((of(specificity) - sensitivity).abs() < 1e-12, "{specificity}");
        }
        // The highest score is a negative: no threshold has a specificity of 1 and calls anything.
        assert_eq!(choose(Rule::Specificity { at_least: 1.0 }, &[0.9, 0.5], &[false, true]), None);
        assert_eq!(sensitivity_at(1.0, &[0.9, 0.5], &[false, true]), Some(0.0));
        assert_eq!(sensitivity_at(0.9, &[0.9], &[true]), None);
    }

    /// `statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")`, whose formula for 0 of 10 is z² / (n + z²).
    #[test]
    fn wilsons_interval_at_its_ends() {
        let z2 = Z * Z;
        let [low, high] = wilson(0, 10).unwrap();
        assert!(low.abs() < 1e-12 && (high - z2 / (10.0 + z2)).abs() < 1e-12);
        let [low, high] = wilson(8, 10).unwrap();
        assert!((low - 0.490_162).abs() < 1e-6 && (high - 0.943_318).abs() < 1e-6, "{low} {high}");
        assert_eq!(wilson(0, 0), None);
    }
}
