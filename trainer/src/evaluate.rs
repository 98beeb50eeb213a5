//! Evaluates a table of predictions.
//!
//! The table is the CSV that `predict` writes: `id`, `split`, one column a label (0, 1 or empty for
//! unknown), and `logit:LABEL` and `prob:LABEL` for each label. Further columns are ignored.
//!
//! ```
//! let csv = "id,split,lesion,logit:lesion,prob:lesion\n\
//!            a,test,0,-1.4,0.2\nb,test,1,0.8,0.7\nc,test,0,0.0,0.5\nd,test,1,2.2,0.9\n";
//! let predictions = trainer::evaluate::Predictions::parse("memory", csv.as_bytes()).unwrap();
//! let found = trainer::evaluate::evaluate(&predictions, "test").unwrap();
//! assert_eq!(found.macro_auroc, Some(1.0));
//! println!("{found}");
//! ```

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::metrics::{self, Auroc, Confusion, Vlm3d};

/// Bins of the calibration error and the reliability diagram.
pub const BINS: usize = 10;

/// Why predictions cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The file cannot be read.
    #[error("cannot read the predictions {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not CSV.
    #[error("{path} is not a sound CSV table: {source}")]
    Csv {
        /// The file.
        path: String,
        /// Why.
        source: csv::Error,
    },
    /// A column is missing.
    #[error("{path} has no column \"{column}\", which predictions need; it has: {found}")]
    Column {
        /// The file.
        path: String,
        /// The column.
        column: String,
        /// The columns that are there.
        found: String,
    },
    /// A cell is not what its column holds.
    #[error("line {line} of {path} has {found:?} in column \"{column}\", where {expected} is expected")]
    Cell {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The column.
        column: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A case stands in a split twice.
    #[error("line {line} of {path} has the id {id:?} a second time; each case may stand there once")]
    Duplicate {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The id.
        id: String,
    },
    /// Nothing to evaluate.
    #[error("{path} has no case of the split {split:?}; it has: {found}")]
    Split {
        /// The file.
        path: String,
        /// The split that was asked for.
        split: String,
        /// The splits that are there.
        found: String,
    },
    /// No label has both classes.
    #[error(
        "no label of {path} has both a positive and a negative case in the split {split:?} ({found}), \
         so there is nothing to tell apart; evaluate a split that has both"
    )]
    OneClass {
        /// The file.
        path: String,
        /// The split.
        split: String,
        /// Positives and negatives of each label.
        found: String,
    },
}

impl EvaluateError {
    /// Whether the user's file or flag is wrong (exit code 2), rather than the machine (1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Csv { source, .. } => !source.is_io_error(),
            _ => true,
        }
    }
}

/// A table of predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// What the table is called in messages: its path.
    pub name: String,
    /// The labels, in the order of their `prob:` columns.
    pub labels: Vec<String>,
    /// The cases, in the order of the file.
    pub cases: Vec<Case>,
}

/// The prediction for one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The case.
    pub id: String,
    /// `train`, `val` or `test`.
    pub split: String,
    /// Each label's truth, where known.
    pub truth: Vec<Option<bool>>,
    /// Each label's logit.
    pub logits: Vec<f64>,
    /// Each label's probability.
    pub probabilities: Vec<f64>,
}

impl Predictions {
    /// Reads the CSV file `path`.
    pub fn read(path: &Path) -> Result<Self, EvaluateError> {
        let name = path.display().to_string();
        let file =
            std::fs::File::open(path).map_err(|source| EvaluateError::Read { path: name.clone(), source })?;
        Self::parse(&name, file)
    }

