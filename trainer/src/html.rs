//! The report of a fit: one HTML file that needs nothing else, no script, no font, no network.
//!
//! ```
//! use trainer::html::{Epoch, LabelScores, Report};
//! let page = Report {
//!     title: "Demo lesion".into(),
//!     about: "Fitted on 120 volumes, tested on 4.".into(),
//!     epochs: vec![Epoch { epoch: 1, train_loss: 0.69, val_loss: None, val_auroc: Some(0.7), best: true }],
//!     labels: vec![LabelScores {
//!         label: "lesion".into(),
//!         probabilities: vec![0.1, 0.8, 0.4, 0.9],
//!         truth: vec![false, true, false, true],
//!     }],
//!     ..Report::default()
//! }
//! .render();
//! assert!(page.contains("research use only"));
//! ```

mod base64;
mod chart;
mod tables;

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use runtime::files::write_atomically;

use crate::evaluate::BINS;
use crate::metrics;
use chart::{Chart, Series, Shape, Tone};
pub use tables::{Operating, Wrong};

/// What a report shows.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// A sentence or two on what was fitted on what.
    pub about: String,
    /// The training, epoch by epoch.
    pub epochs: Vec<Epoch>,
    /// Predictions for the test volumes, one entry a label.
    pub labels: Vec<LabelScores>,
    /// The table's other figures.
    pub figures: Figures,
    /// Operating points on the test volumes.
    pub operating: Vec<Operating>,
    /// The worst test volumes.
    pub wrong: Vec<Wrong>,
    /// Pictures, shown in this order.
    pub pictures: Vec<Picture>,
}

/// One pass over the training volumes.
#[derive(Debug, Clone, Copy)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Mean loss over the training volumes.
    pub train_loss: f64,
    /// Mean loss over the validation volumes, where there are any.
    pub val_loss: Option<f64>,
    /// AUROC on the validation volumes, where defined.
    pub val_auroc: Option<f64>,
    /// Whether this epoch's weights were kept.
    pub best: bool,
}

/// Predictions of one label.
#[derive(Debug, Clone, Default)]
pub struct LabelScores {
    /// The label.
    pub label: String,
    /// A probability a volume.
    pub probabilities: Vec<f64>,
    /// The truth of the same volumes.
    pub truth: Vec<bool>,
}

/// Figures of the table; what is absent gets no row.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Test AUROC of the frozen linear probe on the same volumes.
    pub probe_auroc: Option<f64>,
    /// Largest difference of a logit between libtorch and the exported graph.
    pub parity_max_abs: Option<f64>,
    /// Trainable parameters.
    pub parameters: Option<usize>,
    /// Size of the plugin file.
    pub plugin_bytes: Option<u64>,
    /// Size of the merged ONNX graph.
    pub graph_bytes: Option<u64>,
    /// Duration of the whole run.
    pub seconds: Option<f64>,
    /// Largest resident memory, in MB.
    pub peak_mb: Option<f64>,
    /// Further rows: what, value.
    pub more: Vec<(String, String)>,
}

/// A picture.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The PNG file's bytes.
    pub png: Vec<u8>,
    /// What it shows.
    pub caption: String,
}

const STYLE: &str = "
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1f2328; --soft: #6b7280; --line: #d9dce1; --card: #ffffff;
  --one: #0b63b8; --two: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e7e9; --soft: #9aa1ab; --line: #343940;
  --card: #1d2024; --one: #6cb2f5; --two: #f0a070; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
p { margin: .25rem 0; max-width: 46rem; } .soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
.note { border-left: 3px solid var(--two); padding-left: .75rem; margin-top: .75rem; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
td { padding: .4rem .9rem; border-top: 1px solid var(--line); } tr:first-child td { border-top: 0; }
th { padding: .4rem .9rem; text-align: left; font-weight: 600; font-size: .9rem; } th + th { text-align: right; }
td + td { text-align: right; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; } .wide td { white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(18.5rem, 1fr)); gap: 1rem; }
.charts svg, figure img { background: var(--card); border: 1px solid var(--line); border-radius: 6px; width: 100%; height: auto; }
figure { margin: 0 0 1rem; } figure img { display: block; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } svg .name { font-size: 13px; font-weight: 600; }
svg .soft { fill: var(--soft); } svg .frame { fill: none; stroke: var(--line); } svg .grid { stroke: var(--line); stroke-width: .6; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } svg .one { stroke: var(--one); } svg .two { stroke: var(--two); }
svg .quiet { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4; } svg circle.one { fill: var(--one); } svg circle.two { fill: var(--two); }
";

