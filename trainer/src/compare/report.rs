//! The tables for people: Markdown, and one HTML file that needs nothing else.

use std::fmt::Write as _;

use super::{Comparison, Entry, Row};
use crate::html::{FOOT, escape, head, push};

const ABOUT: &str = "Test AUROC, mean over a task's labels. Intervals of 95 %: Student's t over the seeds; of one seed DeLong's (one label) or \
                     a bootstrap over the test volumes (several). Research use only.";

fn number(x: Option<f64>) -> String {
    x.map_or("–".into(), |x| format!("{x:.3}"))
}

fn ranged(x: Option<f64>, ci: Option<[f64; 2]>) -> String {
    match (x, ci) {
        (Some(x), Some([low, high])) => format!("{x:.3} ({low:.3}–{high:.3})"),
        _ => number(x),
    }
}

fn count(n: usize) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.1} M", n as f64 / 1e6),
    }
}

fn bytes(n: u64) -> String {
    if n < 1_000_000 { format!("{:.1} kB", n as f64 / 1e3) } else { format!("{:.1} MB", n as f64 / 1e6) }
}

/// Seconds, readable.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{:.1} min", s / 60.0),
    }
}

/// A table: header, then rows.
struct Grid {
    title: String,
    about: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// Methods over tasks, ranks, changed series and costs.
fn grids(comparison: &Comparison) -> Vec<Grid> {
    let mut grids = vec![areas(comparison), differences(comparison), series(comparison), costs(comparison)];
    grids.extend(remarks(comparison));
    let rows = comparison.methods.iter().map(|row| vec![row.method.clone(), row.description.clone()]);
    grids.push(Grid {
        title: "Methods".into(),
        about: String::new(),
        header: words(&["method", "what it is"]),
        rows: rows.collect(),
    });
    grids
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// The first of a method's entries that has figures, for what is alike over the tasks.
fn any(row: &Row) -> Option<&Entry> {
    row.entries.iter().find(|entry| entry.parameters.is_some())
}

/// Mean of a figure over the tasks that have it.
fn over(row: &Row, of: fn(&Entry) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = row.entries.iter().filter_map(of).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn areas(comparison: &Comparison) -> Grid {
    let several = comparison.tasks.len() > 1;
    let mut header = words(&["method", "trainable", "frozen backbone"]);
    header.extend(comparison.tasks.iter().cloned());
    if several {
        header.extend(words(&["mean AUROC", "mean rank"]));
    }
    let rows = comparison.methods.iter().map(|row| {
        let parameters = any(row).and_then(|entry| entry.parameters);
        let mut cells = vec![row.method.clone(), parameters.map_or("–".into(), count)];
        cells.push(if row.frozen { "yes" } else { "no" }.into());
        cells.extend(row.entries.iter().map(|entry| ranged(entry.auroc, entry.ci)));
        if several {
            cells.push(number(row.mean_auroc));
            cells.push(row.mean_rank.map_or("–".into(), |rank| format!("{rank:.2}")));
        }
        cells
    });
    let ranks = match comparison.critical_difference {
        Some(cd) if several => format!(
            " Ranks are over the {} tasks on which every method has a figure; mean ranks differ at 5 % where they are more than \
             {cd:.2} apart (Nemenyi).",
            comparison.ranked_tasks
        ),
        _ => String::new(),
    };
    Grid {
        title: "Areas under the ROC curve".into(),
        about: format!("{ABOUT}{ranks}"),
        header,
        rows: rows.collect(),
    }
}

fn differences(comparison: &Comparison) -> Grid {
    let first = comparison.methods.first().map_or("", |row| row.method.as_str());
    let mut header = words(&["method"]);
    header.extend(comparison.tasks.iter().cloned());
    let difference = |entry: &Entry| match entry.versus_first {
        Some(found) => {
            let p = found.p_value.map_or(String::new(), |p| format!(", p {p:.3}"));
            format!("{:+.3} ({:+.3} to {:+.3}{p})", found.difference, found.ci[0], found.ci[1])
        }
        None => "–".into(),
    };
    let rows = comparison.methods.iter().skip(1).map(|row| {
        let cells = row.entries.iter().map(difference);
        std::iter::once(row.method.clone()).chain(cells).collect()
    });
    let about = format!(
        "AUROC less that of {first} on the same test volumes, by DeLong's paired test on logits averaged over the seeds; tasks of \
         one label."
    );
    Grid { title: "Differences".into(), about, header, rows: rows.collect() }
}

fn series(comparison: &Comparison) -> Grid {
    let rows = comparison.methods.iter().map(|row| {
        let mean = |of| number(over(row, of));
        let changed = [mean(|entry| entry.shuffled), mean(|entry| entry.thinned)];
        [row.method.clone(), mean(|entry| entry.auroc)].into_iter().chain(changed).collect()
    });
    Grid {
        title: "Other series than trained on".into(),
        about: "Mean test AUROC over the tasks: as they are, with the slices of each volume shuffled, and with every second slice \
                left out. A method that pools without order cannot tell shuffled slices from ordered ones."
            .into(),
        header: words(&["method", "as it is", "shuffled", "every second slice"]),
        rows: rows.collect(),
    }
}

fn costs(comparison: &Comparison) -> Grid {
    let rows = comparison.methods.iter().map(|row| {
        let megabytes = |of: fn(&Entry) -> Option<f64>| {
            any(row).and_then(of).map_or("–".into(), |x| format!("{x:.0} MB"))
        };
        let seconds = |of| over(row, of).map_or("–".into(), time);
        vec![
            row.method.clone(),
            seconds(|entry| entry.seconds_fit),
            seconds(|entry| entry.seconds_predict),
            megabytes(|entry| entry.peak_mb),
            megabytes(|entry| entry.peak_gpu_mb),
            any(row).and_then(|entry| entry.bytes).map_or("–".into(), bytes),
        ]
    });
    Grid {
        title: "Cost".into(),
        about: "Of a fit and of a prediction of one prepared volume, means over tasks and seeds; the largest resident memory of \
                the process that did both; and the bytes that a further task ships where the backbone is there already."
            .into(),
        header: words(&["method", "fit", "predict a volume", "memory", "GPU memory", "bytes a task"]),
        rows: rows.collect(),
    }
}

/// Why cells are empty, and what there is to know of others; `None` where there is nothing to say.
fn remarks(comparison: &Comparison) -> Option<Grid> {
    let mut rows = Vec::new();
    for row in &comparison.methods {
        for (task, entry) in comparison.tasks.iter().zip(&row.entries) {
            let seeds = entry.empty.iter().map(|(seed, why)| (format!("seed-{seed}"), why));
            let notes = entry.notes.iter().map(|note| ("note".to_owned(), note));
            let all = seeds.chain(notes);
            rows.extend(all.map(|(what, why)| vec![format!("{task}/{}", row.method), what, why.clone()]));
        }
    }
    (!rows.is_empty()).then(|| Grid {
        title: "Empty cells and notes".into(),
        about: String::new(),
        header: words(&["cell", "", "why"]),
        rows,
    })
}

/// The tables as Markdown.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = String::from("# Comparison\n");
    for Grid { title, about, header, rows } in grids(comparison) {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let _ = write!(text, "\n## {title}\n\n");
        if !about.is_empty() {
            let _ = write!(text, "{about}\n\n");
        }
        text += &line(&header);
        text += &line(&header.iter().map(|_| "---".to_owned()).collect::<Vec<_>>());
        for row in &rows {
            text += &line(row);
        }
    }
    text
}

/// The tables and pictures as one HTML file.
pub fn html(comparison: &Comparison) -> String {
    let mut page = head("Comparison");
    for (n, Grid { title, about, header, rows }) in grids(comparison).into_iter().enumerate() {
        push(&mut page, format_args!("<h2>{}</h2>\n", escape(&title)));
        if !about.is_empty() {
            push(&mut page, format_args!("<p class=\"soft\">{}</p>\n", escape(&about)));
        }
        page.push_str("<div class=\"wide\"><table>\n");
        let line = |page: &mut String, tag: &str, cells: &[String]| {
            page.push_str("<tr>");
            for cell in cells {
                push(page, format_args!("<{tag}>{}</{tag}>", escape(cell)));
            }
            page.push_str("</tr>\n");
        };
        line(&mut page, "th", &header);
        for row in &rows {
            line(&mut page, "td", row);
        }
        page.push_str("</table></div>\n");
        if n == 0 {
            for (place, task) in comparison.tasks.iter().enumerate() {
                let dots = comparison.methods.iter().map(|row| {
                    let entry = &row.entries[place];
                    Dot { method: &row.method, value: entry.auroc, interval: entry.ci }
                });
                page += &intervals(
                    &format!("{task}: test AUROC"),
                    dots.collect(),
                    [0.0, 1.0],
                    &[0.0, 0.25, 0.5, 0.75, 1.0],
                );
            }
            if comparison.ranked_tasks > 1 {
                page += &rank_plot(comparison);
            }
        }
    }
    page.push_str(FOOT);
    page
}

/// A method in a picture.
struct Dot<'a> {
    method: &'a str,
    value: Option<f64>,
    interval: Option<[f64; 2]>,
}

/// A row a method: its figure as a dot, its interval as a line.
fn intervals(title: &str, rows: Vec<Dot<'_>>, range: [f64; 2], ticks: &[f64]) -> String {
    const LEFT: f64 = 190.0;
    const RIGHT: f64 = 620.0;
    const LINE: f64 = 22.0;
    let at = |x: f64| LEFT + (RIGHT - LEFT) * ((x - range[0]) / (range[1] - range[0])).clamp(0.0, 1.0);
    let bottom = 34.0 + LINE * rows.len() as f64;
    let title = escape(title);
    let mut svg = format!(
        "<svg viewBox=\"0 0 640 {:.0}\" role=\"img\" aria-label=\"{title}\" style=\"max-width:44rem\">\n\
         <text class=\"name\" x=\"8\" y=\"18\">{title}</text>\n",
        bottom + 24.0
    );
    for &tick in ticks {
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

/// Mean ranks with half the critical difference to either side: methods whose lines do not overlap differ.
fn rank_plot(comparison: &Comparison) -> String {
    let half = comparison.critical_difference.map_or(0.0, |cd| cd / 2.0);
    let most = comparison.methods.len() as f64;
    let mut rows: Vec<Dot<'_>> = comparison
        .methods
        .iter()
        .map(|row| Dot {
            method: &row.method,
            value: row.mean_rank,
            interval: row.mean_rank.map(|rank| [rank - half, rank + half]),
        })
        .collect();
    rows.sort_by(|a, b| a.value.unwrap_or(f64::INFINITY).total_cmp(&b.value.unwrap_or(f64::INFINITY)));
    let ticks: Vec<f64> = (1..=comparison.methods.len()).map(|n| n as f64).collect();
    intervals(
        "Mean rank, ± half the critical difference: methods whose lines do not overlap differ at 5 %",
        rows,
        [0.5, most + 0.5],
        &ticks,
    )
}
