//! The tables of the page that are not its first one.

use super::{base64, escape, push};
use crate::evaluate::OperatingPoint;

/// An operating point of a label.
#[derive(Debug, Clone)]
pub struct Operating {
    /// The label.
    pub label: String,
    /// Threshold, rule, and what it makes of the test volumes.
    pub point: OperatingPoint,
}

/// A test volume that was predicted badly.
#[derive(Debug, Clone, Default)]
pub struct Wrong {
    /// Its id in the data table.
    pub id: String,
    /// Its loss.
    pub loss: f64,
    /// Name, truth and probability of each label that is known.
    pub labels: Vec<(String, bool, f64)>,
    /// Its key slices with the heat map over them, where they could be made.
    pub png: Option<Vec<u8>>,
}

/// Operating points as a table.
pub(super) fn operating(page: &mut String, points: &[Operating]) {
    if points.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Operating points</h2>\n<p class=\"soft\">Thresholds were chosen on the validation volumes; the figures are of the test volumes, \
         with 95 % score intervals.</p>\n<div class=\"wide\"><table>\n<tr><th>label</th><th>rule</th><th>threshold</th>\
         <th>sensitivity</th><th>specificity</th><th>TP</th><th>FN</th><th>TN</th><th>FP</th></tr>\n",
    );
    for Operating { label, point } in points {
        let share = |x: f64, [low, high]: [f64; 2]| format!("{x:.3} ({low:.3}–{high:.3})");
        let counts = &point.confusion;
        push(
            page,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{:.4}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(label),
                escape(&point.rule),
                point.threshold,
                share(point.sensitivity, point.sensitivity_ci),
                share(point.specificity, point.specificity_ci),
                counts.true_positives,
                counts.false_negatives,
                counts.true_negatives,
                counts.false_positives,
            ),
        );
    }
    page.push_str("</table></div>\n");
}

/// The worst cases, with their pictures.
pub(super) fn wrong(page: &mut String, cases: &[Wrong]) {
    if cases.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Most wrong</h2>\n<p class=\"soft\">The test volumes of the greatest loss, the worst first. The heat map shows where the network \
         looked, not why it decided.</p>\n",
    );
    for case in cases {
        let labels = case.labels.iter().map(|(label, truth, p)| {
            format!("{label} is {}, predicted {p:.3}", if *truth { "present" } else { "absent" })
        });
        let labels = labels.collect::<Vec<_>>().join("; ");
        let caption = escape(&format!("{}: {labels} (loss {:.2})", case.id, case.loss));
        page.push_str("<figure>");
        if let Some(png) = &case.png {
            let data = base64::encode(png);
            push(page, format_args!("<img alt=\"{caption}\" src=\"data:image/png;base64,{data}\">"));
        }
        push(page, format_args!("<figcaption>{caption}</figcaption></figure>\n"));
    }
}
