use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{EvaluateError, Predictions};
use crate::metrics::{self, Paired};

/// The AUROC of each label less that of other predictions of the same cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// The other predictions.
    pub other: String,
    /// Label and difference; `None` with fewer than two of a class.
    pub labels: Vec<(String, Option<Paired>)>,
}

/// Compares `predictions` with `other` on the cases of `split`; both must have the same cases, labels and truth there.
pub fn versus(predictions: &Predictions, other: &Predictions, split: &str) -> Result<Versus, EvaluateError> {
    let differs = |what: String| EvaluateError::Other {
        path: predictions.name.clone(),
        other: other.name.clone(),
        what,
    };
    if predictions.labels != other.labels {
        return Err(differs(format!(
            "labels: {} and {}",
            predictions.labels.join(", "),
            other.labels.join(", ")
        )));
    }
    let (mine, theirs) = (predictions.count(split)?, other.count(split)?);
    if mine != theirs {
        return Err(differs(format!("numbers of cases of the split {split:?}: {mine} and {theirs}")));
    }
    let of_other = other.cases.iter().filter(|case| case.split == split);
    let by_id: HashMap<&str, _> = of_other.map(|case| (case.id.as_str(), case)).collect();
    let mut pairs = Vec::new();
    for case in predictions.cases.iter().filter(|case| case.split == split) {
        let partner = by_id.get(case.id.as_str()).filter(|partner| partner.truth == case.truth);
        pairs.push((case, *partner.ok_or_else(|| differs(format!("truths of the id {:?}", case.id)))?));
    }
    let label = |(index, label): (usize, &String)| {
        let known = pairs
            .iter()
            .filter_map(|(a, b)| Some(((a.probabilities[index], b.probabilities[index]), a.truth[index]?)));
        let (scores, truth): (Vec<(f64, f64)>, Vec<bool>) = known.unzip();
        let (first, second): (Vec<f64>, Vec<f64>) = scores.into_iter().unzip();
        (label.clone(), metrics::paired(&first, &second, &truth))
    };
    Ok(Versus {
        other: other.name.clone(),
        labels: predictions.labels.iter().enumerate().map(label).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rows: &[(&str, u8, f64)]) -> Predictions {
        let rows = rows.iter().map(|(id, truth, p)| format!("{id},test,{truth},0,{p}\n"));
        let csv: String = std::iter::once("id,split,x,logit:x,prob:x\n".to_owned()).chain(rows).collect();
        Predictions::parse("p.csv", csv.as_bytes()).unwrap()
    }

    #[test]
    fn cases_are_joined_by_id() {
        let a = parse(&[
            ("a", 1, 0.9),
            ("b", 1, 0.8),
            ("c", 1, 0.4),
            ("d", 0, 0.5),
            ("e", 0, 0.2),
            ("f", 0, 0.1),
        ]);
        let mut b = parse(&[
            ("f", 0, 0.1),
            ("e", 0, 0.4),
            ("d", 0, 0.6),
            ("c", 1, 0.5),
            ("b", 1, 0.3),
            ("a", 1, 0.9),
        ]);
        let found = versus(&a, &b, "test").unwrap();
        let paired = found.labels[0].1.unwrap();
        assert!((paired.difference - 2.0 / 9.0).abs() < 1e-12);
        assert!((paired.standard_error - (5.0_f64 / 81.0).sqrt()).abs() < 1e-12);
        assert!(found.to_string().contains("x  +0.222 (95 % CI -0.265 to +0.709), p = 0.371"), "{found}");
        b.cases[0].truth = vec![Some(true)];
        let error = versus(&a, &b, "test").unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("truths of the id \"f\""), "{error}");
        b.cases.pop();
        assert!(versus(&a, &b, "test").unwrap_err().to_string().contains("6 and 5"));
    }
}