    /// Reads CSV; `name` stands for it in messages.
    pub fn parse(name: &str, from: impl Read) -> Result<Self, EvaluateError> {
        let csv_error = |source| EvaluateError::Csv { path: name.into(), source };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(from);
        let header = reader.headers().map_err(csv_error)?.clone();
        let column = |column: &str| {
            header.iter().position(|h| h == column).ok_or_else(|| EvaluateError::Column {
                path: name.into(),
                column: column.into(),
                found: header.iter().collect::<Vec<_>>().join(", "),
            })
        };
        let (id, split) = (column("id")?, column("split")?);
        let labels: Vec<String> =
            header.iter().filter_map(|h| h.strip_prefix("prob:")).map(String::from).collect();
        if labels.is_empty() {
            column("prob:LABEL")?;
        }
        let columns = labels
            .iter()
            .map(|l| Ok([column(l)?, column(&format!("logit:{l}"))?, column(&format!("prob:{l}"))?]))
            .collect::<Result<Vec<_>, EvaluateError>>()?;

        let mut seen = HashSet::new();
        let mut cases = Vec::new();
        for record in reader.records() {
            let record = record.map_err(csv_error)?;
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |column: usize, expected, ok: bool| {
                if ok {
                    return Ok(());
                }
                Err(EvaluateError::Cell {
                    path: name.into(),
                    line,
                    column: header[column].into(),
                    found: record[column].into(),
                    expected,
                })
            };
            if !seen.insert(record[id].to_string()) {
                return Err(EvaluateError::Duplicate { path: name.into(), line, id: record[id].into() });
            }
            let mut case = Case {
                id: record[id].into(),
                split: record[split].into(),
                truth: Vec::new(),
                logits: Vec::new(),
                probabilities: Vec::new(),
            };
            for &[truth, logit, probability] in &columns {
                cell(truth, "0, 1 or nothing", ["0", "1", ""].contains(&&record[truth]))?;
                case.truth.push(match &record[truth] {
                    "" => None,
                    value => Some(value == "1"),
                });
                let z = record[logit].parse::<f64>().unwrap_or(f64::NAN);
                cell(logit, "a finite number", z.is_finite())?;
                case.logits.push(z);
                let p = record[probability].parse::<f64>().unwrap_or(f64::NAN);
                cell(probability, "a number from 0 to 1", (0.0..=1.0).contains(&p))?;
                case.probabilities.push(p);
            }
            cases.push(case);
        }
        Ok(Self { name: name.into(), labels, cases })
    }

    /// Probabilities and truths of the label with this index, over the split's cases where it is known.
    pub fn of(&self, label: usize, split: &str) -> (Vec<f64>, Vec<bool>) {
        let cases = self.cases.iter().filter(|c| c.split == split);
        cases.filter_map(|c| Some((c.probabilities[label], c.truth[label]?))).unzip()
    }
}

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
    /// Mean average precision over the labels that have both classes.
    pub macro_average_precision: Option<f64>,
    /// The VLM3D challenge's metrics.
    pub vlm3d: Option<Vlm3d>,
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
    /// Area under the ROC curve, with its interval.
    pub auroc: Option<Auroc>,
    /// Average precision.
    pub average_precision: Option<f64>,
    /// Brier score.
    pub brier: Option<f64>,
    /// Expected calibration error over [`BINS`] bins.
    pub calibration_error: Option<f64>,
    /// Sensitivity and specificity at the threshold chosen on validation data, where the table has any.
    pub operating_point: Option<OperatingPoint>,
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
    /// Share of the negatives called negative.
    pub specificity: f64,
    /// The counts.
    pub confusion: Confusion,
}

