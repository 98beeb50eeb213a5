//! How well predictions agree with labels.
//!
//! Everything here works on plain slices: `scores[i]` belongs to `labels[i]`, higher means more likely
//! positive. A measure that is undefined for its input (one class only, nothing at all, a score that
//! is not a number) is `None`, never a made-up value; the one exception is [`Vlm3d`], which follows that
//! benchmark's own conventions.

mod bootstrap;
mod calibration;
mod classes;
mod curve;
mod operating;
mod paired;
mod rank;
mod temperature;
mod vlm3d;

pub use bootstrap::{Bootstrap, Known, REPLICATES, bootstrap, bootstrap_mean};
pub use calibration::{Bin, brier, expected_calibration_error, reliability};
pub use classes::{Calls, calls};
pub use curve::{PrPoint, RocPoint, average_precision, precision_recall, roc};
pub use operating::{Chosen, Confusion, Rule, choose, sensitivity_at, wilson};
pub use paired::{Paired, paired};
pub use rank::{Auroc, Interval, auroc, auroc_with_ci};
pub use temperature::temperature;
pub use vlm3d::{Vlm3d, vlm3d};

/// Mean over the labels for which a measure is defined; `None` where it is defined for none.
///
/// ```
/// use trainer::metrics::macro_mean;
/// assert_eq!(macro_mean([Some(0.5), None, Some(1.0)]), Some(0.75));
/// assert_eq!(macro_mean([None]), None);
/// ```
pub fn macro_mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let defined: Vec<f64> = values.into_iter().flatten().collect();
    (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
}

/// Positives and negatives, or `None` where slices do not belong together or a score is not a number.
fn class_sizes(scores: &[f64], labels: &[bool]) -> Option<[usize; 2]> {
    if scores.len() != labels.len() || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let positives = labels.iter().filter(|&&label| label).count();
    Some([positives, labels.len() - positives])
}

/// Whether two neighbours of a sorted list tie.
#[allow(clippy::float_cmp, reason = "ties are exact; and -0.0, which sorts before 0.0, equals it")]
fn tie(a: f64, b: f64) -> bool {
    a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty cases with ties; the numbers are scikit-learn 1.x's and, for the error, DeLong's definition in NumPy.
    #[test]
    fn as_scikit_learn_has_it() {
        let tenths =
            [7, 6, 8, 4, 3, 5, 10, 0, 2, 8, 7, 9, 5, 4, 6, 10, 1, 3, 9, 8, 0, 6, 5, 7, 10, 2, 4, 10, 9, 1];
        let scores: Vec<f64> = tenths.iter().map(|&t| f64::from(t) / 10.0).collect();
        let labels: Vec<bool> = (0..30).map(|i| i % 3 == 0).collect();
        let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
        assert!(close(auroc(&scores, &labels), 0.82));
        assert!(close(average_precision(&scores, &labels), 0.728_097_691_781_902_2));
        assert!(close(brier(&scores, &labels), 0.220_333_333_333_333_33));
        let error = auroc_with_ci(&scores, &labels).unwrap().standard_error;
        assert!(close(error, 0.080_014_618_547_403_88));
    }
}
