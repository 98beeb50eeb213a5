//! How well one class of several is found.

use serde::{Deserialize, Serialize};

use super::bootstrap::resampled;
use super::wilson;

/// Figures of calls of one class of `K` each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Cases of true class `t` called `c`, at `[t][c]`.
    pub confusion: Vec<Vec<usize>>,
    /// Share of the right calls.
    pub accuracy: f64,
    /// Its 95 % score interval.
    pub accuracy_ci: [f64; 2],
    /// Mean over the classes that are there of the share of their cases called so.
    pub balanced_accuracy: f64,
    /// Of ordered classes: mean distance of the called class from the true one.
    pub mean_absolute_error: Option<f64>,
    /// Of ordered classes: Cohen's kappa with quadratic weights (Psychological Bulletin 1968); `None` where chance leaves no
    /// room.
    pub quadratic_kappa: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub quadratic_kappa_ci: Option<[f64; 2]>,
}

/// [`Calls`] of cases with the true class `truth[i]` and the called one `found[i]`, both below `classes`; `None` of no cases.
pub fn calls(truth: &[usize], found: &[usize], classes: usize, ordered: bool) -> Option<Calls> {
    let mut confusion = vec![vec![0; classes]; classes];
    for (&t, &f) in truth.iter().zip(found) {
        confusion[t][f] += 1;
    }
    let n = truth.len();
    let right = (0..classes).map(|c| confusion[c][c]).sum::<usize>();
    let shares = confusion.iter().enumerate().filter_map(|(c, row)| {
        let all = row.iter().sum::<usize>();
        (all > 0).then(|| row[c] as f64 / all as f64)
    });
    let shares: Vec<f64> = shares.collect();
    let distance: usize = truth.iter().zip(found).map(|(t, f)| t.abs_diff(*f)).sum();
    let kappa = |times: &[u32]| {
        let mut counts = vec![vec![0.0; classes]; classes];
        for ((&t, &f), &n) in truth.iter().zip(found).zip(times) {
            counts[t][f] += f64::from(n);
        }
        quadratic_kappa(&counts)
    };
    Some(Calls {
        accuracy: right as f64 / n as f64,
        accuracy_ci: wilson(right, n)?,
        balanced_accuracy: shares.iter().sum::<f64>() / shares.len() as f64,
        mean_absolute_error: ordered.then(|| distance as f64 / n as f64),
        quadratic_kappa: if ordered { kappa(&vec![1; n]) } else { None },
        quadratic_kappa_ci: if ordered { resampled(n, super::REPLICATES, kappa) } else { None },
        confusion,
    })
}

/// `1 - Σ w O / Σ w E` with `w = (i - j)²`, O the counts and E those of independent margins.
fn quadratic_kappa(counts: &[Vec<f64>]) -> Option<f64> {
    let n: f64 = counts.iter().flatten().sum();
    let rows: Vec<f64> = counts.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<f64> = (0..counts.len()).map(|c| counts.iter().map(|row| row[c]).sum()).collect();
    let (mut observed, mut expected) = (0.0, 0.0);
    for (i, row) in counts.iter().enumerate() {
        for (j, count) in row.iter().enumerate() {
            let weight = (i as f64 - j as f64).powi(2);
            observed += weight * count;
            expected += weight * rows[i] * columns[j] / n;
        }
    }
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_by_hand() {
        let truth = [0, 0, 1, 1, 2, 2];
        let found = [0, 1, 1, 1, 2, 0];
        let calls = calls(&truth, &found, 3, true).unwrap();
        assert_eq!(calls.confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 1]]);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(calls.accuracy, 4.0 / 6.0) && close(calls.balanced_accuracy, 2.0 / 3.0));
        assert!(close(calls.mean_absolute_error.unwrap(), 0.5));
        // Σ w O = 1 + 4 = 5. Margins 2, 2, 2 and 2, 3, 1: E = rows · columns / 6 = (2/3, 1, 1/3) in each row, so that
        // Σ w E = (1 + 4/3) + (2/3 + 1/3) + (8/3 + 1) = 7.
        assert!(close(calls.quadratic_kappa.unwrap(), 1.0 - 5.0 / 7.0));
        let [low, high] = calls.quadratic_kappa_ci.unwrap();
        assert!(low < 2.0 / 7.0 && high > 2.0 / 7.0 && high <= 1.0, "{low} {high}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        let one = calls(&[1, 1], &[1, 1], 3, true).unwrap();
        assert_eq!((one.quadratic_kappa, one.quadratic_kappa_ci), (None, None), "one class, always called");
        assert!((one.balanced_accuracy - 1.0).abs() < 1e-12);
        let unordered = calls(&[0, 1], &[1, 0], 2, false).unwrap();
        assert_eq!((unordered.quadratic_kappa, unordered.mean_absolute_error), (None, None));
        assert_eq!(calls(&[], &[], 2, true), None);
    }
}
