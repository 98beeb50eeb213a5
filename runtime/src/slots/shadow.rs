//! How a candidate does beside the active plugin, and what follows from it.

use firmware_config::{Promote, Shadow, ShadowReport};
use serde::{Deserialize, Serialize};

use crate::result::LabelResult;

/// What both plugins said of one series, label by label.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Labels that both have.
    pub labels: u32,
    /// Of these, those about which both said the same.
    pub agreed: u32,
    /// Sum of the absolute differences of the probabilities.
    pub difference: f64,
    /// The largest of them.
    pub largest: f64,
    /// Sum of the candidate's probabilities less the active plugin's.
    pub drift: f64,
}

impl Comparison {
    /// Of the labels of one series. Where there are no two thresholds, probabilities that lie no further apart than `near` say
    /// the same. None if no label is common to both.
    pub fn of(active: &[LabelResult], candidate: &[LabelResult], near: f64) -> Option<Self> {
        let mut this = Self::default();
        for before in active {
            let Some(after) = candidate.iter().find(|label| label.name == before.name) else { continue };
            let difference = (after.probability - before.probability).abs();
            let same = match (before.positive, after.positive) {
                (Some(before), Some(after)) => before == after,
                _ => difference <= near,
            };
            this.labels += 1;
            this.agreed += u32::from(same);
            this.difference += difference;
            this.largest = this.largest.max(difference);
            this.drift += after.probability - before.probability;
        }
        (this.labels > 0).then_some(this)
    }
}

/// [`Comparison`]s of several series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Series that both have classified.
    pub results: u32,
    /// Labels that both have, over all series.
    pub labels: u64,
    /// Of these, those about which both said the same.
    pub agreed: u64,
    /// Sum of the absolute differences of the probabilities.
    pub difference: f64,
    /// The largest of them.
    pub largest: f64,
    /// Sum of the candidate's probabilities less the active plugin's.
    pub drift: f64,
}

impl Statistics {
    /// Counts one series more.
    pub fn add(&mut self, one: &Comparison) {
        self.results = self.results.saturating_add(1);
        self.labels += u64::from(one.labels);
        self.agreed += u64::from(one.agreed);
        self.difference += one.difference;
        self.largest = self.largest.max(one.largest);
        self.drift += one.drift;
    }

    /// As a device reports it, of `of` series that are waited for. Before the first nothing has differed.
    pub fn report(&self, of: u32) -> ShadowReport {
        let labels = self.labels.max(1) as f64;
        ShadowReport {
            results: self.results,
            of,
            agreement: if self.labels == 0 { 1.0 } else { self.agreed as f64 / labels },
            mean_difference: self.difference / labels,
            max_difference: self.largest,
            drift: self.drift / labels,
        }
    }
}

/// What follows from what a candidate has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has not been seen often enough.
    Waits,
    /// It may take the active plugin's place, if its golden cases pass.
    Promote,
    /// The operator is to say.
    AsksOperator,
    /// It may not; why, in one sentence.
    GiveUp(String),
}

/// What follows from `statistics` by `rule`.
pub fn verdict(rule: &Shadow, statistics: &Statistics) -> Verdict {
    if statistics.results < rule.results {
        return Verdict::Waits;
    }
    if rule.promote == Promote::Operator {
        return Verdict::AsksOperator;
    }
    let report = statistics.report(rule.results);
    // Also where one of them is no number.
    let holds = report.agreement >= rule.min_agreement && report.mean_difference <= rule.max_difference;
    if holds {
        return Verdict::Promote;
    }
    Verdict::GiveUp(format!(
        "beside the active plugin it agreed on {:.1} % of the labels of {} series, with a mean difference of {:.3}, and \
         {:.1} % and {:.3} are asked for",
        100.0 * report.agreement,
        report.results,
        report.mean_difference,
        100.0 * rule.min_agreement,
        rule.max_difference
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str, probability: f64, threshold: Option<f64>) -> LabelResult {
        let positive = threshold.map(|t| probability >= t);
        LabelResult { name: name.into(), logit: 0.0, probability, threshold, positive }
    }

    #[test]
    fn labels_agree_by_their_thresholds_or_by_nearness() {
        let active = [label("a", 0.4, Some(0.5)), label("b", 0.9, None), label("gone", 0.1, None)];
        let candidate = [label("b", 0.95, None), label("a", 0.6, Some(0.7)), label("new", 0.9, Some(0.5))];
        let found = Comparison::of(&active, &candidate, 0.1).unwrap();
        assert_eq!((found.labels, found.agreed), (2, 2), "both say no to a, and b is near");
        assert!((found.difference - 0.25).abs() < 1e-12 && (found.drift - 0.25).abs() < 1e-12);
        assert!((found.largest - 0.2).abs() < 1e-12);
        let far = Comparison::of(&active, &candidate, 0.01).unwrap();
        assert_eq!(far.agreed, 1);
        let turned = [label("a", 0.4, Some(0.3))];
        assert_eq!(Comparison::of(&active, &turned, 1.0).unwrap().agreed, 0);
        assert_eq!(Comparison::of(&active, &[label("new", 0.4, None)], 1.0), None);
        let nan = [label("b", f64::NAN, None)];
        assert_eq!(Comparison::of(&active, &nan, 1.0).unwrap().agreed, 0);
    }

    #[test]
    fn the_rule_decides_after_its_number_of_series() {
        let rule = Shadow { results: 2, promote: Promote::Rule, min_agreement: 0.75, max_difference: 0.1 };
        let by_hand = Shadow { promote: Promote::Operator, ..rule.clone() };
        let mut seen = Statistics::default();
        assert_eq!(verdict(&rule, &seen), Verdict::Waits);
        let one = |agreed, difference| Comparison {
            labels: 2,
            agreed,
            difference,
            largest: difference,
            drift: -difference,
        };
        seen.add(&one(2, 0.1));
        assert_eq!(verdict(&rule, &seen), Verdict::Waits);
        let (mut good, mut other, mut far) = (seen, seen, seen);
        good.add(&one(1, 0.3));
        assert_eq!(verdict(&rule, &good), Verdict::Promote, "exactly what is asked for is enough");
        assert_eq!(verdict(&by_hand, &good), Verdict::AsksOperator);
        let report = good.report(rule.results);
        assert_eq!((report.results, report.of, report.agreement), (2, 2, 0.75));
        assert!((report.mean_difference - 0.1).abs() < 1e-12 && (report.drift + 0.1).abs() < 1e-12);
        other.add(&one(0, 0.1));
        let Verdict::GiveUp(reason) = verdict(&rule, &other) else { panic!("half agree") };
        assert!(reason.contains("50.0 % of the labels of 2 series"), "{reason}");
        far.add(&one(2, 0.4));
        assert!(matches!(verdict(&rule, &far), Verdict::GiveUp(_)));
        far.add(&one(2, f64::NAN));
        assert!(matches!(verdict(&rule, &far), Verdict::GiveUp(_)), "no number");
        assert_eq!(verdict(&by_hand, &far), Verdict::AsksOperator);
    }
}
