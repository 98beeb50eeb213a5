//! The pictures of a comparison, as inline SVG.

use super::{Comparison, Method};
use crate::html::{escape, push};

/// The test AUROC of every method on one task, with its interval.
pub(super) fn areas(comparison: &Comparison, place: usize) -> String {
    let dots = comparison.methods.iter().map(|row| {
        let entry = &row.entries[place];
        Dot { method: &row.method, value: entry.auroc, interval: entry.ci }
    });
    intervals(&format!("{}: test AUROC", comparison.tasks[place]), dots.collect())
}

/// A method in a picture.
struct Dot<'a> {
    method: &'a str,
    value: Option<f64>,
    interval: Option<[f64; 2]>,
}

/// A row a method: its figure as a dot, its interval as a line.
fn intervals(title: &str, rows: Vec<Dot<'_>>) -> String {
    const LEFT: f64 = 190.0;
    const RIGHT: f64 = 620.0;
    const LINE: f64 = 22.0;
    let at = |x: f64| LEFT + (RIGHT - LEFT) * x.clamp(0.0, 1.0);
    let bottom = 34.0 + LINE * rows.len() as f64;
    let title = escape(title);
    let mut svg = format!(
        "<svg viewBox=\"0 0 640 {:.0}\" role=\"img\" aria-label=\"{title}\" style=\"max-width:44rem\">\n\
         <text class=\"name\" x=\"8\" y=\"18\">{title}</text>\n",
        bottom + 24.0
    );
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        push(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"28\" y2=\"{bottom:.0}\"/>\
                 <text class=\"soft\" x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{tick}</text>\n",
                bottom + 16.0,
                x = at(tick),
            ),
        );
    }
    for (n, Dot { method, value, interval }) in rows.into_iter().enumerate() {
        let y = 42.0 + LINE * n as f64;
        push(
            &mut svg,
            format_args!(
                "<text class=\"soft\" x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(method)
            ),
        );
        if let Some([low, high]) = interval {
            push(
                &mut svg,
                format_args!(
                    "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"var(--one)\" stroke-width=\"2\"/>",
                    at(low),
                    at(high)
                ),
            );
        }
        match value {
            Some(value) => push(
                &mut svg,
                format_args!("<circle cx=\"{:.1}\" cy=\"{y}\" r=\"4\" fill=\"var(--one)\"/>\n", at(value)),
            ),
            None => push(
                &mut svg,
                format_args!("<text class=\"soft\" x=\"{LEFT}\" y=\"{:.1}\">no figure</text>\n", y + 4.0),
            ),
        }
    }
    svg + "</svg>\n"
}