/// Evaluates the cases of `split`.
///
/// The operating point's threshold is Youden's on the table's `val` cases, never on the split itself;
/// it is absent where there are no such cases of both classes, or where `split` is `val`.
pub fn evaluate(predictions: &Predictions, split: &str) -> Result<Evaluation, EvaluateError> {
    let cases = predictions.cases.iter().filter(|c| c.split == split).count();
    if cases == 0 {
        let mut splits: Vec<&str> = predictions.cases.iter().map(|c| c.split.as_str()).collect();
        splits.sort_unstable();
        splits.dedup();
        return Err(EvaluateError::Split {
            path: predictions.name.clone(),
            split: split.into(),
            found: if splits.is_empty() { "no cases at all".into() } else { splits.join(", ") },
        });
    }
    let data: Vec<_> = (0..predictions.labels.len()).map(|l| predictions.of(l, split)).collect();
    let labels: Vec<LabelEvaluation> = data
        .iter()
        .zip(&predictions.labels)
        .enumerate()
        .map(|(index, ((p, truth), label))| {
            let validation = (split != "val").then(|| predictions.of(index, "val"));
            one_label(label, p, truth, cases, validation)
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
    let pairs: Vec<(&[f64], &[bool])> = data.iter().map(|(p, t)| (p.as_slice(), t.as_slice())).collect();
    Ok(Evaluation {
        split: split.into(),
        cases,
        macro_auroc: metrics::macro_mean(labels.iter().map(|l| l.auroc.as_ref().map(|a| a.value))),
        macro_average_precision: metrics::macro_mean(labels.iter().map(|l| l.average_precision)),
        vlm3d: metrics::vlm3d(&pairs),
        labels,
    })
}

fn one_label(
    label: &str,
    p: &[f64],
    truth: &[bool],
    cases: usize,
    validation: Option<(Vec<f64>, Vec<bool>)>,
) -> LabelEvaluation {
    let positives = truth.iter().filter(|&&t| t).count();
    let auroc = metrics::auroc_with_ci(p, truth);
    let operating_point = validation.and_then(|(p, truth)| metrics::youden(&p, &truth)).and_then(|chosen| {
        let confusion = Confusion::at(chosen.threshold, p, truth);
        Some(OperatingPoint {
            threshold: chosen.threshold,
            rule: "youden on validation".into(),
            sensitivity: confusion.sensitivity()?,
            specificity: confusion.specificity()?,
            confusion,
        })
    });
    LabelEvaluation {
        label: label.into(),
        positives,
        negatives: truth.len() - positives,
        unknown: cases - truth.len(),
        // Without negatives the average precision is 1 whatever the scores: as empty as the AUROC then.
        average_precision: auroc.as_ref().and_then(|_| metrics::average_precision(p, truth)),
        auroc,
        brier: metrics::brier(p, truth),
        calibration_error: metrics::expected_calibration_error(p, truth, BINS),
        operating_point,
    }
}

/// A table for the terminal.
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |x: Option<f64>| x.map_or_else(|| "–".into(), |x| format!("{x:.3}"));
        let width = self.labels.iter().map(|l| l.label.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{} cases of the split \"{}\"\n", self.cases, self.split)?;
        writeln!(
            f,
            "{:width$}  {:>9}  {:>21}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}",
            "label", "pos/neg", "AUROC (95 % CI)", "AP", "sens", "spec", "Brier", "ECE"
        )?;
        for l in &self.labels {
            let auroc = l
                .auroc
                .as_ref()
                .map_or_else(|| "–".into(), |a| format!("{:.3} ({:.3}–{:.3})", a.value, a.ci[0], a.ci[1]));
            writeln!(
                f,
                "{:width$}  {:>9}  {auroc:>21}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}",
                l.label,
                format!("{}/{}", l.positives, l.negatives),
                number(l.average_precision),
                number(l.operating_point.as_ref().map(|o| o.sensitivity)),
                number(l.operating_point.as_ref().map(|o| o.specificity)),
                number(l.brier),
                number(l.calibration_error),
            )?;
        }
        if self.labels.len() > 1 {
            let (auroc, precision) = (number(self.macro_auroc), number(self.macro_average_precision));
            writeln!(f, "{:width$}  {:>9}  {auroc:>21}  {precision:>6}", "macro", "")?;
        }
        if self.labels.iter().any(|l| l.operating_point.is_some()) {
            writeln!(f, "\nsens and spec at the threshold chosen on the val cases (Youden)")?;
        }
        if let Some(v) = &self.vlm3d {
            writeln!(
                f,
                "\nVLM3D, at p ≥ 0.5, macro: precision {:.3}, recall {:.3}, F1 {:.3}, accuracy {:.3}; CRG {}",
                v.macro_precision,
                v.macro_recall,
                v.macro_f1,
                v.macro_accuracy,
                number(v.crg)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "id,split,lesion,bleed,logit:lesion,prob:lesion,logit:bleed,prob:bleed\n";

    fn parse(rows: &str) -> Result<Predictions, EvaluateError> {
        Predictions::parse("p.csv", format!("{HEADER}{rows}").as_bytes())
    }

    fn message(csv: &str) -> String {
        let error = Predictions::parse("p.csv", csv.as_bytes()).unwrap_err();
        assert!(error.is_bad_input());
        error.to_string()
    }

    #[test]
    fn labels_with_one_class_are_skipped_and_unknown_truth_counts_nowhere() {
        let predictions = parse(
            "a,val,0,0,-1,0.3,0,0.5\nb,val,1,0,1,0.7,0,0.5\n\
             c,test,0,0,-2,0.1,0,0.5\nd,test,1,0,2,0.9,0,0.5\ne,test,1,0,-1,0.2,0,0.5\nf,test,,0,3,0.95,0,0.5\n",
        )
        .unwrap();
        let found = evaluate(&predictions, "test").unwrap();
        let [lesion, bleed] = &found.labels[..] else { panic!("two labels") };
        assert_eq!((lesion.positives, lesion.negatives, lesion.unknown), (2, 1, 1));
        assert_eq!(lesion.auroc.as_ref().map(|a| a.value), Some(1.0));
        // The threshold of the val cases, 0.5, misses one of two.
        let point = lesion.operating_point.as_ref().unwrap();
        assert!((point.threshold - 0.5).abs() < 1e-12 && (point.sensitivity - 0.5).abs() < 1e-12);
        assert!(
            bleed.auroc.is_none() && bleed.average_precision.is_none() && bleed.operating_point.is_none()
        );
        assert_eq!(found.macro_auroc, Some(1.0));
        let table = found.to_string();
        assert!(table.contains("lesion        2/1    1.000 (0."), "{table}");
        assert!(table.contains("bleed         0/4                      –       –"), "{table}");
        // Nothing is chosen on the split that it is measured on.
        assert!(evaluate(&predictions, "val").unwrap().labels[0].operating_point.is_none());
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["labels"][0]["auroc"]["interval"], "newcombe");
        assert_eq!(json["labels"][1]["auroc"], serde_json::Value::Null);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_sentence() {
        assert_eq!(
            message("id,split,lesion,prob:lesion\n"),
            "p.csv has no column \"logit:lesion\", which predictions need; it has: id, split, lesion, prob:lesion"
        );
        assert!(message("id,split,lesion\n").contains("no column \"prob:LABEL\""));
        let head = "id,split,x,logit:x,prob:x\n";
        assert_eq!(
            message(&format!("{head}a,test,2,0,0.5\n")),
            "line 2 of p.csv has \"2\" in column \"x\", where 0, 1 or nothing is expected"
        );
        assert!(message(&format!("{head}a,test,1,none,0.5\n")).contains("where a finite number is"));
        assert!(message(&format!("{head}a,test,1,0,1.5\n")).contains("a number from 0 to 1"));
        assert!(message(&format!("{head}a,test,1,0,0.5\na,test,1,0,0.5\n")).contains("a second time"));
        assert!(message(&format!("{head}a,test,1\n")).contains("not a sound CSV table"));
        let missing = Predictions::read(Path::new("no such file.csv")).unwrap_err();
        assert!(missing.is_bad_input());
        let one = parse("a,test,1,0,0,0.5,0,0.5\n").unwrap();
        assert_eq!(
            evaluate(&one, "test").unwrap_err().to_string(),
            "no label of p.csv has both a positive and a negative case in the split \"test\" (lesion: 1 and 0; \
             bleed: 0 and 1), so there is nothing to tell apart; evaluate a split that has both"
        );
        assert_eq!(
            evaluate(&one, "val").unwrap_err().to_string(),
            "p.csv has no case of the split \"val\"; it has: test"
        );
    }
}
