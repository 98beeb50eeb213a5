//! The tables for people: Markdown, and one HTML file that needs nothing else.

use std::fmt::Write as _;

use super::{Comparison, Entry, Row, picture};
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
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
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
    let mut grids = vec![areas(comparison), differences(comparison), series(comparison)];
    grids.extend(scales(comparison));
    grids.extend([costs(comparison), projection(comparison)]);
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

/// Mean AUROC by the share of the training volumes; `None` where no method was fitted on a part.
fn scales(comparison: &Comparison) -> Option<Grid> {
    let curves = picture::scales(comparison);
    let mut shares: Vec<f64> =
        curves.iter().flat_map(|(_, points)| points.iter().map(|point| point[0])).collect();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    let row = |(name, points): (String, Vec<[f64; 2]>)| {
        let at = |share: &f64| {
            number(points.iter().find(|point| point[0].total_cmp(share).is_eq()).map(|point| point[1]))
        };
        std::iter::once(name).chain(shares.iter().map(at)).collect()
    };
    (!curves.is_empty()).then(|| Grid {
        title: "Share of the training volumes".into(),
        about: "Mean test AUROC over the tasks. A smaller share is part of a larger one.".into(),
        header: words(&["method"])
            .into_iter()
            .chain(shares.iter().map(|share| format!("{:.0} %", 100.0 * share)))
            .collect(),
        rows: curves.into_iter().map(row).collect(),
    })
}

/// What the cells that were made took, and what those that are left are going to take.
fn projection(comparison: &Comparison) -> Grid {
    let line = |name: &str, [asked, done, empty]: [usize; 3], each: Option<f64>, left: Option<f64>| {
        let numbers = [done, empty, asked - done - empty].map(|n| n.to_string());
        let times = [each, left].map(|seconds| seconds.map_or("–".into(), time));
        std::iter::once(name.to_owned()).chain(numbers).chain(times).collect::<Vec<_>>()
    };
    let (mut sums, mut known, mut unknown) = ([0; 3], 0.0, Vec::new());
    let mut rows = Vec::new();
    for row in &comparison.methods {
        let cells = &row.cells;
        let left = cells.asked - cells.done - cells.empty;
        let seconds = cells.seconds.filter(|_| left > 0).map(|each| each * left as f64);
        known += seconds.unwrap_or(0.0);
        if left > 0 && seconds.is_none() {
            unknown.push(row.method.as_str());
        }
        let counts = [cells.asked, cells.done, cells.empty];
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        rows.push(line(&row.method, counts, cells.seconds, seconds));
    }
    rows.push(line("all", sums, None, (known > 0.0).then_some(known)));
    let lacking = if unknown.is_empty() {
        String::new()
    } else {
        format!(" Of {} no cell has been made yet, so that the sum is without.", unknown.join(", "))
    };
    Grid {
        title: "Cells".into(),
        about: format!(
            "The mean time of a cell from its start to its figures, and of those that are left, one after the other where the others \
             were made; several GPUs or jobs share them.{lacking}"
        ),
        header: words(&["method", "made", "empty", "left", "a cell", "what is left"]),
        rows,
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
            for place in 0..comparison.tasks.len() {
                page += &picture::areas(comparison, place);
            }
            page.extend(picture::ranks(comparison));
            page.extend(picture::scale_curves(comparison));
        }
    }
    page.push_str(FOOT);
    page
}
