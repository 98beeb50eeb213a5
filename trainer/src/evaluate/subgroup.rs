use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{EvaluateError, Predictions};
use crate::metrics::{self, Auroc, Confusion, Rule};

/// Most groups that a column may part the cases into.
const MOST: usize = 50;

/// The cases of a split, parted by a column of the data table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subgroups {
    /// The column.
    pub column: String,
    /// A group each, by value.
    pub groups: Vec<Subgroup>,
}

/// The cases with one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subgroup {
    /// The value; `(empty)` where the table has none.
    pub value: String,
    /// Cases, whether their truth is known or not.
    pub cases: usize,
    /// Each label by itself.
    pub labels: Vec<SubgroupLabel>,
}

/// One label in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubgroupLabel {
    /// The label.
    pub label: String,
    /// Positive cases.
    pub positives: usize,
    /// Negative cases.
    pub negatives: usize,
    /// Area under the ROC curve with its interval; `None` with one class only.
    pub auroc: Option<Auroc>,
    /// At the threshold that Youden's rule chooses on all validation cases, whatever their group: one threshold is what a
    /// device has.
    pub sensitivity: Option<f64>,
    /// At the same threshold.
    pub specificity: Option<f64>,
}

/// Parts the cases of `split` by `column`, whose `values` are given by id.
pub fn subgroups(
    predictions: &Predictions,
    split: &str,
    column: &str,
    values: &BTreeMap<String, String>,
) -> Result<Subgroups, EvaluateError> {
    predictions.count(split)?;
    let mut parts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, case) in predictions.cases.iter().enumerate().filter(|(_, case)| case.split == split) {
        let value = values
            .get(&case.id)
            .ok_or_else(|| EvaluateError::Foreign { path: predictions.name.clone(), id: case.id.clone() })?;
        let value = if value.is_empty() { "(empty)" } else { value.as_str() };
        parts.entry(value).or_default().push(index);
    }
    if parts.len() > MOST {
        return Err(EvaluateError::Groups { column: column.into(), found: parts.len(), most: MOST });
    }
    let thresholds: Vec<Option<f64>> = (0..predictions.labels.len())
        .map(|label| {
            let (scores, truth) = predictions.of(label, "val");
            metrics::choose(Rule::Youden, &scores, &truth).filter(|_| split != "val").map(|c| c.threshold)
        })
        .collect();
    let group = |(value, cases): (&str, Vec<usize>)| {
        let labels = predictions.labels.iter().enumerate().map(|(l, label)| {
            let known = cases.iter().map(|&i| &predictions.cases[i]);
            let known = known.filter_map(|case| Some((case.probabilities[l], case.truth[l]?)));
            let (scores, truth): (Vec<f64>, Vec<bool>) = known.unzip();
            let confusion = thresholds[l].map(|threshold| Confusion::at(threshold, &scores, &truth));
            let positives = truth.iter().filter(|t| **t).count();
            SubgroupLabel {
                label: label.clone(),
                positives,
                negatives: truth.len() - positives,
                auroc: metrics::auroc_with_ci(&scores, &truth),
                sensitivity: confusion.and_then(|c| c.sensitivity()),
                specificity: confusion.and_then(|c| c.specificity()),
            }
        });
        Subgroup { value: value.into(), cases: cases.len(), labels: labels.collect() }
    };
    Ok(Subgroups { column: column.into(), groups: parts.into_iter().map(group).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_judged_at_the_common_threshold() {
        // The threshold of the val cases is 0.5.
        let csv = "id,split,x,logit:x,prob:x\nu,val,0,0,0.4\nv,val,1,0,0.6\n\
            a,test,0,0,0.1\nb,test,1,0,0.9\nc,test,1,0,0.3\nd,test,0,0,0.2\ne,test,1,0,0.8\nf,test,,0,0.5\ng,test,0,0,0.7\n";
        let predictions = Predictions::parse("p.csv", csv.as_bytes()).unwrap();
        let scanner = |id: &str| match id {
            "a" | "b" | "c" | "f" => "M1",
            "d" | "e" => "M2",
            _ => "",
        };
        let mut values: BTreeMap<String, String> =
            ["a", "b", "c", "d", "e", "f", "g"].map(|id| (id.into(), scanner(id).into())).into();
        let found = subgroups(&predictions, "test", "scanner", &values).unwrap();
        let names: Vec<&str> = found.groups.iter().map(|g| g.value.as_str()).collect();
        assert_eq!(names, ["(empty)", "M1", "M2"]);
        let one = &found.groups[1];
        let label = &one.labels[0];
        assert_eq!((one.cases, label.positives, label.negatives), (4, 2, 1));
        assert_eq!(label.auroc.as_ref().map(|a| a.value), Some(1.0));
        assert_eq!((label.sensitivity, label.specificity), (Some(0.5), Some(1.0)));
        let rest = &found.groups[0].labels[0];
        assert_eq!((rest.auroc.as_ref(), rest.sensitivity, rest.specificity), (None, None, Some(0.0)));
        let table = found.to_string();
        assert!(
            table.contains("scanner  label  cases")
                && table.contains("M1       x          4        2/1    1.000 (0."),
            "{table}"
        );
        values.remove("g");
        let error = subgroups(&predictions, "test", "scanner", &values).unwrap_err().to_string();
        assert!(error.contains("\"g\""), "{error}");
    }

    #[test]
    fn a_column_of_numbers_is_no_grouping() {
        let rows: String =
            (0..60).fold(String::new(), |rows, i| rows + &format!("{i},test,{},0,0.5\n", i % 2));
        let csv = format!("id,split,x,logit:x,prob:x\n{rows}");
        let predictions = Predictions::parse("p.csv", csv.as_bytes()).unwrap();
        let values = (0..60).map(|i| (i.to_string(), format!("{}", 30 + i))).collect();
        let error = subgroups(&predictions, "test", "age", &values).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("60 values"), "{error}");
    }
}
