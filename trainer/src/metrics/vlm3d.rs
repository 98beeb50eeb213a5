//! The metrics of the VLM3D challenge on CT-RATE.

use serde::{Deserialize, Serialize};

use super::{Confusion, auroc, macro_mean};

/// The metrics of the VLM3D challenge, over all labels together.
///
/// Its conventions differ from the rest of this module: a precision, recall or F1 that is undefined
/// counts 0 (scikit-learn's `zero_division=0`), since a label that is never called must not help the mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Vlm3d {
    /// Mean over the labels, those with one class only skipped.
    pub macro_auroc: Option<f64>,
    /// Mean over the labels, at p ≥ 0.5.
    pub macro_precision: f64,
    /// Mean over the labels, at p ≥ 0.5.
    pub macro_recall: f64,
    /// Mean over the labels, at p ≥ 0.5.
    pub macro_f1: f64,
    /// Mean over the labels, at p ≥ 0.5.
    pub macro_accuracy: f64,
    /// Clinical relevance gain, at p ≥ 0.5: 1 for perfect calls, 1/3 for none; `None` unless
    /// both positives and negatives are there.
    pub crg: Option<f64>,
}

/// [`Vlm3d`] of `(probabilities, labels)`, one pair a label; cases whose label is unknown are left out
/// of their pair. `None` where no label has a case.
///
/// CRG = U / (2 U − s), with U = (X − A) / 2, s = r TP − r FN − FP and r = (X − A) / (2 A), where X counts the
/// (case, label) cells and A the positive ones.
pub fn vlm3d(labels: &[(&[f64], &[bool])]) -> Option<Vlm3d> {
    let filled: Vec<_> = labels.iter().filter(|(p, l)| !l.is_empty() && p.len() == l.len()).collect();
    let counts: Vec<Confusion> = filled.iter().map(|(p, l)| Confusion::at(0.5, p, l)).collect();
    let mean =
        |of: fn(&Confusion) -> Option<f64>| macro_mean(counts.iter().map(|c| Some(of(c).unwrap_or(0.0))));
    Some(Vlm3d {
        macro_auroc: macro_mean(filled.iter().map(|(p, l)| auroc(p, l))),
        macro_precision: mean(Confusion::precision)?,
        macro_recall: mean(Confusion::sensitivity)?,
        macro_f1: mean(Confusion::f1)?,
        macro_accuracy: mean(Confusion::accuracy)?,
        crg: crg(&counts),
    })
}

fn crg(counts: &[Confusion]) -> Option<f64> {
    let sum = |of: fn(&Confusion) -> usize| counts.iter().map(of).sum::<usize>() as f64;
    let (tp, fp) = (sum(|c| c.true_positives), sum(|c| c.false_positives));
    let (tn, missed) = (sum(|c| c.true_negatives), sum(|c| c.false_negatives));
    let (positives, negatives) = (tp + missed, tn + fp);
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let u = negatives / 2.0;
    let r = negatives / (2.0 * positives);
    let s = r * tp - r * missed - fp;
    Some(u / (2.0 * u - s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(p: &[f64], labels: &[bool]) -> Vlm3d {
        vlm3d(&[(p, labels)]).unwrap()
    }

    #[test]
    fn crg_at_its_fixed_points() {
        let labels = [true, false, false, false];
        let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
        assert!(close(one(&[0.9, 0.1, 0.1, 0.1], &labels).crg, 1.0));
        assert!(close(one(&[0.1, 0.1, 0.1, 0.1], &labels).crg, 1.0 / 3.0));
        // All called: s = U - (X - A) = -U as well.
        assert!(close(one(&[0.9, 0.9, 0.9, 0.9], &labels).crg, 1.0 / 3.0));
        // One false alarm: U = 1.5, s = 1.5 - 1.
        assert!(close(one(&[0.9, 0.9, 0.1, 0.1], &labels).crg, 1.5 / 2.5));
        assert_eq!(one(&[0.1], &[false]).crg, None);
    }

    #[test]
    fn macro_means_worked_by_hand() {
        let a = ([0.9, 0.6, 0.4, 0.2], [true, false, true, false]); // TP 1, FP 1, FN 1, TN 1
        let b = ([0.1, 0.2, 0.3, 0.4], [false, false, false, false]); // never there, never called
        let found = vlm3d(&[(&a.0, &a.1), (&b.0, &b.1)]).unwrap();
        let close = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
        assert!(close(found.macro_auroc.unwrap(), 0.75), "the second label is skipped");
        assert!(close(found.macro_precision, 0.25) && close(found.macro_recall, 0.25));
        assert!(close(found.macro_f1, 0.25) && close(found.macro_accuracy, 0.75));
        assert_eq!(vlm3d(&[]), None);
    }
}