/// The page up to its heading.
pub(crate) fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    )
}

/// The page's end.
pub(crate) const FOOT: &str = "</main>\n</body>\n</html>\n";

impl Report {
    /// The page.
    pub fn render(&self) -> String {
        let mut page = head(&self.title);
        push(&mut page, format_args!("<p>{}</p>\n", escape(&self.about)));
        page.push_str(
            "<p class=\"note\">For research use only. Nothing here is a diagnosis or meant to lead to one.</p>\n",
        );
        page.push_str("<h2>Results</h2>\n<table>\n");
        for (what, value) in self.rows() {
            push(&mut page, format_args!("<tr><td>{}</td><td>{}</td></tr>\n", escape(&what), escape(&value)));
        }
        page.push_str("</table>\n");
        if !self.epochs.is_empty() {
            page.push_str("<h2>Training</h2>\n<div class=\"charts\">\n");
            page.extend(self.training().iter().map(Chart::render));
            page.push_str("</div>\n");
        }
        for label in &self.labels {
            let charts = test_charts(label);
            if !charts.is_empty() {
                let name = escape(&label.label);
                push(&mut page, format_args!("<h2>Test volumes: {name}</h2>\n<div class=\"charts\">\n"));
                page.extend(charts.iter().map(Chart::render));
                page.push_str("</div>\n");
            }
        }
        tables::operating(&mut page, &self.operating);
        tables::wrong(&mut page, &self.wrong);
        if !self.pictures.is_empty() {
            page.push_str("<h2>Where it looked</h2>\n");
        }
        for picture in &self.pictures {
            let caption = escape(&picture.caption);
            let data = base64::encode(&picture.png);
            push(
                &mut page,
                format_args!(
                    "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{data}\"><figcaption>{caption}</figcaption></figure>\n"
                ),
            );
        }
        page.push_str(FOOT);
        page
    }

    /// Writes the page to `path`, which stands there whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_atomically(path, self.render().as_bytes())
    }

    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        for label in &self.labels {
            let n = label.truth.len();
            let positives = label.truth.iter().filter(|&&t| t).count();
            rows.push((format!("test volumes, {}", label.label), format!("{n}, {positives} positive")));
            if let Some(auroc) = metrics::auroc_with_ci(&label.probabilities, &label.truth) {
                let value = format!("{:.3} ({:.3}–{:.3})", auroc.value, auroc.ci[0], auroc.ci[1]);
                rows.push((format!("test AUROC (95 % CI), {}", label.label), value));
            }
        }
        let f = &self.figures;
        let mut row = |what: &str, value: Option<String>| {
            rows.extend(value.map(|value| (what.to_owned(), value)));
        };
        row("test AUROC of the frozen linear probe", f.probe_auroc.map(|x| format!("{x:.3}")));
        row(
            "largest logit difference, libtorch and exported graph",
            f.parity_max_abs.map(|x| format!("{x:.1e}")),
        );
        row("trainable parameters", f.parameters.map(thousands));
        row("plugin", f.plugin_bytes.map(|b| format!("{:.2} MB", b as f64 / 1e6)));
        row("merged graph", f.graph_bytes.map(|b| format!("{:.1} MB", b as f64 / 1e6)));
        row("duration", f.seconds.map(|s| format!("{s:.0} s")));
        row("peak memory", f.peak_mb.map(|mb| format!("{mb:.0} MB")));
        rows.extend(f.more.iter().cloned());
        rows
    }

    fn training(&self) -> Vec<Chart> {
        let last = self.epochs.iter().map(|e| e.epoch).max().unwrap_or(1) as f64;
        let x = [1.0_f64.min(last - 1.0), last];
        let loss: Vec<[f64; 2]> = self.epochs.iter().map(|e| [e.epoch as f64, e.train_loss]).collect();
        let validation = self.epochs.iter().filter_map(|e| Some([e.epoch as f64, e.val_loss?]));
        let validation: Vec<[f64; 2]> = validation.collect();
        let top = loss.iter().chain(&validation).map(|p| p[1]).filter(|v| v.is_finite()).fold(1e-6, f64::max);
        let auroc = |only_best: bool| -> Vec<[f64; 2]> {
            let epochs = self.epochs.iter().filter(|e| e.best || !only_best);
            epochs.filter_map(|e| Some([e.epoch as f64, e.val_auroc?])).collect()
        };
        let mut charts = vec![
            Chart::new("Training loss", "epoch", "mean loss", x, [0.0, 1.05 * top])
                .with(Series::new(Shape::Line, Tone::Two, validation.clone()))
                .with(Series::new(Shape::Line, Tone::One, loss.clone()))
                .with(Series::new(Shape::Dots, Tone::One, loss))
                .saying(if validation.is_empty() { "" } else { "dots: training; plain line: validation" }),
        ];
        if !auroc(false).is_empty() {
            let mut chart = Chart::new("Validation AUROC", "epoch", "AUROC", x, [0.0, 1.0])
                .with(Series::new(Shape::Line, Tone::Quiet, vec![[x[0], 0.5], [x[1], 0.5]]))
                .with(Series::new(Shape::Line, Tone::One, auroc(false)))
                .with(Series::new(Shape::Dots, Tone::One, auroc(false)))
                .with(Series::new(Shape::Dots, Tone::Two, auroc(true)));
            if let Some([epoch, value]) = auroc(true).last() {
                chart = chart.saying(&format!("kept: epoch {epoch}, {value:.3}"));
            }
            charts.push(chart);
        }
        charts
    }
}

