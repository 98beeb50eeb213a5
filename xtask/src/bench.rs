//! Time and memory of one task graph in scanside and in onnxruntime, taken in turns in one session, and what the service promises.
//!
//! Both sides are processes that answer the same words (`xtask/peers/onnxruntime_bench.py`, `runtime/examples/bench_worker.rs`): they load
//! the same graph, make the same input, and each run of one is followed by a run of the other, so that what the machine does meanwhile
//! touches both. The logits are compared first.

mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use self::worker::Worker;
use crate::assets::{self, Group};
use crate::workspace::{self, cargo, output, run, step};
use crate::{peers, system};

/// Largest difference of a logit at which both still compute the same.
const TOLERANCE: f64 = 1e-3;

/// What to time.
#[derive(clap::Args)]
pub struct Options {
    /// Task graph to time [default: one of the packaged ViT-S/14 at 224×224, made by this command]
    #[arg(long)]
    graph: Option<PathBuf>,
    /// Pairs of runs of each measurement
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Only what the service promises: memory, idle time, and how soon after the last slice the result is there
    #[arg(long)]
    service: bool,
}

/// One line of the table and of `bench.json`.
struct Row {
    name: String,
    unit: String,
    threads: usize,
    scanside: f64,
    /// What it is compared with: another program, or `limit`, what was promised.
    peer: &'static str,
    value: f64,
    /// Smallest and largest ratio of a pair, where pairs were run.
    spread: Option<(f64, f64)>,
}

/// Times the graph, prints a table and leaves `target/bench/bench.json`.
pub fn run_chore(options: &Options) -> Result<()> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)?;
    let mut rows = if options.service { Vec::new() } else { engine(options, &folder)? };
    println!("\n{}", table(&rows));
    rows.extend(service()?);
    let file = folder.join("bench.json");
    fs::write(&file, json(&rows)?)?;
    println!("written to {}", file.display());
    Ok(())
}

/// The engine beside onnxruntime.
fn engine(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let mut python = PathBuf::new();
    step("Peers", || {
        python = peers::ensure()?;
        Ok(())
    })?;
    step("System packages", || system::ensure(system::FOR_BUILD))?;
    step("Build", || run(cargo().args(["build", "--workspace", "--release", "--example", "bench_worker"])))?;
    let worker = workspace::target().join("release/examples/bench_worker");
    let graph = match &options.graph {
        Some(graph) => {
            graph.canonicalize().with_context(|| format!("{} cannot be opened", graph.display()))?
        }
        None => make_graph(&worker, folder)?,
    };

    let cores = std::thread::available_parallelism()?.get();
    let mut rows = Vec::new();
    for slices in [1, 64] {
        for threads in if cores == 1 { vec![1] } else { vec![1, cores] } {
            let title = format!("{slices} slice{}, {threads} thread{}", plural(slices), plural(threads));
            step(&title, || {
                let arguments = Case { graph: &graph, slices, threads };
                let scanside = arguments.start("scanside", Command::new(&worker))?;
                let mut peer = Command::new(&python);
                peer.arg(workspace::root().join("xtask/peers/onnxruntime_bench.py"));
                let onnxruntime = arguments.start("onnxruntime", peer)?;
                rows.extend(measure(&arguments, scanside, onnxruntime, options.pairs)?);
                Ok(())
            })?;
        }
    }
    Ok(rows)
}

/// What the service promises, measured by a program that starts it and plays scanner and subscriber.
fn service() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    step("Service", || {
        assets::ensure(&[Group::Libtorch, Group::Demo])?;
        system::ensure(system::FOR_BUILD)?;
        system::ensure(system::FOR_TESTS)?;
        run(cargo().args([
            "build",
            "--workspace",
            "--release",
            "--bin",
            "scanside",
            "--bin",
            "bench_service",
        ]))?;
        let mut bench = Command::new(workspace::target().join("release/bench_service"));
        bench.arg("--backbone").arg(workspace::assets().join("backbone/vit_s_focus.onnx"));
        let lines = output(bench.stderr(std::process::Stdio::inherit()))?;
        rows = lines.lines().map(Row::parse).collect::<Result<_>>()?;
        Ok(())
    })?;
    Ok(rows)
}

fn make_graph(worker: &Path, folder: &Path) -> Result<PathBuf> {
    assets::ensure(&[Group::Demo])?;
    let graph = folder.join("vit-s-14-224.onnx");
    run(Command::new(worker)
        .arg("--backbone")
        .arg(workspace::assets().join("backbone/vit_s_focus.onnx"))
        .arg("--graph")
        .arg(&graph))?;
    Ok(graph)
}

