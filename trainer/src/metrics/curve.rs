//! ROC and precision–recall curves.

use serde::{Deserialize, Serialize};

use super::{class_sizes, tie};

/// A point of a ROC curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RocPoint {
    /// Positive where the score is at least this; infinite at the curve's start.
    pub threshold: f64,
    /// Share of the negatives called positive.
    pub false_positive_rate: f64,
    /// Share of the positives called positive.
    pub true_positive_rate: f64,
}

/// A point of a precision–recall curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrPoint {
    /// Positive where the score is at least this.
    pub threshold: f64,
    /// Share of the called that are positive.
    pub precision: f64,
    /// Share of the positives that are called.
    pub recall: f64,
}

/// True and false positives at each distinct score, from the highest score down.
fn counts(scores: &[f64], labels: &[bool]) -> Vec<(f64, f64, f64)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut tp, mut fp) = (0.0, 0.0);
    order
        .chunk_by(|&a, &b| tie(scores[a], scores[b]))
        .map(|tied| {
            let positives = tied.iter().filter(|&&i| labels[i]).count();
            tp += positives as f64;
            fp += (tied.len() - positives) as f64;
            (scores[tied[0]], tp, fp)
        })
        .collect()
}

/// The ROC curve, from (0, 0) to (1, 1), one point a distinct score; `None` unless both classes are there.
pub fn roc(scores: &[f64], labels: &[bool]) -> Option<Vec<RocPoint>> {
    let [positives, negatives] = class_sizes(scores, labels)?;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let start = RocPoint { threshold: f64::INFINITY, false_positive_rate: 0.0, true_positive_rate: 0.0 };
    let points = counts(scores, labels).into_iter().map(|(threshold, tp, fp)| RocPoint {
        threshold,
        false_positive_rate: fp / negatives as f64,
        true_positive_rate: tp / positives as f64,
    });
    Some(std::iter::once(start).chain(points).collect())
}

/// The precision–recall curve by rising recall, one point a distinct score; `None` without positives.
pub fn precision_recall(scores: &[f64], labels: &[bool]) -> Option<Vec<PrPoint>> {
    let [positives, _] = class_sizes(scores, labels)?;
    if positives == 0 {
        return None;
    }
    let point =
        |(threshold, tp, fp)| PrPoint { threshold, precision: tp / (tp + fp), recall: tp / positives as f64 };
    Some(counts(scores, labels).into_iter().map(point).collect())
}

/// Average precision: `sum over n of (R_n - R_(n-1)) P_n` over the distinct scores, without interpolation
/// (scikit-learn's `average_precision_score`); `None` without positives.
pub fn average_precision(scores: &[f64], labels: &[bool]) -> Option<f64> {
    let mut before = 0.0;
    let mut sum = 0.0;
    for point in precision_recall(scores, labels)? {
        sum += (point.recall - before) * point.precision;
        before = point.recall;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::auroc;

    const SCORES: [f64; 6] = [0.9, 0.8, 0.8, 0.7, 0.3, 0.1];
    const LABELS: [bool; 6] = [true, true, false, false, true, false];

    #[test]
    fn average_precision_worked_by_hand() {
        // Recall 1/3 at precision 1, 2/3 at 2/3 (a tie of both classes), 1 at 3/5.
        let expected = (1.0 + 2.0 / 3.0 + 3.0 / 5.0) / 3.0;
        assert!((average_precision(&SCORES, &LABELS).unwrap() - expected).abs() < 1e-12);
        assert_eq!(average_precision(&[0.5], &[false]), None);
        // All scores equal: the prevalence.
        assert!((average_precision(&[0.5; 4], &[true, false, false, false]).unwrap() - 0.25).abs() < 1e-12);
    }

    #[test]
    fn the_area_under_the_roc_points_is_the_auroc() {
        let points = roc(&SCORES, &LABELS).unwrap();
        assert_eq!(points.len(), 6, "start and five distinct scores");
        let area: f64 = points
            .windows(2)
            .map(|w| {
                (w[1].false_positive_rate - w[0].false_positive_rate)
                    * f64::midpoint(w[0].true_positive_rate, w[1].true_positive_rate)
            })
            .sum();
        assert!((area - auroc(&SCORES, &LABELS).unwrap()).abs() < 1e-12);
        let end = points.last().unwrap();
        assert!(
            (end.false_positive_rate - 1.0).abs() < 1e-12 && (end.true_positive_rate - 1.0).abs() < 1e-12
        );
        assert_eq!(roc(&[0.1, 0.2], &[true, true]), None);
    }
}