/// Mean ranks on a line, the best one left; a bar joins methods whose ranks differ by less than the critical difference (Demšar, JMLR
/// 2006, figure 1). `None` where there is no critical difference.
pub(super) fn ranks(comparison: &Comparison) -> Option<String> {
    const WIDTH: f64 = 760.0;
    const LEFT: f64 = 210.0;
    const RIGHT: f64 = WIDTH - 210.0;
    const AXIS: f64 = 62.0;
    const LINE: f64 = 20.0;
    let critical = comparison.critical_difference?;
    let ranked = comparison.methods.iter().filter_map(|row| Some((row.mean_rank?, row.method.as_str())));
    let mut ranked: Vec<(f64, &str)> = ranked.collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let most = ranked.len();
    let at = |rank: f64| LEFT + (RIGHT - LEFT) * (rank - 1.0) / (most as f64 - 1.0);
    let bars = alike(&ranked.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), critical);
    let first = AXIS + 14.0 + 8.0 * bars.len() as f64 + LINE;
    let half = most.div_ceil(2);
    let title = "Mean ranks; a bar joins methods that do not differ at 5 % (Nemenyi)";
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH:.0} {:.0}\" role=\"img\" aria-label=\"{title}\" style=\"max-width:52rem\">\n\
         <text class=\"name\" x=\"8\" y=\"18\">{title}</text>\n",
        first + LINE * half as f64
    );
    let line = |svg: &mut String, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], class: &str, width: f64| {
        push(
            svg,
            format_args!(
                "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" style=\"stroke-width:{width};stroke-dasharray:none\"/>"
            ),
        );
    };
    let text = |svg: &mut String, [x, y]: [f64; 2], anchor: &str, text: &str| {
        push(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n"));
    };
    // The ruler, as far as it fits.
    let ruler = at(1.0 + critical.min(most as f64 - 1.0));
    line(&mut svg, [LEFT, 38.0], [ruler, 38.0], "two", 2.0);
    text(&mut svg, [ruler + 6.0, 42.0], "start", &format!("critical difference {critical:.2}"));
    line(&mut svg, [LEFT, AXIS], [RIGHT, AXIS], "quiet", 1.0);
    for tick in 1..=most {
        let x = at(tick as f64);
        line(&mut svg, [x, AXIS - 4.0], [x, AXIS], "quiet", 1.0);
        text(&mut svg, [x, AXIS - 7.0], "middle", &tick.to_string());
    }
    for (n, &[from, to]) in bars.iter().enumerate() {
        let y = AXIS + 10.0 + 8.0 * n as f64;
        line(&mut svg, [at(ranked[from].0) - 3.0, y], [at(ranked[to].0) + 3.0, y], "one", 4.0);
    }
    for (n, (rank, method)) in ranked.into_iter().enumerate() {
        // The better half hangs to the left, its best uppermost; so does the worst one to the right.
        let (x, row) = (at(rank), if n < half { n } else { most - 1 - n });
        let y = first + LINE * row as f64;
        let (end, anchor) = if n < half { (LEFT - 12.0, "end") } else { (RIGHT + 12.0, "start") };
        line(&mut svg, [x, AXIS], [x, y], "quiet", 1.0);
        line(&mut svg, [x, y], [end, y], "quiet", 1.0);
        let beside = end + if n < half { -4.0 } else { 4.0 };
        text(&mut svg, [beside, y + 4.0], anchor, &format!("{} ({rank:.2})", escape(method)));
    }
    Some(svg + "</svg>\n")
}

/// First and last of each largest run of the rising `ranks` that lie within `critical`; a run of one is none.
fn alike(ranks: &[f64], critical: f64) -> Vec<[usize; 2]> {
    let mut runs: Vec<[usize; 2]> = Vec::new();
    for (from, rank) in ranks.iter().enumerate() {
        let to = ranks.partition_point(|other| other - rank <= critical) - 1;
        if to > from && runs.last().is_none_or(|last| to > last[1]) {
            runs.push([from, to]);
        }
    }
    runs
}

/// Methods that were fitted on parts of the training volumes: name, and mean AUROC over the tasks at each share, by rising share.
pub(super) fn scales(comparison: &Comparison) -> Vec<(String, Vec<[f64; 2]>)> {
    let mut curves: Vec<(String, Vec<[f64; 2]>)> = Vec::new();
    for row in &comparison.methods {
        let (Ok(mut method), Some(mean)) = (row.method.parse::<Method>(), row.mean_auroc) else { continue };
        let share = method.share();
        method.changes.retain(|change| !matches!(change, super::Change::Data(_)));
        let name = method.to_string();
        match curves.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push([share, mean]),
            None => curves.push((name, vec![[share, mean]])),
        }
    }
    curves.retain(|(_, points)| points.len() > 1);
    for (_, points) in &mut curves {
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
    }
    curves
}

