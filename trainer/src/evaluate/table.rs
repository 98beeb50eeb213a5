//! Evaluations as tables for the terminal.

use std::fmt;

use super::{Classes, Evaluation, LabelEvaluation, SPECIFICITIES, Subgroups, Versus};

fn number(x: Option<f64>) -> String {
    x.map_or_else(|| "–".into(), |x| format!("{x:.3}"))
}

fn interval(x: f64, [low, high]: [f64; 2]) -> String {
    format!("{x:.3} ({low:.3}–{high:.3})")
}

fn with_interval(x: Option<f64>, ci: Option<[f64; 2]>) -> String {
    match (x, ci) {
        (Some(x), Some(ci)) => interval(x, ci),
        (x, _) => number(x),
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.labels.iter().map(|l| l.label.chars().count()).max().unwrap_or(0).max(5);
        writeln!(f, "{} cases of the split \"{}\"\n", self.cases, self.split)?;
        writeln!(
            f,
            "{:width$}  {:>9}  {:>21}  {:>21}  {:>6}  {:>6}",
            "label", "pos/neg", "AUROC (95 % CI)", "AP (95 % CI)", "Brier", "ECE"
        )?;
        for l in &self.labels {
            let counts = format!("{}/{}", l.positives, l.negatives);
            let auroc = l.auroc.as_ref().map_or_else(|| "–".into(), |a| interval(a.value, a.ci));
            let precision = with_interval(l.average_precision, l.average_precision_ci);
            let (brier, error) = (number(l.brier), number(l.calibration_error));
            writeln!(
                f,
                "{:width$}  {counts:>9}  {auroc:>21}  {precision:>21}  {brier:>6}  {error:>6}",
                l.label
            )?;
        }
        if self.labels.len() > 1 {
            let auroc = with_interval(self.macro_auroc, self.macro_auroc_ci);
            let precision = with_interval(self.macro_average_precision, self.macro_average_precision_ci);
            writeln!(f, "{:width$}  {:>9}  {auroc:>21}  {precision:>21}", "macro", "")?;
        }
        writeln!(f, "\nCI of a label's AUROC by DeLong, others by bootstrap; bootstrap CI of AUROC:")?;
        for l in self.labels.iter().filter(|l| l.auroc_bootstrap.is_some()) {
            let auroc = with_interval(l.auroc.as_ref().map(|a| a.value), l.auroc_bootstrap);
            writeln!(f, "{:width$}  {auroc}", l.label)?;
        }
        curve(f, &self.labels, width)?;
        points(f, &self.labels, width)?;
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
        if let Some(localisation) = &self.localisation {
            write!(f, "\n{localisation}")?;
        }
        Ok(())
    }
}

/// Sensitivity at fixed specificity.
fn curve(f: &mut fmt::Formatter<'_>, labels: &[LabelEvaluation], width: usize) -> fmt::Result {
    let heads = SPECIFICITIES.map(|s| format!("at {:.0} % spec", 100.0 * s));
    writeln!(f, "\n{:width$}  {:>14}  {:>14}  {:>14}", "sens", heads[0], heads[1], heads[2])?;
    for l in labels.iter().filter(|l| !l.sensitivity_at.is_empty()) {
        write!(f, "{:width$}", l.label)?;
        for at in &l.sensitivity_at {
            write!(f, "  {:>14.3}", at.sensitivity)?;
        }
        writeln!(f)?;
    }
    Ok(())
}

/// Operating points.
fn points(f: &mut fmt::Formatter<'_>, labels: &[LabelEvaluation], width: usize) -> fmt::Result {
    let all = || labels.iter().flat_map(|l| l.operating_points.iter().map(move |point| (l, point)));
    let Some(longest) = all().map(|(_, point)| point.rule.len()).max() else { return Ok(()) };
    writeln!(
        f,
        "\n{:width$}  {:longest$}  {:>9}  {:>21}  {:>21}",
        "label", "rule", "threshold", "sens (95 % CI)", "spec (95 % CI)"
    )?;
    for (l, point) in all() {
        let sensitivity = interval(point.sensitivity, point.sensitivity_ci);
        let specificity = interval(point.specificity, point.specificity_ci);
        let (label, rule, threshold) = (&l.label, &point.rule, point.threshold);
        writeln!(
            f,
            "{label:width$}  {rule:longest$}  {threshold:>9.4}  {sensitivity:>21}  {specificity:>21}"
        )?;
    }
    Ok(())
}

impl fmt::Display for Subgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.groups.iter().map(|g| g.value.chars().count()).max().unwrap_or(0);
        let values = values.max(self.column.chars().count());
        let labels = self.groups.iter().flat_map(|g| &g.labels).map(|l| l.label.chars().count());
        let width = labels.max().unwrap_or(0).max(5);
        writeln!(
            f,
            "\n{:values$}  {:width$}  {:>5}  {:>9}  {:>21}  {:>6}  {:>6}",
            self.column, "label", "cases", "pos/neg", "AUROC (95 % CI)", "sens", "spec"
        )?;
        for (group, l) in self.groups.iter().flat_map(|g| g.labels.iter().map(move |l| (g, l))) {
            let auroc = l.auroc.as_ref().map_or_else(|| "–".into(), |a| interval(a.value, a.ci));
            writeln!(
                f,
                "{:values$}  {:width$}  {:>5}  {:>9}  {auroc:>21}  {:>6}  {:>6}",
                group.value,
                l.label,
                group.cases,
                format!("{}/{}", l.positives, l.negatives),
                number(l.sensitivity),
                number(l.specificity),
            )?;
        }
        if self.groups.iter().flat_map(|g| &g.labels).any(|l| l.sensitivity.is_some()) {
            writeln!(f, "\nsens and spec at the threshold chosen on all val cases (youden)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
        write!(f, "\n{:width$}  called", "true")?;
        for name in &self.names {
            write!(f, "  {name:>width$}")?;
        }
        writeln!(f)?;
        for (name, row) in self.names.iter().zip(&self.calls.confusion) {
            write!(f, "{name:width$}        ")?;
            for count in row {
                write!(f, "  {count:>width$}")?;
            }
            writeln!(f)?;
        }
        let calls = &self.calls;
        write!(f, "\naccuracy {}, ", interval(calls.accuracy, calls.accuracy_ci))?;
        write!(f, "balanced accuracy {:.3}", calls.balanced_accuracy)?;
        if let Some(error) = calls.mean_absolute_error {
            let kappa = with_interval(calls.quadratic_kappa, calls.quadratic_kappa_ci);
            write!(f, ", mean absolute error {error:.3}, quadratic kappa {kappa}")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Versus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nAUROC less that of {} (DeLong, paired)", self.other)?;
        let width = self.labels.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        for (label, paired) in &self.labels {
            write!(f, "{label:width$}  ")?;
            match paired {
                None => writeln!(f, "–")?,
                Some(paired) => {
                    let [low, high] = paired.ci;
                    let p = number(paired.p_value);
                    writeln!(f, "{:+.3} (95 % CI {low:+.3} to {high:+.3}), p = {p}", paired.difference)?;
                }
            }
        }
        Ok(())
    }
}
