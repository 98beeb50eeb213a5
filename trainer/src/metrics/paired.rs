//! Two models on the same cases.

use serde::{Deserialize, Serialize};

use super::rank::{Z, placements, variance};
use super::{auroc, class_sizes};

/// The difference of two areas under ROC curves of the same cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// First area less second area.
    pub difference: f64,
    /// DeLong's standard error of the difference.
    pub standard_error: f64,
    /// Its 95 % interval.
    pub ci: [f64; 2],
    /// Two-sided, of the hypothesis that both are equal; `None` where the standard error is 0.
    pub p_value: Option<f64>,
}

/// DeLong's test for correlated areas (Biometrics 1988); `None` with fewer than two of a class.
///
/// The variance of the difference is that of the differences of the two models' placements, class by class.
pub fn paired(first: &[f64], second: &[f64], labels: &[bool]) -> Option<Paired> {
    let [positives, negatives] = class_sizes(first, labels)?;
    if positives < 2 || negatives < 2 {
        return None;
    }
    let difference = auroc(first, labels)? - auroc(second, labels)?;
    let of_class = |class: bool, n: usize| {
        let [a, b] = [first, second].map(|scores| placements(scores, labels, class));
        variance(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<_>>()) / n as f64
    };
    let standard_error = (of_class(true, positives) + of_class(false, negatives)).sqrt();
    let half = Z * standard_error;
    let z = difference.abs() / standard_error;
    Some(Paired {
        difference,
        standard_error,
        ci: [difference - half, difference + half],
        p_value: (standard_error > 0.0).then(|| libm::erfc(z / std::f64::consts::SQRT_2)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::auroc_with_ci;

    #[test]
    fn worked_by_hand() {
        // Positives first. Model one: every positive above every negative but the last pair: areas 8/9 and 6/9.
        let labels = [true, true, true, false, false, false];
        let first = [0.9, 0.8, 0.4, 0.5, 0.2, 0.1];
        let second = [0.9, 0.3, 0.5, 0.6, 0.4, 0.1];
        // Placements of the positives: 1, 1, 2/3 and 1, 1/3, 2/3; of the negatives: 2/3, 1, 1 and 1/3, 2/3, 1.
        // Differences 0, 2/3, 0 (variance 4/27) and 1/3, 1/3, 0 (variance 1/27): (4/27 + 1/27) / 3 = 5/81.
        let found = paired(&first, &second, &labels).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(found.difference, 2.0 / 9.0));
        assert!(close(found.standard_error, (5.0_f64 / 81.0).sqrt()));
        // z = 2 / √5 = 0.894427; 2 (1 - Φ(z)) = 0.371093.
        assert!((found.p_value.unwrap() - 0.371_093).abs() < 1e-6, "{:?}", found.p_value);
        let same = paired(&first, &first, &labels).unwrap();
        assert!(same.difference.abs() < 1e-12 && same.p_value.is_none());
        assert_eq!(paired(&first[2..4], &second[2..4], &labels[2..4]), None);
    }

    /// Against a model that says the same of every case, whose area is 1/2 without any variance, the error is the area's own.
    #[test]
    fn against_chance_it_is_the_areas_own_error() {
        let labels: Vec<bool> = (0..30).map(|i| i % 3 == 0).collect();
        let scores: Vec<f64> =
            (0..30).map(|i| f64::from(i * 7 % 11) + f64::from(u8::from(i % 3 == 0))).collect();
        let found = paired(&scores, &[0.5; 30], &labels).unwrap();
        let own = auroc_with_ci(&scores, &labels).unwrap();
        assert!((found.difference - (own.value - 0.5)).abs() < 1e-12);
        assert!((found.standard_error - own.standard_error.unwrap()).abs() < 1e-12);
    }
}
