//! Evaluates a table of predictions.
//!
//! The table is the CSV that `predict` writes: `id`, `split`, one column a label (0, 1 or empty for
//! unknown), `logit:LABEL` and `prob:LABEL` for each label, and those of [`Heat`] where there are masks. Further columns are
//! ignored.
//!
//! ```
//! let csv = "id,split,lesion,logit:lesion,prob:lesion\n\
//!            a,test,0,-1.4,0.2\nb,test,1,0.8,0.7\nc,test,0,0.0,0.5\nd,test,1,2.2,0.9\n";
//! let predictions = trainer::evaluate::Predictions::parse("memory", csv.as_bytes()).unwrap();
//! let found = trainer::evaluate::evaluate(&predictions, "test").unwrap();
//! assert_eq!(found.macro_auroc, Some(1.0));
//! println!("{found}");
//! ```

mod classes;
mod error;
pub(crate) mod localisation;
mod predictions;
mod subgroup;
mod table;
mod versus;

use serde::{Deserialize, Serialize};

pub use classes::{Classes, Kind, classes};
pub use error::EvaluateError;
pub use localisation::{Heat, Localisation, MeanDice};
pub use predictions::{Case, Predictions};
pub use subgroup::{Subgroup, SubgroupLabel, Subgroups, subgroups};
pub use versus::{Versus, versus};

use crate::metrics::{self, Auroc, Bootstrap, Confusion, REPLICATES, Rule, Vlm3d};

/// Bins of the calibration error and the reliability diagram.
pub const BINS: usize = 10;

/// Specificities at which the sensitivity is told.
pub const SPECIFICITIES: [f64; 3] = [0.8, 0.9, 0.95];

/// Rules by which thresholds are chosen on validation cases.
pub const RULES: [Rule; 4] = [
    Rule::Youden,
    Rule::Sensitivity { at_least: 0.95 },
    Rule::Specificity { at_least: 0.9 },
    Rule::Specificity { at_least: 0.95 },
];

/// How good predictions are on one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The split.
    pub split: String,
    /// Its cases.
    pub cases: usize,
    /// Each label by itself.
    pub labels: Vec<LabelEvaluation>,
    /// Mean AUROC over the labels that have both classes.
    pub macro_auroc: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub macro_auroc_ci: Option<[f64; 2]>,
    /// Mean average precision over the labels that have both classes.
    pub macro_average_precision: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub macro_average_precision_ci: Option<[f64; 2]>,
    /// The VLM3D challenge's metrics.
    pub vlm3d: Option<Vlm3d>,
    /// Heat maps against masks, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localisation: Option<Localisation>,
}

/// How good the predictions of one label are; what one class alone leaves undefined is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelEvaluation {
    /// The label.
    pub label: String,
    /// Cases that are positive.
    pub positives: usize,
    /// Cases that are negative.
    pub negatives: usize,
    /// Cases whose truth is unknown; they count nowhere.
    pub unknown: usize,
    /// Area under the ROC curve, with DeLong's interval.
    pub auroc: Option<Auroc>,
    /// Its 95 % bootstrap interval.
    pub auroc_bootstrap: Option<[f64; 2]>,
    /// Average precision.
    pub average_precision: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub average_precision_ci: Option<[f64; 2]>,
    /// Brier score.
    pub brier: Option<f64>,
    /// Expected calibration error over [`BINS`] bins.
    pub calibration_error: Option<f64>,
    /// Sensitivity at each of [`SPECIFICITIES`], read off the ROC curve of these very cases.
    pub sensitivity_at: Vec<AtSpecificity>,
    /// Sensitivity and specificity at thresholds chosen by [`RULES`] on validation cases, where the table has any.
    pub operating_points: Vec<OperatingPoint>,
}

/// A point of the ROC curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AtSpecificity {
    /// The specificity that is kept.
    pub specificity: f64,
    /// The largest sensitivity then.
    pub sensitivity: f64,
}

/// What a threshold makes of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Positive where the probability is at least this.
    pub threshold: f64,
    /// How it was chosen.
    pub rule: String,
    /// Share of the positives called positive.
    pub sensitivity: f64,
    /// Its 95 % score interval.
    pub sensitivity_ci: [f64; 2],
    /// Share of the negatives called negative.
    pub specificity: f64,
    /// Its 95 % score interval.
    pub specificity_ci: [f64; 2],
    /// The counts.
    pub confusion: Confusion,
}