/// What both workers are asked to do.
struct Case<'a> {
    graph: &'a Path,
    slices: usize,
    threads: usize,
}

impl Case<'_> {
    fn start(&self, name: &'static str, mut command: Command) -> Result<Worker> {
        command.arg("--graph").arg(self.graph);
        command.args(["--slices", &self.slices.to_string(), "--threads", &self.threads.to_string()]);
        Worker::start(name, command)
    }
}

impl Row {
    /// From a line of the service's bench.
    fn parse(line: &str) -> Result<Self> {
        let row: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let number = |value: &serde_json::Value| value.as_f64().with_context(|| line.to_owned());
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a text");
        Ok(Self {
            name: text(&row["name"])?,
            unit: text(&row["unit"])?,
            threads: number(&row["threads"])? as usize,
            scanside: number(&row["scanside"])?,
            peer: "limit",
            value: number(&row["peers"]["limit"])?,
            spread: None,
        })
    }
}

fn measure(case: &Case, mut ours: Worker, mut theirs: Worker, pairs: u16) -> Result<Vec<Row>> {
    let cold = [ours.loading_ms + ours.number("run")?, theirs.loading_ms + theirs.number("run")?];
    let (a, b) = (ours.numbers("logits")?, theirs.numbers("logits")?);
    // A NaN is not close to anything.
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= TOLERANCE);
    if a.is_empty() || !same {
        bail!("scanside's logits {a:?} and onnxruntime's {b:?} differ by more than {TOLERANCE:e}");
    }
    let mut times = Vec::new();
    for pair in 0..pairs {
        // Whoever goes first alternates.
        let (mine, peer);
        if pair % 2 == 0 {
            mine = ours.number("run")?;
            peer = theirs.number("run")?;
        } else {
            peer = theirs.number("run")?;
            mine = ours.number("run")?;
        }
        times.push((mine, peer));
    }
    let ratios: Vec<f64> = times.iter().map(|(mine, peer)| mine / peer).collect();
    let spread =
        ratios.iter().fold((f64::MAX, 0.0), |(low, high): (f64, f64), r| (low.min(*r), high.max(*r)));
    let what = format!("ViT-S/14 at 224, {} slice{}", case.slices, plural(case.slices));
    let row = |part: &str, unit: &str, [scanside, value]: [f64; 2], spread| Row {
        name: format!("{what}, {part}"),
        unit: unit.into(),
        threads: case.threads,
        scanside,
        peer: "onnxruntime",
        value,
        spread,
    };
    let medians = [median(times.iter().map(|t| t.0).collect()), median(times.iter().map(|t| t.1).collect())];
    Ok(vec![
        row("time", "ms", medians, Some(spread)),
        row("cold start", "ms", cold, None),
        row("peak memory", "MB", [ours.number("peak")?, theirs.number("peak")?], None),
    ])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!(
        "{:<40} {:>7} {:>11} {:>12} {:>6}  min–max of the pairs",
        "", "threads", "scanside", "onnxruntime", "ratio"
    )];
    for row in rows {
        let spread = row.spread.map(|(low, high)| format!("{low:.2}–{high:.2}")).unwrap_or_default();
        lines.push(format!(
            "{:<40} {:>7} {:>8.1} {} {:>9.1} {} {:>6.2}  {spread}",
            row.name,
            row.threads,
            row.scanside,
            row.unit,
            row.value,
            row.unit,
            row.scanside / row.value
        ));
    }
    lines.join("\n")
}

fn json(rows: &[Row]) -> Result<String> {
    let list: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut entry = json!({
                "name": row.name,
                "unit": row.unit,
                "scanside": row.scanside,
                "peers": { row.peer: row.value },
                "ratio": row.scanside / row.value,
                "threads": row.threads,
            });
            if let Some((low, high)) = row.spread {
                entry["ratio_min"] = low.into();
                entry["ratio_max"] = high.into();
            }
            entry
        })
        .collect();
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn the_json_holds_what_the_table_shows() {
        let row = Row {
            name: "one".into(),
            unit: "ms".into(),
            threads: 2,
            scanside: 3.0,
            peer: "onnxruntime",
            value: 2.0,
            spread: Some((1.4, 1.7)),
        };
        let list: serde_json::Value = serde_json::from_str(&json(&[row]).unwrap()).unwrap();
        assert_eq!(list[0]["ratio"], 1.5);
        assert_eq!(list[0]["peers"]["onnxruntime"], 2.0);
        assert_eq!(list[0]["ratio_max"], 1.7);
        assert_eq!(list[0]["threads"], 2);
        let promised = list[0].to_string().replace("onnxruntime", "limit");
        assert_eq!(Row::parse(&promised).unwrap().peer, "limit");
    }
}
