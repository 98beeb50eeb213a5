use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use super::EvaluateError;
use super::localisation::{COLUMNS, Heat};
use crate::metrics::Known;

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
    /// Heat map against mask, where there is one.
    pub heat: Option<Heat>,
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

        let heat = if column(COLUMNS[0]).is_ok() { Some(COLUMNS.map(&column)) } else { None };
        let heat = match heat {
            Some([hit, share, dice, level, best]) => Some([hit?, share?, dice?, level?, best?]),
            None => None,
        };

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
                heat: None,
            };
            if let Some(columns) = heat {
                let cells = columns.map(|column| &record[column]);
                case.heat = Heat::parse(cells)
                    .map_err(|wrong| EvaluateError::heat(name, line, wrong, cells[wrong.0]))?;
            }
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

    /// The table as CSV, in the form that [`Predictions::parse`] reads.
    pub fn csv(&self) -> Result<Vec<u8>, csv::Error> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let columns = |prefix: &'static str| self.labels.iter().map(move |label| format!("{prefix}{label}"));
        let fixed = ["id".to_owned(), "split".to_owned()].into_iter();
        writer.write_record(fixed.chain(columns("")).chain(columns("logit:")).chain(columns("prob:")))?;
        for case in &self.cases {
            let truth = case.truth.iter().map(|t| t.map_or(String::new(), |t| u8::from(t).to_string()));
            let numbers = case.logits.iter().chain(&case.probabilities).map(ToString::to_string);
            let fixed = [case.id.clone(), case.split.clone()].into_iter();
            writer.write_record(fixed.chain(truth).chain(numbers))?;
        }
        writer.into_inner().map_err(|e| csv::Error::from(e.into_error()))
    }

    /// Number of cases of a split; an error where there are none.
    pub fn count(&self, split: &str) -> Result<usize, EvaluateError> {
        let cases = self.cases.iter().filter(|c| c.split == split).count();
        if cases > 0 {
            return Ok(cases);
        }
        let mut splits: Vec<&str> = self.cases.iter().map(|c| c.split.as_str()).collect();
        splits.sort_unstable();
        splits.dedup();
        Err(EvaluateError::Split {
            path: self.name.clone(),
            split: split.into(),
            found: if splits.is_empty() { "no cases at all".into() } else { splits.join(", ") },
        })
    }

    /// As [`Predictions::of`], with the place of each case among the split's.
    pub fn known(&self, label: usize, split: &str) -> Known {
        let mut known = Known::default();
        for (place, case) in self.cases.iter().filter(|c| c.split == split).enumerate() {
            if let Some(truth) = case.truth[label] {
                known.cases.push(place);
                known.scores.push(case.probabilities[label]);
                known.truth.push(truth);
            }
        }
        known
    }

    /// Probabilities and truths of the label with this index, over the split's cases where it is known.
    pub fn of(&self, label: usize, split: &str) -> (Vec<f64>, Vec<bool>) {
        let cases = self.cases.iter().filter(|c| c.split == split);
        cases.filter_map(|c| Some((c.probabilities[label], c.truth[label]?))).unzip()
    }
}