impl OperatingPoint {
    /// What `rule` on validation cases makes of others, `None` where one of them lacks a class; each is scores and truth.
    fn of(rule: Rule, chosen_on: &(Vec<f64>, Vec<bool>), scores: &[f64], truth: &[bool]) -> Option<Self> {
        let chosen = metrics::choose(rule, &chosen_on.0, &chosen_on.1)?;
        let confusion = Confusion::at(chosen.threshold, scores, truth);
        let (tp, tn) = (confusion.true_positives, confusion.true_negatives);
        Some(Self {
            threshold: chosen.threshold,
            rule: format!("{rule} on validation"),
            sensitivity: confusion.sensitivity()?,
            sensitivity_ci: metrics::wilson(tp, tp + confusion.false_negatives)?,
            specificity: confusion.specificity()?,
            specificity_ci: metrics::wilson(tn, tn + confusion.false_positives)?,
            confusion,
        })
    }
}

/// Evaluates the cases of `split`.
///
/// The operating points' thresholds are chosen on the table's `val` cases, never on the split itself;
/// they are absent where there are no such cases of both classes, or where `split` is `val`.
pub fn evaluate(predictions: &Predictions, split: &str) -> Result<Evaluation, EvaluateError> {
    let cases = predictions.count(split)?;
    let known: Vec<_> = (0..predictions.labels.len()).map(|l| predictions.known(l, split)).collect();
    let intervals = metrics::bootstrap(&known, cases, REPLICATES);
    let labels: Vec<LabelEvaluation> = known
        .iter()
        .enumerate()
        .map(|(index, known)| {
            let validation = (split != "val").then(|| predictions.of(index, "val"));
            let of = (known.scores.as_slice(), known.truth.as_slice());
            one_label(&predictions.labels[index], of, cases, validation.as_ref(), (&intervals, index))
        })
        .collect();
    if labels.iter().all(|l| l.auroc.is_none()) {
        let found = labels.iter().map(|l| format!("{}: {} and {}", l.label, l.positives, l.negatives));
        return Err(EvaluateError::OneClass {
            path: predictions.name.clone(),
            split: split.into(),
            found: found.collect::<Vec<_>>().join("; "),
        });
    }
    let pairs: Vec<(&[f64], &[bool])> =
        known.iter().map(|k| (k.scores.as_slice(), k.truth.as_slice())).collect();
    Ok(Evaluation {
        split: split.into(),
        cases,
        macro_auroc: metrics::macro_mean(labels.iter().map(|l| l.auroc.as_ref().map(|a| a.value))),
        macro_auroc_ci: intervals.macro_auroc,
        macro_average_precision: metrics::macro_mean(labels.iter().map(|l| l.average_precision)),
        macro_average_precision_ci: intervals.macro_average_precision,
        vlm3d: metrics::vlm3d(&pairs),
        localisation: localisation::localisation(&predictions.cases, split),
        labels,
    })
}

fn one_label(
    label: &str,
    (p, truth): (&[f64], &[bool]),
    cases: usize,
    validation: Option<&(Vec<f64>, Vec<bool>)>,
    (intervals, index): (&Bootstrap, usize),
) -> LabelEvaluation {
    let positives = truth.iter().filter(|&&t| t).count();
    let auroc = metrics::auroc_with_ci(p, truth);
    let at = |&specificity: &f64| {
        metrics::sensitivity_at(specificity, p, truth)
            .map(|sensitivity| AtSpecificity { specificity, sensitivity })
    };
    let points = validation.iter().flat_map(|on| RULES.map(|rule| OperatingPoint::of(rule, on, p, truth)));
    LabelEvaluation {
        label: label.into(),
        positives,
        negatives: truth.len() - positives,
        unknown: cases - truth.len(),
        // Without negatives the average precision is 1 whatever the scores: as empty as the AUROC then.
        average_precision: auroc.as_ref().and_then(|_| metrics::average_precision(p, truth)),
        average_precision_ci: intervals.average_precision[index],
        auroc,
        auroc_bootstrap: intervals.auroc[index],
        brier: metrics::brier(p, truth),
        calibration_error: metrics::expected_calibration_error(p, truth, BINS),
        sensitivity_at: SPECIFICITIES.iter().filter_map(at).collect(),
        operating_points: points.flatten().collect(),
    }
}

#[cfg(test)]
mod tests;