/// Mean test AUROC by the share of the training volumes; `None` where no method was fitted on a part.
pub(super) fn scale_curves(comparison: &Comparison) -> Option<String> {
    const LEFT: f64 = 50.0;
    const RIGHT: f64 = 460.0;
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 260.0;
    let curves = scales(comparison);
    let values = || curves.iter().flat_map(|(_, points)| points.iter().map(|point| point[1]));
    let lowest = values().min_by(f64::total_cmp)?;
    let low = (lowest * 10.0).floor() / 10.0;
    let place = |[share, mean]: [f64; 2]| {
        [LEFT + (RIGHT - LEFT) * share, BOTTOM - (BOTTOM - TOP) * (mean - low) / (1.0 - low).max(0.1)]
    };
    let title = "Mean test AUROC by the share of the training volumes";
    let mut svg = format!(
        "<svg viewBox=\"0 0 680 300\" role=\"img\" aria-label=\"{title}\" style=\"max-width:46rem\">\n\
         <text class=\"name\" x=\"8\" y=\"18\">{title}</text>\n"
    );
    let grid = |svg: &mut String, from: [f64; 2], to: [f64; 2], label: [f64; 2], text: &str| {
        push(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>\n",
                from[0], from[1], to[0], to[1], label[0], label[1]
            ),
        );
    };
    for share in [0.2, 0.4, 0.6, 0.8, 1.0] {
        let [x, _] = place([share, low]);
        grid(&mut svg, [x, TOP], [x, BOTTOM], [x, BOTTOM + 16.0], &format!("{:.0} %", 100.0 * share));
    }
    for tenth in (low * 10.0).round() as i64..=10 {
        let mean = tenth as f64 / 10.0;
        let [_, y] = place([0.0, mean]);
        grid(&mut svg, [LEFT, y], [RIGHT, y], [LEFT - 16.0, y + 4.0], &format!("{mean:.1}"));
    }
    for (n, (name, points)) in curves.iter().enumerate() {
        // As far apart in hue as there are curves; of a lightness that is read on light and dark paper.
        let colour = format!("hsl({} 65% 50%)", 210 + 360 * n / curves.len());
        let places: Vec<[f64; 2]> = points.iter().map(|&point| place(point)).collect();
        let text: Vec<String> = places.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        push(&mut svg, format_args!("<polyline style=\"stroke:{colour}\" points=\"{}\"/>", text.join(" ")));
        for [x, y] in places {
            push(
                &mut svg,
                format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" style=\"fill:{colour}\"/>"),
            );
        }
        let y = TOP + 10.0 + 18.0 * n as f64;
        push(
            &mut svg,
            format_args!(
                "<text x=\"{:.0}\" y=\"{:.1}\"><tspan style=\"fill:{colour}\">■</tspan> {}</text>\n",
                RIGHT + 16.0,
                y + 4.0,
                escape(name)
            ),
        );
    }
    Some(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Row;

    #[test]
    fn runs_are_as_large_as_can_be() {
        assert_eq!(alike(&[1.0, 2.0, 2.5, 4.0, 4.2], 1.5), [[0, 2], [2, 3], [3, 4]]);
        assert_eq!(alike(&[1.0, 2.0, 3.0], 5.0), [[0, 2]]);
        assert!(alike(&[1.0, 3.0, 5.0], 1.0).is_empty());
    }

    fn comparison(rows: &[(&str, f64, f64)]) -> Comparison {
        let row = |&(method, auroc, rank): &(&str, f64, f64)| Row {
            mean_auroc: Some(auroc),
            mean_rank: Some(rank),
            ..Row::of(&method.parse().unwrap())
        };
        Comparison {
            tasks: vec!["t01".into(), "t02".into()],
            methods: rows.iter().map(row).collect(),
            ranked_tasks: 2,
            critical_difference: Some(0.65),
        }
    }

    #[test]
    fn curves_belong_to_one_method_each() {
        let found = comparison(&[
            ("anymc3d", 0.9, 1.0),
            ("anymc3d+data=0.2", 0.7, 4.0),
            ("densenet121-3d+data=0.4", 0.6, 5.0),
            ("anymc3d+data=0.6", 0.8, 2.0),
            ("anymc3d+rank=4", 0.85, 3.0),
        ]);
        let scales = scales(&found);
        assert_eq!(scales, [("anymc3d".to_owned(), vec![[0.2, 0.7], [0.6, 0.8], [1.0, 0.9]])]);
        let svg = scale_curves(&found).unwrap();
        assert!(svg.contains("20 %") && svg.matches("<circle").count() == 3, "{svg}");
        assert_eq!(scale_curves(&comparison(&[("anymc3d", 0.9, 1.0)])), None);
    }

    #[test]
    fn every_rank_has_a_label_and_every_run_a_bar() {
        let found = comparison(&[("anymc3d", 0.9, 1.2), ("mst", 0.8, 1.8), ("probe-mean", 0.7, 3.0)]);
        let svg = ranks(&found).unwrap();
        for label in ["anymc3d (1.20)", "mst (1.80)", "probe-mean (3.00)", "critical difference 0.65"] {
            assert!(svg.contains(label), "{svg}");
        }
        assert_eq!(svg.matches("class=\"one\"").count(), 1, "{svg}");
        assert_eq!(ranks(&Comparison { critical_difference: None, ..found }), None);
    }
}
