//! What a threshold makes of scores.

use serde::{Deserialize, Serialize};

use super::roc;

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

/// An operating point by Youden's rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Youden {
    /// Positive where the score is at least this.
    pub threshold: f64,
    /// Sensitivity on the data that it was chosen on.
    pub sensitivity: f64,
    /// Specificity on the data that it was chosen on.
    pub specificity: f64,
}

/// The threshold with the largest `sensitivity + specificity - 1` (Youden 1950); of equals, the most sensitive.
///
/// It stands half way between the lowest score called positive and the next one below, so that it does
/// not sit on a score that the next case misses by a hair. `None` unless both classes are there.
pub fn youden(scores: &[f64], labels: &[bool]) -> Option<Youden> {
    let points = roc(scores, labels)?;
    // A tolerance, since equal values of J come out of different divisions.
    let (mut best, mut best_j) = (points.len() - 1, 0.0);
    for (i, point) in points.iter().enumerate().skip(1).rev() {
        let j = point.true_positive_rate - point.false_positive_rate;
        if j > best_j + 1e-12 {
            (best, best_j) = (i, j);
        }
    }
    let at = points[best].threshold;
    let threshold = points.get(best + 1).map_or(at, |below| {
        let middle = f64::midpoint(at, below.threshold);
        // Neighbouring floats, or an infinite score, have no middle.
        if middle.is_finite() && middle > below.threshold { middle } else { at }
    });
    Some(Youden {
        threshold,
        sensitivity: points[best].true_positive_rate,
        specificity: 1.0 - points[best].false_positive_rate,
    })
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
        let found = youden(&[0.1, 0.2, 0.6, 0.9], &[false, false, true, true]).unwrap();
        assert!((found.threshold - 0.4).abs() < 1e-12);
        assert!((found.sensitivity - 1.0).abs() < 1e-12 && (found.specificity - 1.0).abs() < 1e-12);
        // J is 1/2 at 0.8 and at 0.3: the lower one finds more.
        let found = youden(&[0.8, 0.6, 0.3, 0.1], &[true, false, true, false]).unwrap();
        assert!((found.threshold - 0.2).abs() < 1e-12 && (found.sensitivity - 1.0).abs() < 1e-12);
        // Worse than chance: everything is called positive.
        let found = youden(&[0.1, 0.9], &[true, false]).unwrap();
        assert!((found.threshold - 0.1).abs() < 1e-12 && found.specificity.abs() < 1e-12);
        assert_eq!(youden(&[0.1, 0.9], &[true, true]), None);
    }
}
