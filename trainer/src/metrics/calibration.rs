//! Whether a probability of 0.7 means seven in ten.

use serde::{Deserialize, Serialize};

use super::class_sizes;

/// One bar of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Cases in the bin; at least one.
    pub count: usize,
    /// Mean of their probabilities.
    pub mean_probability: f64,
    /// Share of them that is positive.
    pub positive_rate: f64,
}

/// Mean squared difference between probability and label (Brier 1950); `None` for no cases or values outside 0..1.
pub fn brier(probabilities: &[f64], labels: &[bool]) -> Option<f64> {
    check(probabilities, labels)?;
    let sum: f64 = probabilities.iter().zip(labels).map(|(p, &l)| (p - f64::from(u8::from(l))).powi(2)).sum();
    Some(sum / labels.len() as f64)
}

/// The bins that hold a case, of `bins` bins of equal width over 0..1 (the last one includes 1).
pub fn reliability(probabilities: &[f64], labels: &[bool], bins: usize) -> Option<Vec<Bin>> {
    check(probabilities, labels)?;
    let mut sums = vec![(0_usize, 0.0, 0_usize); bins.max(1)];
    for (&p, &label) in probabilities.iter().zip(labels) {
        let bin = ((p * sums.len() as f64) as usize).min(sums.len() - 1);
        sums[bin].0 += 1;
        sums[bin].1 += p;
        sums[bin].2 += usize::from(label);
    }
    let filled = sums.into_iter().filter(|(count, ..)| *count > 0);
    let bin = |(count, sum, positives): (usize, f64, usize)| Bin {
        count,
        mean_probability: sum / count as f64,
        positive_rate: positives as f64 / count as f64,
    };
    Some(filled.map(bin).collect())
}

/// Expected calibration error: mean over the cases of |mean probability - positive rate| of their bin
/// (Naeini et al., AAAI 2015), `bins` bins of equal width.
pub fn expected_calibration_error(probabilities: &[f64], labels: &[bool], bins: usize) -> Option<f64> {
    let error = |b: &Bin| b.count as f64 * (b.mean_probability - b.positive_rate).abs();
    let sum: f64 = reliability(probabilities, labels, bins)?.iter().map(error).sum();
    Some(sum / labels.len() as f64)
}

fn check(probabilities: &[f64], labels: &[bool]) -> Option<()> {
    class_sizes(probabilities, labels)?;
    (!labels.is_empty() && probabilities.iter().all(|p| (0.0..=1.0).contains(p))).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_by_hand() {
        let p = [0.1, 0.15, 0.8, 1.0];
        let labels = [false, true, true, true];
        let expected = (0.01 + 0.7225 + 0.04 + 0.0) / 4.0;
        assert!((brier(&p, &labels).unwrap() - expected).abs() < 1e-12);
        // Of four bins: {.1, .15} mean .125, rate .5; {.8, 1} mean .9, rate 1.
        let bins = reliability(&p, &labels, 4).unwrap();
        assert_eq!(bins.iter().map(|b| b.count).collect::<Vec<_>>(), [2, 2]);
        let expected = (2.0 * 0.375 + 2.0 * 0.1) / 4.0;
        assert!((expected_calibration_error(&p, &labels, 4).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        assert_eq!(brier(&[1.1], &[true]), None);
        assert_eq!(brier(&[], &[]), None);
        assert_eq!(expected_calibration_error(&[f64::NAN], &[true], 10), None);
    }
}
