use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Case, EvaluateError, Predictions};
use crate::metrics::{self, Calls};

/// How the labels belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Exactly one holds; the most probable one is called.
    Exclusive,
    /// They are rising grades, as in an ordinal task: the grade is the number of labels that hold, and is called the number of
    /// those with a probability of at least 0.5.
    Ordered,
}

/// The calls of one class of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// How the labels belong together.
    pub kind: Kind,
    /// The classes: the labels, or the grades from "none".
    pub names: Vec<String>,
    /// Cases left out since their class is not known.
    pub unknown: usize,
    /// Figures.
    pub calls: Calls,
}

/// One class a case, from predictions of several labels.
pub fn classes(predictions: &Predictions, split: &str, kind: Kind) -> Result<Classes, EvaluateError> {
    let cases = predictions.count(split)?;
    let (mut truth, mut found) = (Vec::new(), Vec::new());
    for case in predictions.cases.iter().filter(|case| case.split == split) {
        let Some(known) = class_of(case, kind).map_err(|expected| EvaluateError::Classes {
            path: predictions.name.clone(),
            id: case.id.clone(),
            expected,
        })?
        else {
            continue;
        };
        let p = &case.probabilities;
        truth.push(known);
        found.push(match kind {
            Kind::Exclusive => (0..p.len()).rev().max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0),
            Kind::Ordered => p.iter().filter(|p| **p >= 0.5).count(),
        });
    }
    let mut names = predictions.labels.clone();
    if kind == Kind::Ordered {
        names.insert(0, "none".into());
    }
    let calls = metrics::calls(&truth, &found, names.len(), kind == Kind::Ordered);
    let calls = calls
        .ok_or_else(|| EvaluateError::Unknown { path: predictions.name.clone(), split: split.into() })?;
    Ok(Classes { kind, names, unknown: cases - truth.len(), calls })
}

/// The class of a case; `None` where it is not known, and what was expected where the labels contradict each other.
fn class_of(case: &Case, kind: Kind) -> Result<Option<usize>, &'static str> {
    let is = |wanted: bool| move |t: &Option<bool>| *t == Some(wanted);
    let positives = case.truth.iter().filter(|t| is(true)(t)).count();
    let unknown = case.truth.iter().any(Option::is_none);
    match kind {
        Kind::Exclusive => match (positives, unknown) {
            (1, _) => Ok(case.truth.iter().position(|t| is(true)(t))),
            (0, true) => Ok(None),
            _ => Err("exactly one label that holds"),
        },
        Kind::Ordered => {
            let failed = case.truth.iter().position(|t| is(false)(t)).unwrap_or(case.truth.len());
            if case.truth[failed..].iter().any(|t| is(true)(t)) {
                return Err("no label that holds after one that does not");
            }
            Ok((!unknown).then_some(positives))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rows: &str) -> Predictions {
        let csv = format!("id,split,x,y,logit:x,prob:x,logit:y,prob:y\n{rows}");
        Predictions::parse("p.csv", csv.as_bytes()).unwrap()
    }

    #[test]
    fn grades_are_counted_and_classes_taken_by_the_greatest() {
        let predictions = parse(
            "a,test,0,0,0,0.4,0,0.1\nb,test,1,0,0,0.6,0,0.5\nc,test,1,1,0,0.9,0,0.8\nd,test,1,,0,0.9,0,0.8\ne,val,0,1,0,0,0,0\n",
        );
        let found = classes(&predictions, "test", Kind::Ordered).unwrap();
        assert_eq!((found.names.join(" "), found.unknown), ("none x y".into(), 1));
        assert_eq!(found.calls.confusion, [[1, 0, 0], [0, 0, 1], [0, 0, 1]]);
        assert!((found.calls.mean_absolute_error.unwrap() - 1.0 / 3.0).abs() < 1e-12);
        let table = found.to_string();
        assert!(table.contains("quadratic kappa 0.800 ("), "{table}");
        let error = classes(&predictions, "val", Kind::Ordered).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("\"e\""), "{error}");

        let predictions = parse("a,test,1,0,0,0.4,0,0.6\nb,test,,1,0,0.3,0,0.7\nc,test,,,0,0.5,0,0.5\n");
        let found = classes(&predictions, "test", Kind::Exclusive).unwrap();
        assert_eq!((found.calls.confusion.clone(), found.unknown), (vec![vec![0, 1], vec![0, 1]], 1));
        assert!(found.to_string().contains("accuracy 0.500 ("), "{found}");
        let none = classes(&parse("a,test,0,0,0,0.4,0,0.6\n"), "test", Kind::Exclusive).unwrap_err();
        assert!(none.to_string().contains("exactly one label that holds"), "{none}");
    }
}