/// ROC, precision–recall and reliability, as far as the label's classes allow.
fn test_charts(label: &LabelScores) -> Vec<Chart> {
    const UNIT: [f64; 2] = [0.0, 1.0];
    let (p, truth) = (&label.probabilities, &label.truth);
    let mut charts = Vec::new();
    if let (Some(points), Some(auroc)) = (metrics::roc(p, truth), metrics::auroc_with_ci(p, truth)) {
        let points = points.iter().map(|p| [p.false_positive_rate, p.true_positive_rate]).collect();
        charts.push(
            Chart::new("ROC", "1 − specificity", "sensitivity", UNIT, UNIT)
                .with(Series::new(Shape::Line, Tone::Quiet, vec![[0.0, 0.0], [1.0, 1.0]]))
                .with(Series::new(Shape::Line, Tone::One, points))
                .saying(&format!("AUROC {:.3} ({:.3}–{:.3})", auroc.value, auroc.ci[0], auroc.ci[1])),
        );
    }
    if let (Some(points), Some(precision)) =
        (metrics::precision_recall(p, truth), metrics::average_precision(p, truth))
    {
        let prevalence = truth.iter().filter(|&&t| t).count() as f64 / truth.len() as f64;
        let points = points.iter().map(|p| [p.recall, p.precision]).collect();
        charts.push(
            Chart::new("Precision and recall", "recall", "precision", UNIT, UNIT)
                .with(Series::new(Shape::Line, Tone::Quiet, vec![[0.0, prevalence], [1.0, prevalence]]))
                .with(Series::new(Shape::Line, Tone::One, points))
                .saying(&format!("average precision {precision:.3}")),
        );
    }
    if let (Some(bins), Some(error), Some(brier)) = (
        metrics::reliability(p, truth, BINS),
        metrics::expected_calibration_error(p, truth, BINS),
        metrics::brier(p, truth),
    ) {
        let points: Vec<[f64; 2]> = bins.iter().map(|b| [b.mean_probability, b.positive_rate]).collect();
        charts.push(
            Chart::new("Calibration", "mean probability", "share positive", UNIT, UNIT)
                .with(Series::new(Shape::Line, Tone::Quiet, vec![[0.0, 0.0], [1.0, 1.0]]))
                .with(Series::new(Shape::Line, Tone::One, points.clone()))
                .with(Series::new(Shape::Dots, Tone::One, points))
                .saying(&format!("ECE {error:.3}, Brier {brier:.3}")),
        );
    }
    charts
}

/// Appends; writing to a string does not fail.
pub(crate) fn push(to: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = to.write_fmt(what);
}

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests;
